"""Reranking of clips and texts beside a loop that encodes the clip anew for every pair.

JAX is imported late, in the processes that are timed.
"""

import dataclasses
import math
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from internvideo_jax.environment import usable_cpus
from internvideo_jax.launch.benchmarks.forwards import Forward, race
from internvideo_jax.launch.benchmarks.runner import OURS, Row

if TYPE_CHECKING:
    from internvideo_jax.models.stage2 import Stage2Config

NUM_CLIPS, NUM_TEXTS, TEXT_LENGTH = 2, 8, 32
PEER = "encoding for every pair"
# Of the largest score: sums of other orders round otherwise.
TOLERANCE = 1e-4
# The evaluation whose passes are counted.
_LARGE, _K = 1000, 128


def benchmark_rerank(*, repeats: int) -> Row:
    """Times scores of all pairs of some clips and texts, from pixels and ids.

    Args:
      repeats: timed runs of each side, after a first one that is not counted.

    Raises:
      ValueError: the two sides' scores disagree.
    """
    pairs = NUM_CLIPS * NUM_TEXTS
    row = race(
        "rerank/b14",
        (OURS, PEER),
        prepare,
        threads=usable_cpus(),
        repeats=repeats,
        details={"pairs": pairs},
        tolerance=TOLERANCE,
    )
    passes, wanted = passes_of_large_evaluation()
    more = {
        "pairs_per_second": pairs / median(s.seconds for s in row.samples),
        "peer_pairs_per_second": pairs / median(s.seconds for s in row.peer_samples),
        f"passes_of_{_LARGE}x{_LARGE}": passes,
        f"pairs_of_{_LARGE}x{_LARGE}": wanted,
    }
    return dataclasses.replace(row, details=row.details | more)


def model_config() -> "Stage2Config":
    """A stage-2 model with a B14 and a text tower of BERT-base's size."""
    from internvideo_jax.models import video_vit
    from internvideo_jax.models.bert import bert_large_fusion
    from internvideo_jax.models.stage1 import DistillStudentConfig
    from internvideo_jax.models.stage2 import Stage2Config

    encoder = dataclasses.replace(video_vit.internvideo2_b14(), num_frames=4)
    text = dataclasses.replace(
        bert_large_fusion(),
        width=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        fusion_layer=9,
        cross_width=encoder.width,
    )
    student = DistillStudentConfig(encoder, (encoder.depth - 1,), 768, 768, decoder="linear")
    return Stage2Config(student, text)


def prepare(side: str) -> Forward:
    """A side's run, which returns scores of all pairs `[V, T]`."""
    import jax

    from internvideo_jax.evaluation.retrieval.rerank import TextTokens, match_scores
    from internvideo_jax.models import abstract_variables
    from internvideo_jax.models.stage2 import Stage2

    config, rng = model_config(), np.random.default_rng(0)
    module: Any = Stage2(config)
    variables = jax.tree.map(
        lambda leaf: jax.device_put(0.02 * rng.standard_normal(leaf.shape, np.float32)),
        abstract_variables(module),
    )
    size, length = config.vision.encoder.image_size, min(TEXT_LENGTH, config.text.max_length)
    shape = (NUM_CLIPS, config.vision.encoder.num_frames, size, size, 3)
    clips = rng.standard_normal(shape, np.float32)
    ids = rng.integers(1, config.text.vocab_size, (NUM_TEXTS, length)).astype(np.int32)
    mask = np.ones_like(ids)
    encode_text = jax.jit(lambda v, ids, mask: module.apply(v, ids, mask, method="encode_text"))
    texts = TextTokens(np.asarray(encode_text(variables, ids, mask).tokens), mask)
    encode = jax.jit(lambda v, clips: module.apply(v, clips, method="encode_video").tokens)

    def ours() -> tuple[np.ndarray]:
        tokens = [np.asarray(encode(variables, clip[None]))[0] for clip in clips]
        everything = {v: np.arange(NUM_TEXTS) for v in range(NUM_CLIPS)}
        found = match_scores(
            module,
            variables,
            "video",
            tokens.__getitem__,
            texts,
            everything,
            texts_per_pass=NUM_TEXTS,
        )
        return (np.stack([scores for _, scores in sorted(found, key=lambda pair: pair[0])]),)

    @jax.jit
    def pair(variables: Any, clip: Any, tokens: Any, mask: Any) -> Any:
        media = module.apply(variables, clip, method="encode_video").tokens
        fused = module.apply(variables, tokens, mask, media, method="fuse")
        return module.apply(variables, fused, "video", method="match_logits")[0, 1]

    def peer() -> tuple[np.ndarray]:
        scores = [
            [
                pair(variables, clip[None], texts.tokens[[t]], texts.mask[[t]])
                for t in range(NUM_TEXTS)
            ]
            for clip in clips
        ]
        return (np.array(scores),)

    return ours if side == OURS else peer


def passes_of_large_evaluation() -> tuple[int, int]:
    """Rows that go through the fusion layers for 1000 clips and texts with 128 candidates each,
    gaps of incomplete programs included, and how many of them are pairs.

    The similarities are those of a middling model; 2 x 1000 x 128 would be the most.
    """
    from internvideo_jax.evaluation.retrieval.metrics import Scores
    from internvideo_jax.evaluation.retrieval.rerank import TEXTS_PER_PASS, best_candidates

    rng = np.random.default_rng(0)
    topics = rng.normal(size=(_LARGE, 16))
    media, texts = (topics + rng.normal(size=topics.shape) for _ in range(2))
    chosen = best_candidates(Scores.symmetric(media @ texts.T), _K)
    counts = [len(own) for own in chosen.texts_of().values()]
    programs = sum(math.ceil(count / TEXTS_PER_PASS) for count in counts)
    return programs * TEXTS_PER_PASS, sum(counts)
