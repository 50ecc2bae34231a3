"""Exported programs: what they compute, and that they need nothing of ours."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np
import pytest

from internvideo_jax import models, stablehlo
from internvideo_jax.data.pipeline import eval_batches
from internvideo_jax.data.sources.given import GivenSource
from internvideo_jax.evaluation import prediction
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing, normalize
from internvideo_jax.saved_model import SavedModel
from tests.small_models import CONFIGS, TOWERS, noise_like

DOCS = Path(__file__).parents[1] / "docs" / "export.md"
SIZE = VideoPreprocessing(image_size=8, num_frames=2)
NAMES = tuple(f"class {i}" for i in range(5))


def small_model(name, **changes):
    config = dataclasses.replace((CONFIGS | TOWERS)[name], **changes)
    module = models.build(config)
    variables = noise_like(models.abstract_variables(module), 0, 0.3)
    return SavedModel(
        module,
        variables,
        config,
        Preprocessing(SIZE),
        {},
        classes=NAMES if name == "video_classifier" else None,
    )


def pixels(count):
    return np.random.default_rng(0).integers(0, 256, (count, 2, 8, 8, 3), np.uint8)


def check_close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)


@pytest.fixture(scope="module")
def classifier():
    return small_model("video_classifier")


@pytest.fixture(scope="module")
def written(classifier, tmp_path_factory):
    """A classifier with its weights inside, for all platforms and any batch."""
    path = tmp_path_factory.mktemp("exported") / "inside.stablehlo"
    assert stablehlo.write_program(stablehlo.make_program(classifier), classifier, path) <= 1e-6
    return path


def description(path):
    return json.loads(path.with_name(f"{path.name}.json").read_text())


def documented():
    """The docs' code: what loads a program, and what chooses a clip's frames."""
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def check_documented_loader(path, classifier, tmp_path):
    """Runs the snippet of the docs in a process that has neither this package nor Flax."""
    snippet, _ = documented()
    snippet = snippet.replace('"b14.stablehlo"', repr(str(path)))
    program = f"""
import sys
sys.modules["internvideo_jax"] = sys.modules["flax"] = None
{snippet}
assert logits.shape == (2, 5), logits.shape
frames = np.load("pixels.npy")
np.save("logits.npy", run(weights, frames))
"""
    np.save(tmp_path / "pixels.npy", pixels(3))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=120)
    video = normalize(jax.numpy.asarray(pixels(3)), SIZE)
    expected = jax.jit(classifier.module.apply)(classifier.variables, video).logits
    check_close(np.load(tmp_path / "logits.npy"), expected)


@pytest.mark.slow
def test_the_documented_loader_needs_only_jax_and_numpy(written, classifier, tmp_path):
    check_documented_loader(written, classifier, tmp_path)


@pytest.mark.slow
def test_weights_may_lie_beside_the_program(written, classifier, tmp_path):
    path = tmp_path / "beside.stablehlo"
    program = stablehlo.make_program(classifier, weights="beside", platforms=["cpu"])
    stablehlo.write_program(program, classifier, path)
    check_documented_loader(path, classifier, tmp_path)
    assert description(path)["weights"] == "beside.stablehlo.npz"
    assert path.stat().st_size < written.stat().st_size


def test_files_say_what_a_loader_must_know(written):
    inside = description(written)
    assert inside["inputs"] == [{"name": "video", "shape": [None, 2, 8, 8, 3], "dtype": "uint8"}]
    assert inside["classes"] == list(NAMES)
    assert inside["platforms"] == ["cpu", "cuda", "tpu"]
    assert inside["preprocessing"]["video"]["image_size"] == 8
    assert inside["weights"] is None
    assert sorted(p.name for p in written.parent.iterdir()) == [
        "inside.stablehlo",
        "inside.stablehlo.json",
    ]


@pytest.mark.parametrize("shape", [(30, 23, 40), (9, 40, 17), (1, 8, 8), (2, 64, 48)])
def test_a_loader_is_told_which_frames_the_model_is_shown(written, classifier, shape):
    views = prediction.view_config(classifier)
    told = description(written)
    assert told["views"] == {
        name: getattr(views, name) for name in ("sampling", "segments", "crops")
    }
    video = told["preprocessing"]["video"]
    assert video["resize"] == "bilinear_short_side"
    code = {}
    exec(documented()[1], code)
    clip = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    found = code["frames_of"](clip, video["num_frames"], video["image_size"])
    (batch,) = eval_batches(views, ("video",), batch_size=1, source=GivenSource([clip]))
    np.testing.assert_array_equal(found[None], batch["video"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["video_classifier", "stage1_student"])
def test_features_are_the_pooled_ones_of_the_encoder(name):
    model = small_model(name)
    program = stablehlo.make_program(
        model, output="features", pixels="normalized", batch=2, platforms=["cpu"]
    )
    video = np.random.default_rng(0).standard_normal((2, 2, 8, 8, 3), np.float32)
    expected = models.encode(model.module, model.variables, jax.numpy.asarray(video)).pooled
    check_close(program.exported.call({}, video), expected)
    with pytest.raises(ValueError, match="shape"):
        program.exported.call({}, video[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOWERS.keys() - {"decoder_lm"}))
def test_towers_of_texts_and_sound_are_exported_too(name, tmp_path):
    model = small_model(name)
    program = stablehlo.make_program(model, platforms=["cpu"])
    assert program.output == "features"
    assert stablehlo.write_program(program, model, tmp_path / "tower") <= 1e-6


@pytest.mark.slow
def test_half_precision_and_int8_weights_lie_beside(classifier, tmp_path):
    from internvideo_jax import saved_model

    config, sizes = classifier.config, classifier.preprocessing
    saved_model.save(tmp_path / "m", "video_classifier", config, sizes, classifier.variables)
    model = saved_model.load(tmp_path / "m", dtype="bfloat16", storage="int8")
    program = stablehlo.make_program(model, weights="beside", platforms=["cpu"])
    assert program.weights["params/head/kernel"].dtype == "int8"
    model = saved_model.load(tmp_path / "m", dtype="bfloat16")
    program = stablehlo.make_program(model, weights="beside", platforms=["cpu"])
    assert program.weights["params/head/kernel"].dtype == "uint16"
    assert stablehlo.write_program(program, model, tmp_path / "half") < 0.04


def test_models_without_such_an_output_are_refused(classifier):
    with pytest.raises(ValueError, match="expected a classifier for logits, found VideoViT"):
        stablehlo.make_program(small_model("video_vit"), output="logits")
    with pytest.raises(ValueError, match="found VideoMAE"):
        stablehlo.make_program(small_model("videomae"))
    for platforms in ([], ["cpu", "gpu"]):
        with pytest.raises(ValueError, match="expected platforms of cpu, cuda, rocm, tpu"):
            stablehlo.make_program(classifier, platforms=platforms)


def test_a_program_that_differs_leaves_nothing(classifier, tmp_path):
    program = stablehlo.make_program(classifier, platforms=["cpu"])
    off = dataclasses.replace(program, reference=lambda *x: program.reference(*x) * 1.00001)
    with pytest.raises(ValueError, match="within 1e-06, found a relative difference of"):
        stablehlo.write_program(off, classifier, tmp_path / "off")
    lost = dataclasses.replace(program, reference=lambda *x: program.reference(*x) * np.nan)
    with pytest.raises(ValueError, match="the model's own outputs are not finite"):
        stablehlo.write_program(lost, classifier, tmp_path / "lost")
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_checked_where_it_can_run(classifier, tmp_path):
    program = stablehlo.make_program(classifier, platforms=["tpu"], batch=1)
    with pytest.raises(ValueError, match="the platform of this machine, cpu, .* found tpu"):
        stablehlo.write_program(program, classifier, tmp_path / "tpu")
    assert list(tmp_path.iterdir()) == []
