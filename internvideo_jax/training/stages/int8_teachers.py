"""Frozen teachers whose blocks multiply int8 values, by what some clips have shown of them.

A calibration, the largest inputs of each linear layer, lies beside the arrays of a teacher's saved
model; `training.stages.calibration` makes it. With it a teacher is quantised when it is loaded
(`nn.smoothing`), so that its weights take a byte each, in memory and when they are gathered. The
patch embedding, attention and the pooler stay as they are.
"""

import dataclasses
import io
import logging
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath
from flax import traverse_util
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax.nn.smoothing import PRODUCTS, quantize_blocks, unit_inputs
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.parallel.sharding import placed, variable_shardings

log = logging.getLogger(__name__)

PyTree = Any

# In the folder of a saved model.
FILE = "int8.npz"
_BLOCKS = "params/encoder/blocks/"
# Kinds of devices that multiply int8 values at twice the rate of bfloat16, as JAX calls them.
_FAST = {"TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e"}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a teacher's linear layers have been given.

    Attributes:
      products: those of `nn.smoothing.PRODUCTS` that multiply int8 values, in all blocks; others
        stay in the compute dtype.
      largest: the largest magnitude of each input by product, float32 `[layers, *inputs]`.
    """

    products: tuple[str, ...]
    largest: Mapping[str, np.ndarray]


def write_calibration(path: str, calibration: Calibration) -> epath.Path:
    """Writes a calibration into the folder of a saved model; returns its file."""
    content, file = io.BytesIO(), epath.Path(path).expanduser() / FILE
    arrays: dict[str, Any] = {f"largest/{n}": x for n, x in calibration.largest.items()}
    np.savez(content, products=np.array(calibration.products, str), **arrays)
    file.write_bytes(content.getvalue())
    return file


def read_calibration(path: str, name: str) -> Calibration:
    """The calibration of a saved model.

    Args:
      path: its folder.
      name: of the teacher, a field of the stage's config.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    file = epath.Path(path).expanduser() / FILE
    if not file.exists():
        raise ValueError(
            f"expected {FILE} in {path}, which a teacher with quantization int8 needs, found none;"
            " measure the teacher on some clips with `internvideo-jax calibrate`, or set"
            f" --config.stage.{name}.quantization=none"
        )
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            largest = {product: arrays[f"largest/{product}"] for product in PRODUCTS}
            return Calibration(tuple(map(str, arrays["products"])), largest)
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{file}: expected what `internvideo-jax calibrate` writes, found something else"
            f" ({error}); remove it and run that command again"
        ) from None


def int8_products(path: str | None, name: str) -> tuple[str, ...]:
    """The layers of a teacher that multiply int8 values; all where it is not calibrated yet."""
    if path is None or not (epath.Path(path).expanduser() / FILE).exists():
        return PRODUCTS
    return read_calibration(path, name).products


def quantized_shapes(boxed: PyTree, products: Iterable[str]) -> PyTree:
    """A teacher's variables, boxed, with some layers in int8 whose values mean nothing."""
    return _quantized(boxed, unit_inputs(_of_blocks(_flat(boxed))), tuple(products))


def quantize(
    variables: PyTree, boxes: PyTree, calibration: Calibration, mesh: Mesh, rules: Rules
) -> PyTree:
    """A teacher's variables with the layers that its calibration names in int8.

    Args:
      variables: unboxed, on the mesh.
      boxes: the same boxed, or their shapes.
      calibration: of this teacher.
      mesh: where they lie.
      rules: logical to mesh axes.

    Raises:
      ValueError: the calibration is of a teacher of another size.
    """
    wanted = jax.eval_shape(lambda x: unit_inputs(_of_blocks(_flat(x))), boxes)
    wrong = [
        f"{product}: expected {wanted[product].shape}, found {x.shape}"
        for product, x in calibration.largest.items()
        if x.shape != wanted[product].shape
    ]
    if wrong:
        raise ValueError(
            f"{FILE} is of a teacher of another size: {'; '.join(wrong)}; run `internvideo-jax"
            " calibrate` again"
        )

    def run(variables: PyTree, largest: PyTree) -> PyTree:
        boxed = meta.replace_boxed(boxes, variables)
        return _quantized(boxed, largest, calibration.products)

    whole = NamedSharding(mesh, PartitionSpec())
    inputs = variables, {n: placed(x, whole) for n, x in calibration.largest.items()}
    shardings = variable_shardings(jax.eval_shape(run, *inputs), mesh, rules)
    return jax.jit(lambda *inputs: nn.unbox(run(*inputs)), out_shardings=shardings)(*inputs)


def check_devices(devices: Iterable[Any], name: str) -> None:
    """Checks that devices gain by products of int8 values; warns of a CPU, where trials may run.

    Args:
      devices: of the mesh.
      name: of the teacher, a field of the stage's config.

    Raises:
      ValueError: they do not, or nobody knows.
    """
    device = next(iter(devices))
    if device.platform == "cpu":
        log.warning("%s: products of int8 values are slow on a CPU, which is for trials", name)
    elif device.device_kind not in _FAST:
        is_v4 = device.device_kind == "TPU v4"
        why = "multiply int8 no faster than bfloat16" if is_v4 else "have not been measured"
        raise ValueError(
            f"expected TPUs v5e or v6e for a teacher with quantization int8, found"
            f" {device.device_kind}, which {why}; set --config.stage.{name}.quantization=none"
        )


def _quantized(boxed: PyTree, largest: Mapping[str, Any], products: tuple[str, ...]) -> PyTree:
    flat = _flat(boxed)
    blocks = _of_blocks(flat)
    rest = {path: leaf for path, leaf in flat.items() if not path.startswith(_BLOCKS)}
    made = quantize_blocks(blocks, largest, products)
    rest |= {f"{_BLOCKS}{path}": leaf for path, leaf in made.items()}
    return traverse_util.unflatten_dict(rest, sep="/")


def _flat(boxed: PyTree) -> dict[str, Any]:
    return dict(traverse_util.flatten_dict(boxed, sep="/"))


def _of_blocks(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the blocks, by the paths below these."""
    return {p.removeprefix(_BLOCKS): x for p, x in flat.items() if p.startswith(_BLOCKS)}
