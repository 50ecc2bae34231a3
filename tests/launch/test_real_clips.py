"""Real clips, of which one has sound, through training of stage 2 and retrieval."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from internvideo_jax import saved_model
from internvideo_jax.data.annotations.retrieval import read_retrieval
from internvideo_jax.data.pipeline import eval_batches
from internvideo_jax.data.sources.clips import RecordSource
from internvideo_jax.evaluation.retrieval.evaluator import view_config
from internvideo_jax.evaluation.retrieval.metrics import DIRECTIONS
from internvideo_jax.evaluation.retrieval.options import RetrievalData
from internvideo_jax.launch import evaluate, train
from internvideo_jax.training.metrics import read_metrics
from tests.small_models import write_words

SHARED = os.environ.get("INTERNVIDEO_SHARED")
CLIPS = Path(SHARED or ".") / "clips"

CONFIG = """
from internvideo_jax.configs.stage1.common import run_config
from internvideo_jax.configs.stage2.common import adamw, data
from internvideo_jax.preprocessing import AudioPreprocessing
from internvideo_jax.training.config import TrainConfig
from internvideo_jax.training.stages import CrossModalConfig
from internvideo_jax.training.stages.cross_modal_config import LossWeights
from tests.small_models import BEATS, clip_stage2


def get_config():
    weights = LossWeights(vtc=0.0, vtm=0.0, mlm=0.0, avtc=1.0, avtm=1.0)
    stage = CrossModalConfig(
        clip_stage2("audiovisual"), weights=weights, max_text_length=24, match_group=3
    )
    run = TrainConfig(
        batch_size=9, steps=2, warmup_steps=1, optimizer=adamw(1e-3), log_every=1
    )
    config = run_config("cross_modal", stage, run, data(stage), None)
    config.data.media = "audio_video"
    config.data.missing_audio = "zeros"
    config.data.audio.update(num_mels=BEATS.num_mels, num_frames=BEATS.num_frames)
    config.data.workers = 0
    config.data.cache_dir = None
    return config
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED, reason="real clips are found through INTERNVIDEO_SHARED"),
]


@pytest.fixture(scope="module")
def entries():
    return json.loads((CLIPS / "captions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def annotations(entries, tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "clips.jsonl"
    lines = [{"video": entry["video"], "caption": entry["caption"]} for entry in entries]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(annotations):
    """The folder of a run of two steps, each of which sees all of the clips."""
    folder = annotations.parent
    (folder / "config.py").write_text(CONFIG)
    assert train.main([
        f"--config={folder / 'config.py'}", f"--config.data.annotations={annotations}",
        f"--config.data.root={CLIPS}", f"--config.data.vocabulary={write_words(folder)}",
        f"--workdir={folder / 'run'}",
    ]) == 0  # fmt: skip
    return folder / "run"


def test_training_reads_all_of_them(run):
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert (line["replaced"], line["skipped"]) == (0, 0)
        assert all(np.isfinite(line[f"audio_video/{loss}"]) for loss in ("avtc", "avtm"))


def test_those_with_sound_are_heard_and_the_others_are_silent(run, annotations, entries):
    clips = read_retrieval(annotations, root=CLIPS)
    views = view_config(saved_model.load(run / "model"), RetrievalData(missing_audio="zeros"))
    source = RecordSource(clips.records)
    (batch,) = eval_batches(views, ("video", "audio"), batch_size=9, source=source)
    assert batch["valid"].all()
    assert batch["video"].shape == (9, 4, 32, 32, 3)
    assert batch["audio"].shape == (9, 21, 8)
    assert np.isfinite(batch["audio"]).all()
    is_heard = [entry["has_audio"] for entry in entries]
    assert sum(is_heard) == 1
    assert batch["has_audio"].tolist() == is_heard
    assert batch["audio"].any(axis=(1, 2)).tolist() == is_heard
    # Different pictures, which move.
    assert len({clip.tobytes() for clip in batch["video"]}) == 9
    assert (np.ptp(batch["video"], axis=1) > 0).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("medium", DIRECTIONS)
def test_texts_find_them_by_the_model_that_comes_out(medium, run, annotations, tmp_path):
    assert evaluate.main([
        f"--model={run / 'model'}", "--config=configs/eval/retrieval.py:custom",
        f"--config.eval_data.annotations={annotations}", f"--config.eval_data.root={CLIPS}",
        f"--config.retrieval.medium={medium}", "--config.eval_data.missing_audio=zeros",
        "--config.eval_data.segments=2", f"--output={tmp_path / 'result'}",
    ]) == 0  # fmt: skip
    card = json.loads((tmp_path / "result" / "result.json").read_text(encoding="utf-8"))
    assert (card["clips"], card["texts"], card["failed"]) == (9, 18, [])
    assert card["pairs_reranked"] == 9 * 18
    of_media, of_texts = DIRECTIONS[medium]
    for kind in ("similarity", "dsl", "rerank"):
        # Every text has all clips before it, every clip all texts.
        assert 1 <= card["metrics"][f"{kind}/{of_media}_mean_rank"] <= 9
        assert 1 <= card["metrics"][f"{kind}/{of_texts}_mean_rank"] <= 18
    assert all(np.isfinite(list(card["metrics"].values())))
