"""Frozen teachers: what a student aligns with, at the tokens that it keeps.

The teacher pass is the larger part of a step. Of the target layers' tokens only those rows that the
student keeps are normalised and stay; the full layers live in the compute dtype until the mask is
drawn. Features of one clip lie together, `[B, K, ...]`, as they would in a cache.

Source: `engines/engine_for_pretraining.py` and `engine_for_distill.py` of upstream
`InternVideo2/single_modality`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from internvideo_jax.models import abstract_variables, build
from internvideo_jax.models.teacher import TeacherConfig, VideoMAETeacherConfig
from internvideo_jax.nn.int8 import LARGEST, STATISTICS
from internvideo_jax.nn.smoothing import PRODUCTS
from internvideo_jax.parallel.rules import Rules
from internvideo_jax.parallel.sharding import abstract_params
from internvideo_jax.training.masking import MaskConfig
from internvideo_jax.training.optimizer import map_paths
from internvideo_jax.training.stages.clips import map_clips, normalized, resized
from internvideo_jax.training.stages.int8_teachers import (
    check_devices,
    int8_products,
    quantize,
    quantized_shapes,
    read_calibration,
)
from internvideo_jax.training.stages.weights import check_weights, load_weights

PyTree = Any

# Where a batch holds teachers' features that were computed beforehand.
CACHE = "targets/"


@dataclasses.dataclass(frozen=True)
class FrozenTeacher:
    """A frozen encoder whose tokens, and perhaps pooled feature, are targets.

    Attributes:
      name: of its variables; its saved model is the field `NAME_path` of the stage's config.
      config: of its model: a video ViT, which has class token, pooled feature and attention, or a
        VideoMAE, which has none of them.
      path: its saved model.
      stride: it sees every `stride`-th frame of a batch's clips.
      side: which of the student's decoders follow it: those called `clip_...` or `mae_...`.
    """

    name: str
    config: TeacherConfig | VideoMAETeacherConfig
    path: str | None
    stride: int
    side: Literal["clip", "mae"] = "clip"

    @property
    def is_vit(self) -> bool:
        """Whether it is a video ViT."""
        return isinstance(self.config, TeacherConfig)

    @property
    def is_int8(self) -> bool:
        """Whether its blocks multiply int8 values."""
        return isinstance(self.config, TeacherConfig) and self.config.quantization == "int8"

    @property
    def per_frame(self) -> bool:
        """Whether it encodes each frame by itself."""
        return isinstance(self.config, TeacherConfig) and self.config.per_frame

    @property
    def middle(self) -> str:
        """The term of the loss, and field of the student's output, of its layers."""
        return "clip_middle" if self.side == "clip" else "mae"

    @property
    def final(self) -> str | None:
        """That of its pooled feature; None where there is none."""
        return "clip_final" if self.side == "clip" else None

    def grid(self, num_frames: int) -> tuple[int, int, int]:
        """Its tokens of a clip of `num_frames` along (time, height, width), whatever its size."""
        encoder: Any = self.config.encoder
        seen = -(-num_frames // self.stride)
        steps = seen if self.per_frame else seen // encoder.tubelet_size
        return steps, *encoder.grid[1:]

    def encode(self, variables: PyTree, video: Float[Array, "B T H W 3"]) -> Any:
        """Its encoder's output on normalised clips, the target layers as hidden states."""
        return self._run(variables, video)

    def largest_inputs(
        self, variables: PyTree, video: Float[Array, "B T H W 3"]
    ) -> dict[str, Array]:
        """The largest magnitudes of the inputs of its blocks' linear layers on normalised clips.

        Returns:
          By `nn.smoothing.PRODUCTS`, float32 `[layers, *inputs]`.
        """
        _, found = self._run(variables, video, mutable=[STATISTICS])
        flat = traverse_util.flatten_dict(found[STATISTICS]["encoder"]["blocks"], sep="/")
        return {product: flat[f"{product}/{LARGEST}"] for product in PRODUCTS}

    def _run(self, variables: PyTree, video: Array, **options: Any) -> Any:
        frames = resized(video[:, :: self.stride], self.config.encoder.image_size)
        variables = {"params": variables["params"]}
        return build(self.config).apply(variables, frames, method="encode", **options)

    def rows(self, encoded: Any, kept: Int[Array, "B R"]) -> dict[str, Array]:
        """Targets at the kept rows.

        Args:
          encoded: what `encode` gave.
          kept: kept tokens, class token first.

        Returns:
          By term, of the layers `[B, K, R, D]` (`R - 1` without a class token) and of the pooled
          feature `[B, P]`, float32.
        """
        teacher: Any = build(self.config)
        middle, final = teacher.rows(encoded, kept)
        pooled = {} if self.final is None else {self.final: final}
        return {self.middle: middle.swapaxes(0, 1), **pooled}

    def features(
        self, variables: PyTree, video: Array, grid: tuple[int, int, int]
    ) -> dict[str, Array]:
        """Targets of normalised clips at all tokens of a student's grid, float32.

        Returns:
          By term, the layers `[B, K, 1 + N, D]` (`N` without a class token) and the pooled feature
          `[B, P]`; the `attention` `[B, T, N / T]` of an encoder of single frames, or `[B, 1, N]`.
        """
        encoded = self.encode(variables, video)
        tokens = jnp.arange(1 + math.prod(grid))
        features = self.rows(encoded, jnp.broadcast_to(tokens, (len(video), len(tokens))))
        if not self.is_vit:
            return features
        attention = encoded.pooler_attention[:, 1:]
        return features | {"attention": attention.reshape(len(video), -1, attention.shape[-1])}

    def cached_rows(self, batch: Mapping[str, Array], kept: Int[Array, "B R"]) -> dict[str, Array]:
        """As `rows`, from what a batch holds of `features`."""
        rows = (kept if self.is_vit else kept[:, 1:] - 1)[:, None, :, None]
        middle = batch[f"{CACHE}{self.middle}"].astype(jnp.float32)
        features = {self.middle: jnp.take_along_axis(middle, rows, axis=2)}
        if self.final is not None:
            features[self.final] = batch[f"{CACHE}{self.final}"].astype(jnp.float32)
        return features

    def flops(self, grid: tuple[int, int, int]) -> int:
        """FLOPs of its forward pass on a clip."""
        return (grid[0] if self.per_frame else 1) * sum(build(self.config).flops().values())

    def init(self, key: jax.Array) -> PyTree:
        """Boxed untrained variables, in int8 where that is asked for; for shapes and shardings."""
        variables = self.init_wide(key)
        if not self.is_int8:
            return variables
        return quantized_shapes(variables, int8_products(self.path, self.name))

    def init_wide(self, key: jax.Array) -> PyTree:
        """The same without int8: kernels in the compute dtype, all else float32."""
        dtype = jnp.dtype(self.config.encoder.dtype)
        module = build(self.config)
        inputs = (jnp.zeros(x.shape, x.dtype) for x in module.example_inputs())
        return map_paths(
            lambda path, leaf: leaf.astype(dtype) if path.endswith("kernel") else leaf,
            module.init(key, *inputs),
        )


def mismatches(student: Any, teachers: Sequence[FrozenTeacher], stride: int = 1) -> list[str]:
    """What keeps a student from following its teachers: layers, widths, token grids and frames.

    Args:
      student: config of its model.
      teachers: those that it follows.
      stride: the student sees every `stride`-th frame of a batch's clips.
    """
    own, wrong = student.encoder, []
    for teacher in teachers:
        encoder: Any = teacher.config.encoder
        width, final = getattr(student, f"{teacher.side}_target_dim"), 0
        if teacher.final is not None:
            final = student.clip_final_dim
        passes = own.grid[0] if teacher.per_frame else 1
        frames = -(-own.num_frames * stride // teacher.stride)
        layers = getattr(student, f"{teacher.side}_layers")
        wrong += [
            f"{what} of {teacher.name}: expected {expected}, found {found}"
            for what, expected, found in (
                ("layers", len(layers), len(teacher.config.layers)),
                ("width", width, encoder.width),
                ("pooled_dim", final, encoder.pooled_dim if final else 0),
                ("token grid", own.grid, (passes * encoder.grid[0], *encoder.grid[1:])),
                ("frames", frames, passes * encoder.num_frames),
            )
            if expected != found
        ]
    return wrong


def masked_targets(
    teachers: Sequence[FrozenTeacher],
    mask: MaskConfig,
    frozen: PyTree,
    video: Array,
    drawn: Array,
    clips_per_pass: int | None = None,
) -> dict[str, Array]:
    """Targets of clips at the tokens of a mask, which the first teacher's attention may guide.

    Args:
      teachers: any number of them.
      mask: kind and ratio.
      frozen: their variables by name.
      video: clips `[B, T, S, S, 3]`, uint8 pixels or normalised floats.
      drawn: the masks' randomness (`mask.draw`).
      clips_per_pass: clips, over all devices, of one pass; None: all.

    Returns:
      `kept` `[B, R]`, and by term what `FrozenTeacher.rows` gives.
    """

    def one_pass(clips: dict[str, Array]) -> dict[str, Array]:
        video = normalized(clips["video"])
        kept: Array | None = None
        targets: dict[str, Array] = {}
        for teacher in teachers:
            encoded = teacher.encode(frozen[teacher.name], video)
            if kept is None:
                attention = encoded.pooler_attention[:, 1:] if teacher.is_vit else None
                kept = mask.kept(clips["drawn"], attention)
            targets |= teacher.rows(encoded, kept)
        return {"kept": mask.kept(clips["drawn"], None) if kept is None else kept, **targets}

    return map_clips(one_pass, {"video": video, "drawn": drawn}, clips_per_pass)


def cached_targets(
    teachers: Sequence[FrozenTeacher], mask: MaskConfig, batch: Mapping[str, Array], drawn: Array
) -> dict[str, Array]:
    """As `masked_targets`, of clips whose features come with them."""
    attention = None
    if mask.kind == "attention":
        attention = batch[f"{CACHE}attention"].astype(jnp.float32)
        attention = attention.reshape(-1, attention.shape[-1])
    targets = {"kept": mask.kept(drawn, attention)}
    for teacher in teachers:
        targets |= teacher.cached_rows(batch, targets["kept"])
    return targets


def load_teachers(teachers: Sequence[FrozenTeacher], mesh: Mesh, rules: Rules) -> PyTree:
    """Teachers' variables by name from their saved models, sharded like those of `init`.

    Raises:
      ValueError: a path is not set, a saved model does not fit its config (all misfits are listed),
        or int8 is asked for without a calibration or on devices that do not gain by it.
    """
    _check_paths(teachers)
    return {teacher.name: _load_teacher(teacher, mesh, rules) for teacher in teachers}


def _load_teacher(teacher: FrozenTeacher, mesh: Mesh, rules: Rules) -> PyTree:
    path, key = str(teacher.path), jax.random.key(0)
    calibration = None
    if teacher.is_int8:
        check_devices(mesh.devices.flat, teacher.name)
        calibration = read_calibration(path, teacher.name)
    loaded = load_weights(
        path,
        teacher.config,
        abstract_params(teacher.init_wide, mesh, rules, key),
        name=teacher.name,
        dtype=teacher.config.encoder.dtype,
    )
    if calibration is None:
        return loaded
    with nn.logical_axis_rules(()):
        boxes = jax.eval_shape(teacher.init_wide, key)
    return quantize(loaded, boxes, calibration, mesh, rules)


def check_teachers(teachers: Sequence[FrozenTeacher]) -> None:
    """Checks, without reading arrays, what `load_teachers` asks of saved models; errors are its."""
    _check_paths(teachers)
    for teacher in teachers:
        shapes = abstract_variables(build(teacher.config))
        check_weights(str(teacher.path), teacher.config, shapes)
        if teacher.is_int8:
            read_calibration(str(teacher.path), teacher.name)


def _check_paths(teachers: Sequence[FrozenTeacher]) -> None:
    unset = [f"stage.{teacher.name}_path" for teacher in teachers if not teacher.path]
    if unset:
        raise ValueError(
            "expected the folders of the frozen teachers' saved models in"
            f" {' and '.join(unset)}, found none; make them with"
            " `internvideo-jax convert` (docs/stage1.md names the checkpoints)"
        )
