"""Teachers in int8: what it changes of their targets, and what they are loaded with."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from internvideo_jax import models, saved_model
from internvideo_jax.nn.smoothing import PRODUCTS
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.stages import calibration as calibrations
from internvideo_jax.training.stages.clips import normalized
from internvideo_jax.training.stages.int8_teachers import (
    FILE,
    Calibration,
    check_devices,
    read_calibration,
    write_calibration,
)
from internvideo_jax.training.stages.teachers import FrozenTeacher, check_teachers, load_teachers


def deep_encoder(depth, width):
    return models.VideoViTConfig(
        width=width,
        depth=depth,
        num_heads=4,
        mlp_dim=2 * width,
        patch_size=4,
        image_size=32,
        num_frames=1,
        pooled_dim=8,
        pooler_heads=4,
        layer_scale_init=None,
    )


def make_teacher(encoder, path=None, quantization="none"):
    layers = tuple(range(encoder.depth))[-2:]
    config = models.TeacherConfig(encoder, layers, per_frame=True, quantization=quantization)
    return FrozenTeacher("clip_teacher", config, path, 1)


def with_outliers(teacher, factors):
    """Random variables with some channels larger than others by factors, which their weights
    make up for."""
    shapes = nn.unbox(jax.eval_shape(teacher.init_wide, jax.random.key(0)))
    rng = np.random.default_rng(0)
    width = teacher.config.encoder.width

    def draw(path, leaf):
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        return rng.normal(0, width**-0.5, leaf.shape).astype(np.float32)

    variables = jax.tree.map_with_path(draw, shapes)
    blocks = variables["params"]["encoder"]["blocks"]
    for norm, kernel in (
        (blocks["norm1"], blocks["attn"]["qkv"]),
        (blocks["norm2"], blocks["mlp"]["fc1"]),
    ):
        loud = np.ones((teacher.config.encoder.depth, width), np.float32)
        for row in loud:
            row[rng.choice(width, 3, replace=False)] = rng.uniform(*factors, 3)
        norm["scale"] *= loud
        kernel["kernel"] /= loud.reshape(*loud.shape, *[1] * (kernel["kernel"].ndim - 2))
    return jax.tree.map(jnp.asarray, variables)


@pytest.fixture(scope="module")
def clips():
    videos = np.random.default_rng(1).integers(0, 256, (2, 2, 2, 32, 32, 3), np.uint8)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    mask = MaskConfig("attention", 0.5)
    return calibrations.Clips([jnp.asarray(video) for video in videos], mask, mesh, DEFAULT_RULES)


@pytest.mark.parametrize(
    ("depth", "width"), [(4, 64), pytest.param(32, 128, marks=pytest.mark.slow)]
)
def test_targets_and_masks_stay_where_channels_are_20_to_50_times_larger(clips, depth, width):
    teacher = make_teacher(deep_encoder(depth, width))
    variables = with_outliers(teacher, (20, 50))
    largest = calibrations.largest_inputs(teacher, variables, clips)
    assert {name: x.shape[0] for name, x in largest.items()} == dict.fromkeys(PRODUCTS, depth)
    found = calibrations.deviation(teacher, variables, Calibration(PRODUCTS, largest), clips)
    assert found.of_targets(teacher.config.layers) <= 1e-3
    assert found.agreement >= 0.99
    assert (found.blocks > 0).all()


def test_layers_that_change_most_are_left_out(monkeypatch):
    """One that costs too much, then one by which the masks differ; at last there is none."""
    costs = {"attn/qkv": 1e-4, "attn/proj": 2e-4, "mlp/fc1": 5e-3, "mlp/fc2": 3e-4}
    teacher = make_teacher(deep_encoder(2, 64))
    least_agreement = 0.99

    def deviation(teacher, variables, calibration, clips):
        cost = sum(costs[product] for product in calibration.products)
        agreement = 0.98 if "mlp/fc2" in calibration.products else least_agreement
        return calibrations.Deviation(np.full(2, cost, np.float32), agreement)

    monkeypatch.setattr(calibrations, "deviation", deviation)
    monkeypatch.setattr(calibrations, "largest_inputs", lambda *args: {})
    found, report = calibrations.calibrate(teacher, {}, None)
    assert found.products == ("attn/qkv", "attn/proj")
    assert list(report.alone) == list(PRODUCTS)
    assert [len(products) for products in report.tried] == [4, 3, 2]
    least_agreement = 0.5
    with pytest.raises(ValueError, match=r"found none: attn/qkv alone changes .* by 1\.0e-04"):
        calibrations.calibrate(teacher, {}, None)


@pytest.fixture(scope="module")
def saved(clips, tmp_path_factory):
    """A saved teacher with its calibration, without fc1."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    teacher = make_teacher(deep_encoder(2, 64), str(folder))
    variables = with_outliers(teacher, (20, 50))
    saved_model.save(
        folder, "teacher", teacher.config, Preprocessing(VideoPreprocessing()), variables
    )
    largest = calibrations.largest_inputs(teacher, variables, clips)
    products = tuple(product for product in PRODUCTS if product != "mlp/fc1")
    write_calibration(str(folder), Calibration(products, largest))
    return folder, variables, largest


def test_a_calibration_comes_back_and_says_what_is_int8(saved, clips):
    folder, variables, largest = saved
    products, found = dataclasses.astuple(read_calibration(str(folder), "clip_teacher"))
    assert products == ("attn/qkv", "attn/proj", "mlp/fc2")
    jax.tree.map(np.testing.assert_array_equal, found, largest)

    encoder = dataclasses.replace(deep_encoder(2, 64), dtype="bfloat16")
    teacher = make_teacher(encoder, str(folder), "int8")
    loaded = load_teachers([teacher], clips.mesh, DEFAULT_RULES)["clip_teacher"]
    flat = traverse_util.flatten_dict(loaded["params"]["encoder"], sep="/")
    expected = traverse_util.flatten_dict(
        nn.unbox(jax.eval_shape(teacher.init, jax.random.key(0)))["params"]["encoder"], sep="/"
    )
    assert {n: (x.shape, x.dtype) for n, x in flat.items()} == {
        n: (x.shape, x.dtype) for n, x in expected.items()
    }
    dtypes = {n.removeprefix("blocks/"): str(x.dtype) for n, x in flat.items() if "kernel" in n}
    assert {n for n, dtype in dtypes.items() if dtype == "int8"} == {
        f"{product}/kernel" for product in products
    }
    assert dtypes["mlp/fc1/kernel"] == "bfloat16"
    # The model as it was saved still loads, calibration or not.
    assert saved_model.load(folder).config.quantization == "none"
    encode = jax.jit(lambda v: teacher.encode(v, normalized(clips.videos[0])))
    encoded = [encode(v) for v in (variables, loaded)]
    wanted, got = (x.hidden_states.astype(jnp.float32) for x in encoded)
    cos = (wanted * got).sum(-1) / jnp.linalg.norm(wanted, axis=-1) / jnp.linalg.norm(got, axis=-1)
    assert 1 - cos.mean() < 1e-3


def test_what_is_no_calibration_of_the_teacher_is_refused(saved, clips, tmp_path):
    _, variables, largest = saved
    missing = make_teacher(deep_encoder(2, 64), str(tmp_path), "int8")
    with pytest.raises(ValueError, match=rf"expected {FILE} in .*calibrate.*clip_teacher\.quant"):
        read_calibration(missing.path, missing.name)
    (tmp_path / FILE).write_bytes(b"no arrays")
    with pytest.raises(ValueError, match=r"int8\.npz: expected what .* remove it"):
        read_calibration(missing.path, missing.name)
    other = Calibration(PRODUCTS, {name: x[:1] for name, x in largest.items()})
    with pytest.raises(ValueError, match=r"attn/qkv: expected \(2, 64\), found \(1, 64\)"):
        calibrations.deviation(make_teacher(deep_encoder(2, 64)), variables, other, clips)


def test_an_uncalibrated_teacher_is_found_out_before_training(saved, tmp_path):
    variables = saved[1]
    model = tmp_path / "model"
    teacher = make_teacher(deep_encoder(2, 64), str(model), "int8")
    saved_model.save(
        model, "teacher", teacher.config, Preprocessing(VideoPreprocessing()), variables
    )
    with pytest.raises(ValueError, match="internvideo-jax calibrate"):
        check_teachers([teacher])


@pytest.mark.parametrize(
    ("platform", "kind", "reason"),
    [
        ("tpu", "TPU v4", "which multiply int8 no faster than bfloat16"),
        ("gpu", "NVIDIA H200", "which have not been measured"),
        ("tpu", "TPU v5", "which have not been measured"),
        ("tpu", "TPU v5 lite", None),
        ("tpu", "TPU v6 lite", None),
    ],
)
def test_devices_that_do_not_gain_are_refused(platform, kind, reason):
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    if reason is None:
        check_devices([device], "clip_teacher")
        return
    with pytest.raises(ValueError, match=rf"found {kind}, {reason}; set .*\.quantization=none"):
        check_devices([device], "clip_teacher")


def test_a_cpu_is_warned_of(caplog):
    check_devices(jax.devices(), "clip_teacher")
    assert "clip_teacher: products of int8 values are slow on a CPU" in caplog.text
