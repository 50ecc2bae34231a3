"""The benchmarks of retrieval."""

import pytest

from internvideo_jax.config import from_dict
from internvideo_jax.configs.demo import common, stage2
from internvideo_jax.configs.demo import retrieval as demo
from internvideo_jax.configs.eval import retrieval
from internvideo_jax.data.synthetic.world import find_world
from internvideo_jax.evaluation.retrieval.options import RetrievalData, RetrievalOptions


@pytest.mark.parametrize(
    ("name", "num_frames", "max_text_length", "paragraphs", "max_seconds"),
    [
        ("msrvtt", 4, 32, False, None),
        ("didemo", 8, 64, True, 30),
        ("activitynet", 8, 150, True, None),
        ("lsmdc", 8, 32, False, None),
        ("msvd", 4, 64, False, None),
        ("vatex", 4, 32, False, None),
        ("custom", None, None, False, None),
    ],
)
def test_benchmarks_are_measured_as_upstream_does(
    name, num_frames, max_text_length, paragraphs, max_seconds
):
    config = retrieval.get_config(name)
    options = from_dict(RetrievalOptions, config.retrieval.to_dict())
    data = from_dict(RetrievalData, config.eval_data.to_dict())
    assert (options.max_text_length, options.paragraphs) == (max_text_length, paragraphs)
    assert (data.num_frames, data.max_seconds) == (num_frames, max_seconds)
    assert options.rerank is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("msrvt", "did you mean 'msrvtt'"),
        ("msrvtd", r"\(recipes: msrvtt, .*custom, demo\)"),
        ("demo,cros", "did you mean 'crossed'"),
        ("demo,clips_1,small", "recipes: full, fast"),
        ("demo,clips_1,full,more", "recipes: full, fast"),
        ("msrvtt,clips_1", "found 'msrvtt,clips_1'"),
    ],
)
def test_an_unknown_benchmark_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        retrieval.get_config(name)


def test_measurements_of_the_demo_know_its_clips(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERNVIDEO_HOME", str(tmp_path))
    for name, measurement in demo.MEASUREMENTS.items():
        config = retrieval.get_config(f"demo,{name},fast")
        options = from_dict(RetrievalOptions, config.retrieval.to_dict())
        data = from_dict(RetrievalData, config.eval_data.to_dict())
        world = find_world(common.SIZES["fast"].world, tmp_path / "demo")
        assert data.annotations == str(world.retrieval_list(measurement.clips))
        heads = stage2.get_config("fast").stage.model.match_heads
        assert (options.medium in heads) == (options.rerank > 0)
        assert options.shared_captions == (options.medium == "audio")
    full = retrieval.get_config("demo").eval_data.annotations
    assert full == retrieval.get_config("demo,clips_1,full").eval_data.annotations
    assert full.startswith(str(find_world(common.SIZES["full"].world, tmp_path / "demo").directory))
