"""The fast demo as a process: its report, and what it does when it is stopped."""

import dataclasses
import json
import random
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from internvideo_jax import saved_model
from internvideo_jax.configs.demo import common
from internvideo_jax.configs.demo.retrieval import MEASUREMENTS
from internvideo_jax.data.decode.video import VideoReader
from internvideo_jax.launch import evaluate
from internvideo_jax.launch.demonstration import retrieval
from internvideo_jax.training.checkpoints import checksums
from tests.fast_demo import finish, start

pytestmark = pytest.mark.slow

RUNS = {"image_teacher": 4, "video_teacher": 4, "stage_1": 6, "control": 6, "stage_2": 6}


def folder(home):
    (found,) = (home / "demo/training").iterdir()
    return found


def results(home):
    """Checksums of all models, the probes' accuracies, and what retrieval found."""
    models = {}
    for name in RUNS:
        # Stage 2 starts from stage 1.
        for kind in ("model",) if name == "stage_2" else ("untrained", "model"):
            model = saved_model.load(epath.Path(folder(home) / name / kind))
            models[name, kind] = checksums(model.variables)
    report = json.loads((home / "demo/report.json").read_text())
    return models, report["probes"], report["retrievals"]


def wait_for_checkpoint(process, home, name, step):
    """Returns once a run has a checkpoint of a step or a later one, or the process has ended."""
    while process.poll() is None:
        found = home.glob(f"demo/training/*/{name}/checkpoints/*")
        if any(path.name.isdigit() and int(path.name) >= step for path in found):
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def unbroken(fast_demo):
    return results(fast_demo.home), fast_demo.output, fast_demo.home


def test_the_demo_runs_to_its_report(unbroken):
    (models, probes, retrievals), output, home = unbroken
    assert "Demo finished" in output
    pictures = ("losses", "masks", "confusion", "world", "retrieval", "voices")
    for name in ("report.html", *(f"{picture}.png" for picture in pictures)):
        assert (home / "demo" / name).stat().st_size > 1000
    assert [row["encoder"] for row in probes][:2] == [
        "stage 1",
        "untrained, where stage 1 started",
    ]
    assert models["stage_1", "model"] != models["stage_1", "untrained"]
    assert [found["name"] for found in retrievals] == list(MEASUREMENTS)
    assert [found["clips"] for found in retrievals] == [4, 4, 8, 4, 4, 6, 6]
    kinds = {found["name"]: set(found["recalls"]) for found in retrievals}
    parts = json.loads((home / "demo/report.json").read_text())["parts"]
    assert {p["name"] for p in parts if p["flops"] > 0} == {n.replace("_", " ") for n in RUNS}
    assert kinds["voices_seen"] == {"similarity", "dsl", "rerank"}
    assert kinds["voices_heard"] == kinds["sounds"] == {"similarity", "dsl"}


def test_the_saved_model_alone_gives_the_numbers_again(unbroken, tmp_path, monkeypatch):
    (_, _, retrievals), output, home = unbroken
    monkeypatch.setenv("INTERNVIDEO_HOME", str(home))
    (command,) = (line for line in output.splitlines() if "--output=found" in line)
    argv = shlex.split(command.removeprefix("$ internvideo-jax evaluate "))
    assert evaluate.main([*argv[:-1], f"--output={tmp_path / 'found'}"]) == 0
    again = retrieval.read_result("clips_1", tmp_path / "found")
    assert dataclasses.asdict(again) == retrievals[0]
    assert (tmp_path / "found/contact_sheet.png").stat().st_size > 1000


def test_the_readme_searches_with_its_model(unbroken, tmp_path, monkeypatch):
    _, _, home = unbroken
    monkeypatch.setenv("INTERNVIDEO_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    clip = min((home / "demo").glob("world-*/test/*.mp4"))
    shutil.copy(clip, "a.mp4")
    with VideoReader(clip) as reader:
        frames = reader.read(range(reader.num_frames))
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)[1]
    names = {"frames_array": frames}
    exec(snippet, names)
    assert names["video"].shape == (2, common.SIZES["fast"].stage2.embed_dim)
    np.testing.assert_array_equal(*names["video"])
    for rows in (names["video"], names["text"]):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.abs(names["scores"]).max() <= 1 + 1e-6


def test_the_saved_model_names_motions_and_looks(unbroken, tmp_path, monkeypatch):
    _, _, home = unbroken
    monkeypatch.setenv("INTERNVIDEO_HOME", str(home))
    for name, count in {"motions": 8, "looks": 48}.items():
        assert evaluate.main([
            f"--model={folder(home) / 'stage_2' / 'model'}",
            f"--config=configs/eval/zero_shot.py:demo,{name},fast",
            f"--output={tmp_path / name}",
        ]) == 0  # fmt: skip
        card = json.loads((tmp_path / name / "result.json").read_text())
        assert (card["clips"], len(card["classes"])) == (8, count)
        # The vocabulary has all words of the texts.
        assert card["texts_cut"] == 0
        assert 0 <= card["metrics"]["top1"] <= card["metrics"]["top5"] <= 100


def test_killed_at_random_steps_it_ends_bit_identical(unbroken, fast_demo, tmp_path):
    rng = random.Random(0)
    for name, steps in RUNS.items():
        process = start(tmp_path, fast_demo.programs)
        wait_for_checkpoint(process, tmp_path, name, rng.randrange(1, steps))
        time.sleep(0.1 * rng.random())
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, output
    output = finish(tmp_path, fast_demo.programs)
    # Runs that were complete are not trained again.
    assert output.count("nothing is left to train") == len(RUNS) - 1
    assert results(tmp_path) == unbroken[0]


def test_a_finished_demo_starts_anew_but_keeps_its_clips(unbroken, fast_demo, tmp_path):
    found, _, home = unbroken
    # Others look at that one.
    shutil.copytree(home / "demo", tmp_path / "demo")
    home = tmp_path
    (clip,) = (home / "demo").glob("world-*/train/00000.mp4")
    model = folder(home) / "stage_1/model"
    times = clip.stat().st_mtime_ns, model.stat().st_mtime_ns
    finish(home, fast_demo.programs)
    assert results(home) == found
    assert clip.stat().st_mtime_ns == times[0]
    assert model.stat().st_mtime_ns > times[1]
