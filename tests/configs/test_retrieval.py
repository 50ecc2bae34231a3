"""The benchmarks of retrieval."""

import pytest

from internvideo_jax.config import from_dict
from internvideo_jax.configs.eval import retrieval
from internvideo_jax.evaluation.retrieval_options import RetrievalData, RetrievalOptions


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
    assert options.rerank == 128


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match="did you mean 'msrvtt'"):
        retrieval.get_config("msrvt")
