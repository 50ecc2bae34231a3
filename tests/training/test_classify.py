import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvideo_jax import models, saved_model
from internvideo_jax.models import VideoClassifierConfig
from internvideo_jax.nn import int8
from internvideo_jax.objectives.classification import smooth_one_hot, soft_cross_entropy
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.parallel.rules import DEFAULT_RULES
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.config import OptimizerConfig, TrainConfig
from internvideo_jax.training.mixup import MixConfig
from internvideo_jax.training.stages.classify import ClassifyConfig, ClassifyStage, ProbeConfig
from internvideo_jax.training.state import abstract_state, create_state
from tests.small_models import ENCODER, noise

PLAIN = MixConfig(mixup_alpha=0.0, cutmix_alpha=0.0, label_smoothing=0.0)
CONFIG = ClassifyConfig(VideoClassifierConfig(ENCODER, 5), mix=PLAIN)


def example(stage, rows, seed=0):
    rng = np.random.default_rng(seed)
    shapes = stage.example_batch(rows)
    video = rng.normal(size=shapes["video"].shape).astype(np.float32)
    return {"video": jnp.asarray(video), "label": jnp.arange(rows, dtype=jnp.int32) % 5}


def test_without_mixing_the_loss_is_the_cross_entropy():
    stage = ClassifyStage(CONFIG)
    variables, batch = noise(stage.init, 0), example(stage, 4)

    @jax.jit
    def step(variables, batch):
        targets = stage.targets({}, batch, jax.random.key(0))
        loss = stage.loss(variables["params"], {}, batch, targets, jax.random.key(1))
        return targets, loss, stage.module.apply(variables, batch["video"]).logits

    targets, (loss, (metrics, extra)), logits = step(variables, batch)
    np.testing.assert_allclose(targets["video"], batch["video"], rtol=1e-6)
    np.testing.assert_array_equal(targets["label"], jax.nn.one_hot(batch["label"], 5))
    np.testing.assert_allclose(loss, soft_cross_entropy(logits, targets["label"]), rtol=1e-5)
    assert metrics["top1"] == 100 * np.mean(logits.argmax(-1) == batch["label"])
    assert extra == {}


def test_groups_of_rows_mix_with_a_draw_of_their_own():
    mix = MixConfig(cutmix_alpha=0.0, label_smoothing=0.1)
    stage = ClassifyStage(dataclasses.replace(CONFIG, mix=mix, mix_group=2))
    batch = example(stage, 6)
    targets = jax.jit(stage.targets)({}, batch, jax.random.key(0))
    one_hot = np.asarray(smooth_one_hot(batch["label"], 5, 0.1))
    shares = []
    for group in range(3):
        a, b = 2 * group, 2 * group + 1
        label = int(batch["label"][a])
        other = int(batch["label"][b])
        share = (targets["label"][a][label] - one_hot[b][label]) / (
            one_hot[a][label] - one_hot[b][label]
        )
        shares.append(float(share))
        for row, partner in ((a, b), (b, a)):
            mixed = share * batch["video"][row] + (1 - share) * batch["video"][partner]
            np.testing.assert_allclose(targets["video"][row], mixed, atol=1e-5)
        assert label != other
    assert len(set(np.round(shares, 4))) == 3
    np.testing.assert_allclose(targets["label"].sum(-1), 1, rtol=1e-5)


def test_groups_must_divide_the_rows_unless_they_are_larger():
    stage = ClassifyStage(dataclasses.replace(CONFIG, mix_group=4))
    with pytest.raises(ValueError, match="divides the 6 rows .* found 4"):
        jax.eval_shape(stage.targets, {}, example(stage, 6), jax.random.key(0))
    with pytest.raises(ValueError, match=r"found 4; change --config\.stage\.mix_group"):
        stage.check_batch(6, devices=1)
    shapes = jax.eval_shape(stage.targets, {}, example(stage, 2), jax.random.key(0))
    assert shapes["label"].shape == (2, 5)
    with pytest.raises(ValueError, match="mix_group: expected an even number"):
        dataclasses.replace(CONFIG, mix_group=3)


def test_dropout_and_batch_statistics_belong_to_training():
    model = VideoClassifierConfig(ENCODER, 5, head="concat", merge_norm="bn", dropout_rate=0.5)
    stage = ClassifyStage(dataclasses.replace(CONFIG, model=model))
    variables, batch = noise(stage.init, 0), example(stage, 4)
    extra = {"batch_stats": variables["batch_stats"]}
    targets = jax.jit(stage.targets)({}, batch, jax.random.key(0))
    loss = jax.jit(stage.loss)
    first, (_, new) = loss(variables["params"], extra, batch, targets, jax.random.key(1))
    second, _ = loss(variables["params"], extra, batch, targets, jax.random.key(2))
    assert first != second
    old = extra["batch_stats"]["down_norm"]["mean"]
    assert not np.allclose(new["batch_stats"]["down_norm"]["mean"], old)
    assert new.keys() == extra.keys()


@pytest.mark.parametrize(
    ("probe", "trained"),
    [
        (None, {"input", "blocks", "pooler", "head"}),
        (ProbeConfig(), {"head"}),
        (ProbeConfig(open_clip_projector=True), {"pooler", "head"}),
        (ProbeConfig(open_block_num=2), {"blocks", "head"}),
    ],
)
def test_what_a_probe_trains(probe, trained):
    stage = ClassifyStage(dataclasses.replace(CONFIG, probe=probe))
    paths = {
        "input": ["encoder/patch_embed/kernel", "encoder/cls_token", "encoder/pos_embed_cls"],
        "blocks": ["encoder/blocks/mlp/fc1/kernel"],
        "pooler": ["encoder/pooler/q/kernel"],
        "head": ["head/kernel", "fc_norm/scale", "down_norm/scale", "extra_mlp/fc1/kernel"],
    }
    for part, names in paths.items():
        for name in names:
            assert np.all(stage.trainable(name)) == (part in trained), name


def test_the_last_blocks_are_opened_by_number():
    encoder = dataclasses.replace(ENCODER, depth=40)
    model = VideoClassifierConfig(encoder, 5)
    stage = ClassifyStage(ClassifyConfig(model, probe=ProbeConfig(open_block_num=37)))
    opened = stage.trainable("encoder/blocks/norm1/scale")
    assert opened.tolist() == [i >= 3 for i in range(40)]
    with pytest.raises(ValueError, match="open_block_num: expected 0 to 40"):
        ClassifyConfig(model, probe=ProbeConfig(open_block_num=41))


def test_flops_of_frozen_blocks_have_no_backward_pass():
    full, probe, pooler = (
        ClassifyStage(dataclasses.replace(CONFIG, probe=p)).flops()
        for p in (None, ProbeConfig(), ProbeConfig(open_clip_projector=True))
    )
    assert full["blocks"] == 3 * probe["blocks"] == 3 * pooler["blocks"]
    assert full["head"] == probe["head"]
    assert full["pooler"] == pooler["pooler"] == 3 * probe["pooler"]


def saved(tmp_path, config, seed=3):
    """A classifier on disk, and its variables."""
    stage = ClassifyStage(ClassifyConfig(config))
    variables = noise(stage.init, seed)
    stage.save(variables, tmp_path / "start")
    return str(tmp_path / "start"), variables


@pytest.mark.parametrize(
    ("theirs", "ours", "is_new"),
    [
        ("", "", False),
        ("abcde", "abcde", False),
        ("abcde", "abced", True),
        ("abcde", "", True),
        ("", "abcde", True),
        ("abcdefg", "abcde", True),
    ],
)
def test_a_head_of_other_classes_starts_afresh(tmp_path, caplog, theirs, ours, is_new):
    model = VideoClassifierConfig(ENCODER, len(theirs) or 5)
    saved_model.write_description(
        tmp_path, "video_classifier", model, Preprocessing(), classes=theirs or None
    )
    config = dataclasses.replace(CONFIG, initial=str(tmp_path), classes=tuple(ours), new_head=None)
    with caplog.at_level("INFO"):
        ClassifyStage(config).check_weights()
    assert ("the last layer starts untrained" in caplog.text) is is_new


def test_the_same_classes_in_another_order_are_called_so(tmp_path, caplog):
    model = VideoClassifierConfig(ENCODER, 5)
    saved_model.write_description(
        tmp_path, "video_classifier", model, Preprocessing(), classes=tuple("abcde")
    )
    config = dataclasses.replace(
        CONFIG, initial=str(tmp_path), classes=tuple("edcba"), new_head=None
    )
    with caplog.at_level("INFO"):
        ClassifyStage(config).check_weights()
    assert "same names in another order" in caplog.text


def test_names_of_classes_are_saved_and_decide_on_the_head(tmp_path):
    start = ClassifyStage(dataclasses.replace(CONFIG, classes=tuple("abcde")))
    start.save(noise(start.init, 3), tmp_path / "start")
    assert saved_model.load(tmp_path / "start").classes == tuple("abcde")
    stage = ClassifyStage(
        dataclasses.replace(
            CONFIG, initial=str(tmp_path / "start"), classes=tuple("edcba"), new_head=None
        )
    )
    fresh = noise(stage.init, 0)
    loaded = stage.load_initial(fresh)["params"]
    np.testing.assert_array_equal(loaded["head"]["kernel"], fresh["params"]["head"]["kernel"])
    assert not np.allclose(loaded["fc_norm"]["scale"], fresh["params"]["fc_norm"]["scale"])


def test_as_many_names_as_classes():
    with pytest.raises(ValueError, match="expected names of model.num_classes=5 classes, found 2"):
        dataclasses.replace(CONFIG, classes=("a", "b"))


def test_narrow_encoders_may_start_wider(tmp_path):
    stage = ClassifyStage(dataclasses.replace(CONFIG, fan_in=True))
    fresh = noise(stage.init, 0)
    started = stage.load_initial(fresh)["params"]
    for name, inputs in (("fc1", ENCODER.width), ("fc2", ENCODER.mlp_dim)):
        old, new = (
            p["encoder"]["blocks"]["mlp"][name]["kernel"] for p in (fresh["params"], started)
        )
        np.testing.assert_allclose(new, old * inputs**-0.5 / 0.02, rtol=1e-6)
    np.testing.assert_array_equal(started["head"]["kernel"], fresh["params"]["head"]["kernel"])


def test_k710_heads_become_those_of_k400_and_tables_get_longer(tmp_path):
    path, start = saved(tmp_path, VideoClassifierConfig(ENCODER, 710))
    encoder = dataclasses.replace(ENCODER, num_frames=4, drop_path_rate=0.3)
    config = ClassifyConfig(VideoClassifierConfig(encoder, 400, dropout_rate=0.5), initial=path)
    stage = ClassifyStage(config)
    loaded = stage.load_initial(noise(stage.init, 0))["params"]
    np.testing.assert_array_equal(
        loaded["head"]["kernel"], start["params"]["head"]["kernel"][:, :400]
    )
    table = start["params"]["encoder"]["pos_embed"]
    np.testing.assert_array_equal(loaded["encoder"]["pos_embed"][:, :5], table[:, :5])
    assert loaded["encoder"]["pos_embed"].shape == (1, 17, 32)
    np.testing.assert_array_equal(
        loaded["encoder"]["blocks"]["mlp"]["fc1"]["kernel"],
        start["params"]["encoder"]["blocks"]["mlp"]["fc1"]["kernel"],
    )


def test_a_student_gives_its_encoder_and_the_head_starts_afresh(tmp_path):
    config = models.Stage1StudentConfig(ENCODER, (1,), (1,), 12, 8, 20)
    module = models.Stage1Student(config)
    rng = np.random.default_rng(0)
    start = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), models.abstract_variables(module)
    )
    saved_model.save(
        tmp_path / "start", "stage1_student", config, Preprocessing(VideoPreprocessing()), start
    )
    stage = ClassifyStage(
        dataclasses.replace(CONFIG, initial=str(tmp_path / "start"), starts_from="a student")
    )
    fresh = noise(stage.init, 0)
    loaded = stage.load_initial(fresh)["params"]
    np.testing.assert_array_equal(
        loaded["encoder"]["pooler"]["proj"]["kernel"],
        start["params"]["encoder"]["pooler"]["proj"]["kernel"],
    )
    np.testing.assert_array_equal(loaded["head"]["kernel"], fresh["params"]["head"]["kernel"])


def test_another_number_of_classes_needs_a_new_head(tmp_path):
    path, _ = saved(tmp_path, VideoClassifierConfig(ENCODER, 7))
    stage = ClassifyStage(dataclasses.replace(CONFIG, initial=path))
    fresh = noise(stage.init, 0)
    message = "head/kernel: expected 5 classes, found 7.*--config.stage.new_head=True"
    # Also before any array is read.
    for load in (stage.check_weights, lambda: stage.load_initial(fresh)):
        with pytest.raises(ValueError, match=message):
            load()
    stage = ClassifyStage(dataclasses.replace(CONFIG, initial=path, new_head=True))
    loaded = stage.load_initial(fresh)["params"]
    np.testing.assert_array_equal(loaded["head"]["kernel"], fresh["params"]["head"]["kernel"])
    assert not np.allclose(loaded["fc_norm"]["scale"], fresh["params"]["fc_norm"]["scale"])


def test_all_misfits_are_listed_at_once(tmp_path):
    other = dataclasses.replace(ENCODER, depth=3, activation="gelu_erf")
    path, _ = saved(tmp_path, VideoClassifierConfig(other, 7, head="attentive"))
    stage = ClassifyStage(dataclasses.replace(CONFIG, initial=path))
    with pytest.raises(ValueError, match="does not fit: ") as error:
        stage.load_initial(noise(stage.init, 0))
    text = str(error.value)
    assert "config.encoder.activation: expected 'gelu_tanh', found 'gelu_erf'" in text
    assert "config.encoder.depth: expected 2, found 3" in text
    assert "params/encoder/blocks/mlp/fc1/kernel: expected shape (2, 32, " in text
    assert "params/extra_mlp/fc1/kernel: not part of the model" in text
    assert "params/head/kernel: expected 5 classes, found 7" in text


def test_a_recipe_says_what_it_wants_to_start_from():
    stage = ClassifyStage(dataclasses.replace(CONFIG, starts_from="internvideo2-1b-k710"))
    for load in (stage.check_weights, lambda: stage.load_initial({})):
        with pytest.raises(ValueError, match="stage.initial, .* starts from internvideo2-1b-k710"):
            load()
    assert ClassifyStage(CONFIG).load_initial({"params": {}}) == {"params": {}}


def test_saved_classifiers_run_in_float32_anywhere(tmp_path):
    encoder = dataclasses.replace(ENCODER, dtype="bfloat16", remat="full")
    path, variables = saved(tmp_path, VideoClassifierConfig(encoder, 5))
    model = saved_model.load(path)
    assert (model.config.encoder.dtype, model.config.encoder.remat) == ("float32", "none")
    np.testing.assert_array_equal(
        model.variables["params"]["head"]["kernel"], variables["params"]["head"]["kernel"]
    )


def test_a_frozen_encoder_may_be_int8(tmp_path):
    stage = ClassifyStage(dataclasses.replace(CONFIG, probe=ProbeConfig()))
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    # Compiles faster than the model's own.
    stage.init = lambda key: jax.tree.map(lambda x: jax.random.normal(key, x.shape), boxed)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    config = TrainConfig(4, OptimizerConfig(1e-3), steps=2, frozen_dtype="int8")
    state, fixed = create_state(stage, config, mesh, DEFAULT_RULES)
    announced = abstract_state(stage, config, mesh, DEFAULT_RULES)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), announced) == jax.tree.map(
        lambda x: (x.shape, x.dtype), (state, fixed)
    )
    encoder = fixed["encoder"]
    layer = encoder["blocks"]["mlp"]["fc1"]
    assert (layer["kernel"].dtype, layer["bias"].dtype) == ("int8", "float32")
    assert encoder["patch_embed"]["kernel"].dtype == "bfloat16"
    # It can be saved, and be started from.
    stage.save(state.variables(fixed), tmp_path / "model")
    saved = saved_model.load(tmp_path / "model").variables["params"]["encoder"]
    assert saved["blocks"]["mlp"]["fc1"]["kernel"].dtype == np.int8
    again = ClassifyStage(dataclasses.replace(CONFIG, initial=str(tmp_path / "model")))
    loaded = again.load_initial(noise(again.init, 0))["params"]["encoder"]["blocks"]["mlp"]["fc1"]
    whole = int8.dequantize(layer["kernel"], layer["kernel_scale"], (-2,))
    np.testing.assert_allclose(loaded["kernel"], whole, rtol=1e-6)
