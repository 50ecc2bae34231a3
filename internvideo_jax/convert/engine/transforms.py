"""Named ways in which PyTorch tensors become parameters, each with its inverse.

Those of a table's own rules are linear and only move numbers (the one that joins q and v biases
also adds zeros), so that the same functions carry gradients and a round trip is exact to the bit.
Those that compute (fold LoRA, normalise weights) serve other forms of a file, or int8. Results are
views where numpy can make them: whoever stores one also copies it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from internvideo_jax.nn import int8

Shape = tuple[int, ...]
# None stands for any size.
Pattern = tuple[int | None, ...]
Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
    """From the tensors of a checkpoint to one or several parameters (or one layer of them).

    Attributes:
      name: how reports call it.
      source_shapes: shapes of the PyTorch tensors that make parameters of given shapes.
      forward: the parameters of given shapes, from those tensors in order.
      inverse: those tensors, from the parameters; None if nothing gives them back.
      dtypes: dtypes of the parameters by name where they are not the tensors' own; None for those
        that are.
      computes: whether numbers change, so that the tensors may differ in dtype (the first one's
        counts) and do not come back to the bit.
    """

    name: str
    source_shapes: Callable[[Sequence[Shape]], tuple[Pattern, ...]]
    forward: Callable[[Arrays, Sequence[Shape]], Arrays]
    inverse: Callable[[Arrays], Arrays] | None
    dtypes: tuple[str | None, ...] | None = None
    computes: bool = False


def _move(
    name: str,
    source_shape: Callable[[Shape], Shape],
    forward: Callable[[np.ndarray, Shape], np.ndarray],
    inverse: Callable[[np.ndarray], np.ndarray],
) -> Transform:
    """One tensor that becomes one parameter."""
    return Transform(
        name,
        lambda shapes: (source_shape(shapes[0]),),
        lambda arrays, shapes: (forward(arrays[0], shapes[0]),),
        lambda arrays: (inverse(arrays[0]),),
    )


def _linear(name: str, inputs: int) -> Transform:
    """Weight `[out, in]` to a kernel whose first `inputs` axes make up `in`, the others `out`."""
    return _move(
        name,
        lambda s: (math.prod(s[inputs:]), math.prod(s[:inputs])),
        lambda weight, s: weight.T.reshape(s),
        lambda kernel: kernel.reshape(math.prod(kernel.shape[:inputs]), -1).T,
    )


IDENTITY = _move("identity", lambda s: s, lambda a, s: a, lambda x: x)

# A tensor whose first two axes have size one, which the parameter does without.
UNSQUEEZED = _move(
    "leading axes dropped",
    lambda s: (1, 1, *s),
    lambda a, s: a.reshape(s),
    lambda x: x[None, None],
)

# A table without the axis of its batch.
BATCHED = _move("leading axis added", lambda s: s[1:], lambda a, s: a.reshape(s), lambda x: x[0])

# A vector split into heads, or a tensor with axes of size one that parameters do without.
RESHAPE = _move(
    "reshaped", lambda s: (math.prod(s),), lambda a, s: a.reshape(s), lambda x: x.reshape(-1)
)

LINEAR = _linear("linear weight", 1)

LINEAR_FROM_HEADS = _linear("linear weight over heads", 2)

CONV2D = _move(
    "2-D convolution, channels last",
    lambda s: (s[3], s[2], s[0], s[1]),
    lambda a, s: a.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
)

CONV3D = _move(
    "3-D convolution, channels last",
    lambda s: (s[4], s[3], s[0], s[1], s[2]),
    lambda a, s: a.transpose(2, 3, 4, 1, 0),
    lambda x: x.transpose(4, 3, 0, 1, 2),
)

# The patch kernel of an image model in a model of clips.
CONV2D_TO_3D = _move(
    "2-D convolution given a time axis",
    lambda s: (s[4], s[3], s[1], s[2]),
    lambda a, s: a.transpose(2, 3, 1, 0)[None],
    lambda x: x[0].transpose(3, 2, 0, 1),
)


def _join_qv(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
    q, v = arrays
    return (np.stack([q, np.zeros_like(q), v]).reshape(shapes[0]),)


# VideoMAE stores no bias for the keys: under softmax it would change nothing.
JOIN_QV_BIAS = Transform(
    "q and v biases joined, k bias zero",
    lambda shapes: ((math.prod(shapes[0][1:]),),) * 2,
    _join_qv,
    lambda arrays: (arrays[0][0].reshape(-1), arrays[0][2].reshape(-1)),
)


def _split_weight(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
    (weight,) = arrays
    length = np.sqrt(np.square(weight.astype(np.float32)).sum((0, 1)))
    return weight.transpose(2, 1, 0), length.astype(weight.dtype)


# Parameters: direction `[k, in, out]` and length `[k]` of a 1-D convolution with weight norm over
# all but its last axis; tensors: length `[1, 1, k]` and direction `[out, in, k]`.
WEIGHT_NORM = Transform(
    "1-D convolution with weight norm",
    lambda shapes: ((1, 1, *shapes[1]), shapes[0][::-1]),
    lambda arrays, shapes: (arrays[1].transpose(2, 1, 0), arrays[0].reshape(shapes[1])),
    lambda arrays: (arrays[1].reshape(1, 1, -1), arrays[0].transpose(2, 1, 0)),
)

# The same parameters of a plain weight.
TO_WEIGHT_NORM = Transform(
    "1-D convolution given weight norm",
    lambda shapes: (shapes[0][::-1],),
    _split_weight,
    inverse=None,
    computes=True,
)


def fold_lora(base: Transform, alpha: float) -> Transform:
    """A linear weight and what LoRA learned: tensors weight, A `[r, in]`, B `[out, r]`.

    Args:
      base: what turns the weight into the kernel.
      alpha: LoRA's numerator; W + alpha / r * B A is computed in float32.
    """

    def source_shapes(shapes: Sequence[Shape]) -> tuple[Pattern, ...]:
        ((out, inputs),) = base.source_shapes(shapes)
        return (out, inputs), (None, inputs), (out, None)

    def forward(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        weight, a, b = (array.astype(np.float32) for array in arrays)
        folded = weight + alpha / len(a) * (b @ a)
        return base.forward((folded.astype(arrays[0].dtype),), shapes)

    return Transform("LoRA folded into it", source_shapes, forward, None, computes=True)


def quantize(base: Transform, input_dims: tuple[int, ...]) -> Transform:
    """A kernel as int8 values and float32 scales, in place of the kernel that `base` makes.

    Args:
      base: what makes the kernel.
      input_dims: the kernel's dimensions that a product sums over, counted from the end.
    """

    def forward(arrays: Arrays, shapes: Sequence[Shape]) -> Arrays:
        return int8.quantize(base.forward(arrays, shapes[:1])[0], input_dims)

    def inverse(arrays: Arrays) -> Arrays:
        assert base.inverse is not None
        values, scale = arrays
        return base.inverse((int8.dequantize(values, scale, input_dims),))

    return Transform(
        f"{base.name}, int8",
        lambda shapes: base.source_shapes(shapes[:1]),
        forward,
        inverse,
        dtypes=("int8", "float32"),
        computes=True,
    )
