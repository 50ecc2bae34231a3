"""The one device mesh of the library: `data` x `fsdp` x `tensor` x `context`."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor", "context")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, which takes the devices that are left.

    Attributes:
      data: copies of the weights; the batch is split over it. Spans slices in a multi-slice run.
      fsdp: shards of every weight; the batch is split over it too. Use 8 or 16 of a larger slice:
        over a whole slice the TPU compiler turns reduce-scatters into full-size all-reduces. None
        does so (`default_fsdp`), or takes what a given `data` leaves.
      tensor: shards of attention heads and MLP hidden units.
      context: shards of the token axis.
    """

    data: int = -1
    fsdp: int | None = None
    tensor: int = 1
    context: int = 1

    def shape(self, num_devices: int) -> tuple[int, int, int, int]:
        """Axis sizes, in the order of `AXES`, for so many devices.

        Raises:
          ValueError: a size is neither positive nor -1, more than one is -1, or their product is
            not the number of devices.
        """
        fsdp = self.fsdp
        if fsdp is None:
            others = max(self.tensor, 1) * max(self.context, 1)
            fsdp = default_fsdp(max(num_devices // others, 1)) if self.data == -1 else -1
        sizes = [self.data, fsdp, self.tensor, self.context]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(
                "expected mesh axes with positive sizes, at most one of them -1 (the rest of the"
                f" devices), found {self._describe(sizes)}; correct the mesh config"
            )
        known = math.prod(size for size in sizes if size != -1)
        if -1 in sizes and num_devices % known == 0:
            sizes[sizes.index(-1)] = num_devices // known
        if math.prod(sizes) != num_devices:
            wanted = f"a multiple of {known}" if -1 in sizes else str(known)
            raise ValueError(
                f"the mesh {self._describe(sizes)} needs {wanted} devices, found {num_devices};"
                " change the axis sizes so that their product is the number of devices"
            )
        data, fsdp, tensor, context = sizes
        return data, fsdp, tensor, context

    @staticmethod
    def _describe(sizes: Sequence[int]) -> str:
        return " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))


def default_fsdp(num_devices: int) -> int:
    """Shards per weight if nothing else is asked: 16, 8, 4 or 2 of a larger slice, else all."""
    fits = (size for size in (16, 8, 4, 2) if num_devices > size and num_devices % size == 0)
    return next(fits, num_devices)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices so that mesh neighbours are network neighbours.

    Activate the result with `jax.set_mesh(mesh)`. Its axes are of type `Auto`: the compiler
    propagates shardings from the parameters and the models' logical constraints.

    Args:
      config: axis sizes.
      devices: the devices to use; all devices of the default backend if None.

    Returns:
      Mesh with the axes `AXES`.

    Raises:
      ValueError: the sizes do not fit the number of devices or of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = config.shape(len(devices))
    grid = _arrange(shape, devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    slices = 1
    if devices[0].platform == "tpu":
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise ValueError(
            f"expected a `data` axis that the {slices} slices divide, found data={shape[0]};"
            " only `data` may cross the slow network between slices"
        )
    within = (shape[0] // slices, *shape[1:])
    across = (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )
