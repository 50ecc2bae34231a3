"""What every model of the family answers about itself."""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np

# Scales, biases and tables of positions do not decay, matrices do, whatever their rank.
_DECAYED = re.compile(r"kernel|embedding")
_NOT_DECAYED = re.compile(r"bias|scale|gamma|cls_token|(\w+_)?pos_embed(_spatial|_temporal|_cls)?")


class Tower(nn.Module):
    """Base of all models, built as `module_cls(config)`; variables aside, all follows from config.

    Attributes:
      config: the architecture's frozen config dataclass.
    """

    config: Any

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the positional inputs of a call."""
        raise NotImplementedError

    def flops(self, num_kept: int | None = None) -> dict[str, int]:
        """FLOPs of the forward pass on one example, by part of the model.

        A multiply-add counts as two. Only matrix products count, exactly; norms, softmax, GELUs and
        position tables are left out, as is usual; so is what remat computes again.

        Args:
          num_kept: tokens that the encoder keeps, the class token included; all by default.
        """
        raise NotImplementedError

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies to a parameter.

        Args:
          path: its names below `params`, joined by "/".

        Raises:
          ValueError: there is no rule for its name.
        """
        name = path.rsplit("/", 1)[-1]
        if not (_DECAYED.fullmatch(name) or _NOT_DECAYED.fullmatch(name)):
            raise ValueError(
                f"expected a parameter name with a weight-decay rule, found {path}; give"
                f" {type(self).__name__} an `is_decayed` that knows it"
            )
        return _DECAYED.fullmatch(name) is not None

    def layer_of(self, path: str) -> int | np.ndarray:
        """The layer that a parameter belongs to, for learning rates that decay with depth.

        Args:
          path: its names below `params`, joined by "/".

        Returns:
          0 for the input (what comes before the first block), i + 1 for block i (a vector over the
          leading axis of stacked parameters), `depth` + 1 for all else.

        Raises:
          ValueError: the model has no such order of layers.
        """
        raise ValueError(
            f"expected a model with layers for layer decay, found {type(self).__name__}; leave"
            " `layer_decay` at 1"
        )


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A kind of model: its config dataclass and its module, built as `module_cls(config)`."""

    config_cls: type
    module_cls: type[Tower]


def abstract_variables(module: nn.Module, *, boxed: bool = False) -> dict[str, Any]:
    """Shapes and dtypes of a model's variables; nothing is allocated.

    Args:
      module: one of the modules of `ARCHITECTURES`.
      boxed: keep the logical axis names (`flax.linen.LogicallyPartitioned`) around the leaves.

    Returns:
      `{"params": ..., ["batch_stats": ...]}` with `jax.ShapeDtypeStruct` leaves.
    """
    # The single example need not fit the current mesh.
    with nn.logical_axis_rules(()):
        variables = jax.eval_shape(module.init, jax.random.key(0), *module.example_inputs())
    return variables if boxed else nn.unbox(variables)


def block_flops(tokens: int, width: int, mlp_dim: int) -> int:
    """FLOPs of one layer of self-attention over `tokens` and a two-layer MLP."""
    projections = 2 * tokens * width * (3 * width + width)
    attention = 2 * 2 * tokens * tokens * width
    return projections + attention + 2 * 2 * tokens * width * mlp_dim


def gradient_flops(forward: int) -> int:
    """FLOPs of a forward pass with its gradients: the backward pass has two products for each."""
    return 3 * forward
