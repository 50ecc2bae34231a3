"""From folders of clips to a model that names their classes, by four options."""

import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.synthetic import scenes
from internvideo_jax.launch import train
from internvideo_jax.training.metrics import read_metrics

CLASSES = ("growing", "left", "up")
# A smaller encoder than the recipe's, for less time.
SMALL = (
    "--config.stage.model.encoder.width=64",
    "--config.stage.model.encoder.depth=2",
    "--config.stage.model.encoder.mlp_dim=128",
    "--config.train.optimizer.lr=1e-3",
    "--config.train.epochs=25",
    "--config.train.eval_epochs=5",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each of three motions, of shapes, colours and places that say nothing of it."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for number in range(26):
            scene = scenes.Scene(
                rng.choice(["circle", "square", "ring", "cross"]),
                rng.choice(["red", "green", "blue", "yellow"]),
                name,
                radius=rng.uniform(0.13, 0.25),
                center=tuple(rng.uniform(0.36, 0.64, 2)),
            )
            frames = scenes.render(scene, 16, size=48)
            scenes.write_video(folder / name / f"{number}.mp4", frames, 25)
    return folder


@pytest.mark.slow
def test_own_classes_are_learnt_and_a_run_with_others_is_refused(folders, tmp_path, capsys):
    options = [
        "--config=configs/stage1/finetune.py:tiny,custom",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.annotations={folders}",
        "--config.data.validation_share=0.2",
    ]
    assert train.main([*options, *SMALL]) == 0
    said = capsys.readouterr().err
    assert "held out to evaluate on: 15 of 78 clips (growing 5 of 26, " in said
    measured = [m for m in read_metrics(tmp_path / "run/metrics.jsonl") if "eval/top1" in m]
    # Every fifth of 25 passes over the clips; chance is a third.
    assert len(measured) == 5
    assert measured[-1]["eval/top1"] > 100 / 3 + 40
    assert saved_model.load(tmp_path / "run/model").classes == CLASSES
    (folders / "up").rename(folders / "rising")
    assert train.main([*options, *SMALL]) == 2
    assert "stage.classes: " in capsys.readouterr().err
