import dataclasses

import jax
import numpy as np
import pytest

from internvideo_jax import models, saved_model
from internvideo_jax.launch import average
from internvideo_jax.preprocessing import Preprocessing, VideoPreprocessing
from internvideo_jax.training.averaging import average_models
from tests.small_models import CONFIGS, noise_like

CONFIG = CONFIGS["video_classifier"]


def save(path, seed, config=CONFIG, size=8):
    variables = noise_like(models.abstract_variables(models.build(config)), seed)
    preprocessing = Preprocessing(VideoPreprocessing(image_size=size, num_frames=2))
    names = {type(c): name for name, c in CONFIGS.items()}
    saved_model.save(path, names[type(config)], config, preprocessing, variables)
    return variables


def test_weights_are_means(tmp_path, capsys):
    made = [save(tmp_path / str(seed), seed) for seed in range(3)]
    names = [str(tmp_path / str(seed)) for seed in range(3)]
    assert average.main([*names, f"--output={tmp_path / 'mean'}"]) == 0
    assert "the mean of 3 models" in capsys.readouterr().out
    found = saved_model.load(tmp_path / "mean")
    assert (found.config, found.metadata["average_of"]) == (CONFIG, names)
    jax.tree.map(
        lambda x, *all_: np.testing.assert_allclose(x, np.mean(all_, axis=0), rtol=1e-5, atol=1e-7),
        found.variables,
        *made,
    )


def test_a_model_before_and_after_fine_tuning_have_shares(tmp_path, capsys):
    made = [save(tmp_path / str(seed), seed) for seed in range(2)]
    names = [str(tmp_path / str(seed)) for seed in range(2)]
    output = tmp_path / "mean"
    assert average.main([*names, f"--output={output}", "--shares=1,3"]) == 0
    found = saved_model.load(output)
    assert found.metadata["shares"] == [0.25, 0.75]
    jax.tree.map(
        lambda x, a, b: np.testing.assert_allclose(x, 0.25 * a + 0.75 * b, rtol=1e-5, atol=1e-7),
        found.variables,
        *made,
    )
    for shares in ("1", "1,-1", "0,0", "1,nan"):
        with pytest.raises(ValueError, match="a share of each of the 2 models"):
            average_models(names, tmp_path / "other", [float(share) for share in shares.split(",")])
    with pytest.raises(SystemExit):
        average.main([*names, f"--output={tmp_path / 'other'}", "--shares=half"])
    assert "numbers with commas between them, found 'half'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_models_that_differ_are_refused_and_nothing_is_left(tmp_path):
    save(tmp_path / "a", 0)
    save(tmp_path / "b", 0, size=16)
    save(tmp_path / "c", 0, dataclasses.replace(CONFIG, num_classes=6))
    for other, found in (("b", "another preprocessing in"), ("c", "another config in")):
        with pytest.raises(ValueError, match=found):
            average_models([str(tmp_path / "a"), str(tmp_path / other)], tmp_path / "mean")
    with pytest.raises(ValueError, match="at least two models to average, found 1"):
        average_models([str(tmp_path / "a")], tmp_path / "mean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_what_is_dropped_in_training_makes_no_difference(tmp_path):
    dropping = dataclasses.replace(CONFIG.encoder, drop_path_rate=0.3)
    after = dataclasses.replace(CONFIG, encoder=dropping)
    names = [str(tmp_path / name) for name in ("before", "after")]
    for seed, (name, config) in enumerate(zip(names, (CONFIG, after), strict=True)):
        save(name, seed, config)
    average_models(names, tmp_path / "mean")
    assert saved_model.load(tmp_path / "mean").config == CONFIG
