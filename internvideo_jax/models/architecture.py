"""What every model of the family answers about itself."""

import abc
import collections
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.extend.core
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from internvideo_jax.kernels.attention import prefer

# Scales, biases and tables of positions do not decay, matrices do, whatever their rank.
_DECAYED = re.compile(r"kernel|embedding")
_NOT_DECAYED = re.compile(r"bias|scale|gamma|cls_token|(\w+_)?pos_embed(_spatial|_temporal|_cls)?")

# As scopes name submodules; methods and einsums have scopes, too.
_SUBMODULE = re.compile(r"(?:vmap\()?([a-z]\w*)\)?(?:\.body)?")
# Names of the tower inside a composite.
_ENCODERS = ("encoder", "lm")


class Tower(nn.Module, abc.ABC):
    """Base of all models, built as `module_cls(config)`; variables aside, all follows from config.

    Attributes:
      config: the architecture's frozen config dataclass.
      input_parts: names of the parameters, or of the submodules, that come before the first block.
    """

    config: Any

    input_parts: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the positional inputs of a call."""

    def video_tower(self) -> tuple["Tower", tuple[str, ...]] | None:
        """The encoder of clips inside the model.

        Returns:
          A module of its own, whose config is a `video_vit.PatchedVideoConfig` and whose outputs
          have `tokens`, `pooled` and `hidden_states`, and the names on the way to its parameters
          among the model's; None where there is none.
        """
        return None

    def flops(self, *inputs: jax.ShapeDtypeStruct) -> dict[str, int]:
        """FLOPs of the forward pass, by submodule; an encoder's are listed in its place.

        They are counted as `product_flops` does it.

        Args:
          inputs: shapes of the positional inputs of a call; by default one of `example_inputs`.
        """
        # A call need not run all heads, `init` does.
        return product_flops(self.init, jax.random.key(0), *(inputs or self.example_inputs()))

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

    @property
    def last_layer(self) -> int:
        """Number of the layer behind the last block, see `layer_of`."""
        return int(self.config.depth) + 1

    def layer_of(self, path: str) -> int | np.ndarray:
        """The layer that a parameter belongs to, for learning rates that decay with depth.

        Args:
          path: its names below `params`, joined by "/".

        Returns:
          0 for the input (what comes before the first block), i + 1 for block i (a vector over the
          leading axis of stacked parameters), `depth` + 1 for all else.
        """
        part = path.partition("/")[0]
        if part == "blocks":
            return np.arange(1, self.config.depth + 1)
        return 0 if part in self.input_parts else self.last_layer


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
    # The single example need not fit the current mesh; tiled attention takes longer to trace.
    with prefer("reference"), nn.logical_axis_rules(()):
        variables = jax.eval_shape(module.init, jax.random.key(0), *module.example_inputs())
    return variables if boxed else nn.unbox(variables)


def product_flops(
    function: Callable[..., Any], *inputs: Any, unread: bool = True
) -> dict[str, int]:
    """FLOPs of a function that runs modules, by submodule.

    A multiply-add counts as two. Only matrix products and convolutions count, exactly; norms,
    softmax and GELUs are left out, as is usual; so is what remat computes again.

    Args:
      function: can be traced by JAX.
      inputs: arrays or shapes.
      unread: whether products count that its results do not need, which a compiler leaves out.
    """
    parts: collections.Counter[str] = collections.Counter()
    # Tiled attention also multiplies the padding of its last tile.
    with prefer("reference"), nn.logical_axis_rules(()):
        jaxpr = jax.make_jaxpr(function)(*inputs).jaxpr
    if not unread:
        jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    _count_products(jaxpr, "", 1, parts)
    return dict(parts)


def _count_products(jaxpr: Any, where: str, repeats: int, parts: dict[str, int]) -> None:
    """Adds the FLOPs of a jaxpr that runs `repeats` times inside the named scopes `where`."""
    for equation in jaxpr.eqns:
        scopes = f"{where}/{equation.source_info.name_stack}"
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            parts[_part_of(scopes)] += repeats * _product_flops(equation)
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            _count_products(inner, scopes, repeats * length, parts)


def _product_flops(equation: Any) -> int:
    left, right = (x.aval.shape for x in equation.invars)
    if equation.primitive.name == "dot_general":
        (contracting, _), _ = equation.params["dimension_numbers"]
        terms = math.prod(left[axis] for axis in contracting)
    else:
        # All of the kernel's dimensions but its outputs.
        terms = math.prod(right) // right[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * int(terms * equation.outvars[0].aval.size)


def _part_of(scopes: str) -> str:
    """The submodule in a path of scopes such as `/Model/encoder/vmap(decoder)/head`."""
    for name in scopes.split("/")[2:]:
        match = _SUBMODULE.fullmatch(name)
        if match and match[1] not in _ENCODERS:
            return match[1]
    return "rest"


def gradient_flops(forward: int) -> int:
    """FLOPs of a forward pass with its gradients: the backward pass has two products for each."""
    return 3 * forward
