"""The attention shapes of the models, for tests and benchmarks."""

from typing import NamedTuple


class Shape(NamedTuple):
    """Self-attention of `tokens` tokens in `heads` heads of `head_dim`."""

    tokens: int
    heads: int
    head_dim: int


# InternVideo2 sees frames of 224×224 in patches of 14: 256 tokens per frame and a class token.
SHAPES = {
    "s14_f8": Shape(2049, 6, 64),
    "b14_f8": Shape(2049, 12, 64),
    "l14_f8": Shape(2049, 16, 64),
    "1b_f8": Shape(2049, 16, 88),
    "6b_f8": Shape(2049, 25, 128),
    "1b_f16": Shape(4097, 16, 88),
    "6b_f16": Shape(4097, 25, 128),
    # The student keeps 52 of the 256 patches of each frame (mask ratio 0.8).
    "1b_student": Shape(417, 16, 88),
    "6b_student": Shape(417, 25, 128),
    # The image teacher sees one frame; the VideoMAE teacher 8 tubelets of 2 frames, no class token.
    "internvl": Shape(257, 25, 128),
    "videomae_g": Shape(2048, 16, 88),
}
