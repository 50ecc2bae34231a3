"""Checks that need eight devices; `test_eight_devices.py` runs them in a process that has them."""

import dataclasses

import jax
import numpy as np
import pytest

import internvideo_jax as ivj
from internvideo_jax.evaluation import runner
from internvideo_jax.evaluation.retrieval import rerank
from internvideo_jax.evaluation.retrieval.evaluator import retrieval_evaluator
from internvideo_jax.evaluation.retrieval.options import RetrievalOptions
from internvideo_jax.parallel.mesh import MeshConfig, make_mesh
from internvideo_jax.saved_model import load
from tests.small_models import save_stage2

COLORS = ("red", "green", "blue", "cyan")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_stage2(tmp_path_factory.mktemp("stage2"))


def batches():
    """Eleven clips, two views of each, in batches that no mesh divides."""
    rng = np.random.default_rng(0)
    views = np.arange(22)
    video = rng.integers(0, 256, (22, 4, 32, 32, 3), np.uint8)
    captions = np.empty(22, object)
    captions[:] = [(f"{COLORS[v // 2 % 4]} {v // 2}",) for v in views]
    for part in np.array_split(views, 3):
        yield {
            "video": video[part],
            "captions": captions[part],
            "index": part // 2,
            "segment": part % 2,
            "crop": np.zeros(len(part), int),
            "valid": np.ones(len(part), bool),
            "error": np.full(len(part), ""),
        }


def measured(model_dir, mesh, share=None):
    """The evaluator and what it finds in a process's share of the batches, which may be all."""
    model = load(model_dir, mesh=mesh)
    evaluator = retrieval_evaluator(model, RetrievalOptions(rerank=4))
    rows = runner.collect(evaluator, model.variables, batches() if share is None else share)
    return evaluator, evaluator.complete(rows, model.variables)


@pytest.mark.parametrize("sizes", [{"data": 8, "fsdp": 1}, {"data": 4, "fsdp": 2}], ids=str)
def test_clips_and_pairs_are_shared_and_scores_stay_the_same(sizes, model_dir, monkeypatch):
    calls = []
    score = rerank._score

    def counting(variables, media, texts, rows, **options):
        calls.append((media.shape[0], media.sharding.shard_shape(media.shape)[0]))
        return score(variables, media, texts, rows, **options)

    _, alone = measured(model_dir, None)
    monkeypatch.setattr(rerank, "_score", counting)
    evaluator, shared = measured(model_dir, make_mesh(MeshConfig(**sizes)))
    # Eleven media in two rounds; each device has one of its own.
    assert calls == [(8, 1), (8, 1)]
    for kind, expected in alone.output.scores.items():
        for direction in ("of_texts", "of_media"):
            found = getattr(shared.output.scores[kind], direction)
            np.testing.assert_allclose(found, getattr(expected, direction), atol=2e-5)
    assert shared.output.num_pairs == alone.output.num_pairs > 0
    assert evaluator.metrics(shared) == pytest.approx(evaluator.metrics(alone))


def test_a_loaded_model_is_on_all_devices_and_gives_the_same(model_dir):
    model = ivj.load(model_dir)
    (leaf, *_) = jax.tree.leaves(model.variables)
    assert len(leaf.sharding.device_set) == 8
    assert leaf.sharding.is_fully_replicated
    clips = np.random.default_rng(0).integers(0, 256, (11, 5, 40, 40, 3), np.uint8)
    texts = [f"a {color} ring" for color in COLORS]
    alone = dataclasses.replace(model, variables=load(model_dir).variables)
    for found, expected in (
        (model.encode_video(clips, batch_size=5), alone.encode_video(clips)),
        (model.encode_text(texts), alone.encode_text(texts)),
        (model.rerank(clips, texts, batch_size=5), alone.rerank(clips, texts)),
    ):
        np.testing.assert_allclose(found, expected, atol=2e-5)
