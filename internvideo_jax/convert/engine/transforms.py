"""Named ways in which PyTorch tensors become a parameter, each with its inverse.

Every transform is linear and only moves numbers (the one that joins q and v biases also adds
zeros), so the same functions carry gradients, and a round trip is exact to the bit. Results are
views where numpy can make them: whoever stores one also copies it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A bijection between the tensors of a checkpoint and one parameter (or one layer of it).

    Attributes:
      name: how reports call it.
      source_shapes: shapes of the PyTorch tensors that make a parameter of a given shape.
      forward: the parameter of a given shape, from those tensors in order.
      inverse: those tensors, from the parameter.
    """

    name: str
    source_shapes: Callable[[Shape], tuple[Shape, ...]]
    forward: Callable[[Sequence[np.ndarray], Shape], np.ndarray]
    inverse: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def _linear(name: str, inputs: int) -> Transform:
    """Weight `[out, in]` to a kernel whose first `inputs` axes make up `in`, the others `out`."""

    def source_shapes(shape: Shape) -> tuple[Shape, ...]:
        return ((math.prod(shape[inputs:]), math.prod(shape[:inputs])),)

    def inverse(kernel: np.ndarray) -> tuple[np.ndarray, ...]:
        return (kernel.reshape(math.prod(kernel.shape[:inputs]), -1).T,)

    return Transform(name, source_shapes, lambda arrays, s: arrays[0].T.reshape(s), inverse)


def _join_qv(arrays: Sequence[np.ndarray], shape: Shape) -> np.ndarray:
    q, v = arrays
    return np.stack([q, np.zeros_like(q), v]).reshape(shape)


IDENTITY = Transform("identity", lambda s: (s,), lambda a, s: a[0], lambda x: (x,))

SPLIT_HEADS = Transform(
    "vector split into heads",
    lambda s: ((math.prod(s),),),
    lambda a, s: a[0].reshape(s),
    lambda x: (x.reshape(-1),),
)

LINEAR = _linear("linear weight", 1)

LINEAR_FROM_HEADS = _linear("linear weight over heads", 2)

CONV3D = Transform(
    "3-D convolution, channels last",
    lambda s: ((s[4], s[3], s[0], s[1], s[2]),),
    lambda a, s: a[0].transpose(2, 3, 4, 1, 0),
    lambda x: (x.transpose(4, 3, 0, 1, 2),),
)

# VideoMAE stores no bias for the keys: under softmax it would change nothing.
JOIN_QV_BIAS = Transform(
    "q and v biases joined, k bias zero",
    lambda s: ((math.prod(s[1:]),),) * 2,
    _join_qv,
    lambda x: (x[0].reshape(-1), x[2].reshape(-1)),
)
