"""The InternVideo2 video encoder: a ViT over tubelets with an attention pooler.

Source: upstream `InternVideo2/single_modality/models/internvideo2.py` and its siblings, which share
this forward; also the InternVL image tower (`internvl_clip_vision.py`) with one frame per clip.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import Factor, Few, Frames, Rate, Side, Width
from internvideo_jax.kernels.attention.request import current_platform
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.nn.attention import AttentionPooler, head_size
from internvideo_jax.nn.blocks import PreNormBlock
from internvideo_jax.nn.linear import default_kernel_init
from internvideo_jax.nn.mlp import Activation
from internvideo_jax.nn.partitioning import with_axes
from internvideo_jax.nn.position_embedding import (
    resize_position_table,
    sincos_1d,
    sincos_2d,
    sincos_3d,
)
from internvideo_jax.nn.stack import StackConfig, stack

ImagePositions = Literal["resized", "mean", "own", "spatial"]
# Of which position tables images can have such positions, if not of any.
_TABLES = {"mean": "joint", "own": "joint", "spatial": "separable"}


@dataclasses.dataclass(frozen=True)
class PatchedVideoConfig(StackConfig):
    """Dimensions and options of encoders whose tokens are patches of clips; heads divide the width.

    Attributes:
      patch_size: side of a patch in pixels.
      tubelet_size: frames per token.
      image_size: side of the square frame that the position table is made for.
      num_frames: frames per clip that the position table is made for.
      layer_scale_init: initial branch scale; None leaves layer scale out.
    """

    patch_size: Few = 14
    tubelet_size: Few = 1
    image_size: Side = 224
    num_frames: Frames = 8
    layer_scale_init: Factor | None = 1e-5

    # Numbers in a position table: far above 64 frames of 448 pixels at width 3200.
    max_table: ClassVar[int] = 2**28

    def __post_init__(self) -> None:
        super().__post_init__()
        head_size(self.width, self.num_heads)
        size = math.prod(self.grid) * self.width
        if size > self.max_table:
            raise ValueError(
                f"expected a position table of at most {self.max_table:,} numbers, found {size:,}"
                f" ({' x '.join(map(str, self.grid))} tokens of width {self.width})"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width that the position table is made for."""
        return token_grid(
            (self.num_frames, self.image_size, self.image_size), self.tubelet_size, self.patch_size
        )


@dataclasses.dataclass(frozen=True)
class VideoViTConfig(PatchedVideoConfig):
    """Dimensions and options of a video ViT; see `internvideo2_1b()` and its siblings.

    Attributes:
      pooled_dim: size of the pooled output.
      pooler_heads: attention heads of the pooler; must divide `width`.
      position_embedding: one table over all tokens, or the sum of a spatial and a temporal one.
      image_positions: positions of a clip of one step, an image, where the table has more: resized
        in time as all clips' are, the mean over time or a table of their own (of joint tables), or
        the spatial ones alone (of separable tables).
      activation: GELU variant of the blocks; the released weights were trained with tanh.
      qk_norm: RMS-normalise q and k over the full width.
      qkv_bias: bias in the qkv projection.
      drop_path_rate: stochastic depth of the last block.
    """

    pooled_dim: Width = 768
    pooler_heads: Few = 16
    position_embedding: Literal["joint", "separable"] = "joint"
    image_positions: ImagePositions = "resized"
    activation: Activation = "gelu_tanh"
    qk_norm: bool = True
    qkv_bias: bool = False
    drop_path_rate: Rate = 0.0

    norm: ClassVar = "rmsnorm"
    norm_epsilon: ClassVar = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        head_size(self.width, self.pooler_heads, "pooler_heads")
        wanted = _TABLES.get(self.image_positions, self.position_embedding)
        if self.position_embedding != wanted:
            raise ValueError(
                f"expected a {wanted} table for image_positions {self.image_positions!r}, found a"
                f" {self.position_embedding} one"
            )

    @property
    def least_parameters(self) -> int:
        t, h, w = self.grid
        rows = t * h * w if self.position_embedding == "joint" else t + h * w
        return super().least_parameters + rows * self.width

    @property
    def num_tokens(self) -> int:
        """Tokens of a full clip, class token included."""
        t, h, w = self.grid
        return 1 + t * h * w


def internvideo2_s14() -> VideoViTConfig:
    """InternVideo2-S/14 (22 M parameters)."""
    return VideoViTConfig(width=384, depth=12, num_heads=6, mlp_dim=1536)


def internvideo2_b14() -> VideoViTConfig:
    """InternVideo2-B/14 (89 M parameters)."""
    return VideoViTConfig(width=768, depth=12, num_heads=12, mlp_dim=3072)


def internvideo2_l14() -> VideoViTConfig:
    """InternVideo2-L/14 (309 M parameters)."""
    return VideoViTConfig(width=1024, depth=24, num_heads=16, mlp_dim=4096)


def internvideo2_1b() -> VideoViTConfig:
    """InternVideo2-1B/14."""
    return VideoViTConfig(width=1408, depth=40, num_heads=16, mlp_dim=6144)


def internvideo2_6b() -> VideoViTConfig:
    """InternVideo2-6B/14."""
    return VideoViTConfig(width=3200, depth=48, num_heads=25, mlp_dim=12800)


def internvl_6b() -> VideoViTConfig:
    """The image tower of InternVL-C 13B, applied to one frame at a time."""
    return dataclasses.replace(internvideo2_6b(), num_frames=1, layer_scale_init=0.1)


@flax.struct.dataclass
class VideoViTOutput:
    """What the encoder returns.

    Attributes:
      tokens: last block's output `[B, N, D]`, class token first.
      pooled: pooled clip feature `[B, P]`.
      hidden_states: outputs of the wanted blocks `[K, B, N, D]`; K may be 0.
      pooler_attention: head-averaged attention of the pooler over all tokens `[B, N]`, or None.
    """

    tokens: jax.Array
    pooled: jax.Array
    hidden_states: jax.Array
    pooler_attention: jax.Array | None = None


def token_grid(clip: Sequence[int], tubelet_size: int, patch_size: int) -> tuple[int, int, int]:
    """Token grid (t, h, w) of a clip (frames, height, width).

    Raises:
      ValueError: the tubelets or patches do not cover the clip exactly.
    """
    frames, height, width = clip
    if frames < 1 or frames % tubelet_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"expected frames divisible by the tubelet size {tubelet_size} and height and width"
            f" divisible by the patch size {patch_size}, found a clip of {frames} frames of"
            f" {height}x{width} pixels; resample or resize the clip"
        )
    return frames // tubelet_size, height // patch_size, width // patch_size


class PatchEmbed(nn.Module):
    """Projects tubelets to tokens, `[B, T, H, W, C] -> [B, t*h*w, D]`, time first."""

    width: int
    tubelet_size: int
    patch_size: int
    dtype: jnp.dtype = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        batch, frames, height, width, channels = video.shape
        t, h, w = token_grid((frames, height, width), self.tubelet_size, self.patch_size)
        tubelet, patch = self.tubelet_size, self.patch_size
        kernel_shape = (tubelet, patch, patch, channels, self.width)
        kernel_axes = ("patch", "patch", "patch", "patch", "embed")
        fan_in = tubelet * patch * patch * channels
        # torch's Conv3d default, which upstream leaves in place.
        bound = fan_in**-0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param("kernel", with_axes(uniform, kernel_axes), kernel_shape, jnp.float32)
        patches = video.astype(self.dtype).reshape(batch, t, tubelet, h, patch, w, patch, channels)
        patches = patches.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, t * h * w, fan_in)
        tokens = patches @ kernel.astype(self.dtype).reshape(fan_in, self.width)
        if not self.use_bias:
            return tokens
        bias = self.param("bias", with_axes(uniform, ("norm",)), (self.width,), jnp.float32)
        return tokens + bias.astype(self.dtype)


def position_table(
    module: nn.Module,
    config: VideoViTConfig,
    grid: tuple[int, int, int],
    *,
    prefix: str = "",
    cls_token: bool = True,
) -> jax.Array:
    """The learned position table of `module`, resized to `grid`; call it inside a compact method.

    Its parameters belong to `module` and are named as upstream names them: `pos_embed`
    `[1, c + t*h*w, D]`, or, when separable, `pos_embed_spatial` `[1, h*w, D]`,
    `pos_embed_temporal` `[1, t, D]` and (with a class token) `pos_embed_cls` `[1, 1, D]`, where c
    is 1 with a class token, else 0. Images may have `img_pos_embed` `[1, c + h*w, D]`. All start
    from sines.

    Args:
      module: owner of the parameters.
      config: dimensions; `config.grid` is the grid that the parameters are made for.
      grid: tokens along (time, height, width) of the input.
      prefix: put before each parameter's name.
      cls_token: whether the first row belongs to a class token.

    Returns:
      Table `[1, c + t*h*w, D]` in float32.
    """
    t, h, w = config.grid
    width = config.width

    def param(name: str, make_table: Callable[[], np.ndarray]) -> jax.Array:
        def initial(key: jax.Array) -> jax.Array:
            return jnp.asarray(make_table()[:, :width])[None]

        init = with_axes(initial, (None, "position", "embed"))
        return jnp.asarray(module.param(prefix + name, init))

    def sines(multiple: int) -> int:
        """The next width that such sines have: a table that a file fills may have any."""
        return -(-width // multiple) * multiple

    if config.position_embedding == "joint":
        num_extra = int(cls_token)

        def joint(name: str, t: int) -> jax.Array:
            return param(name, lambda: sincos_3d(sines(16), (h, w), t, cls_token=cls_token))

        table, is_image = joint("pos_embed", t), grid[0] == 1
        if config.image_positions == "own":
            image_table = joint("img_pos_embed", 1)
            table = image_table if is_image else table
        elif config.image_positions == "mean" and is_image:
            patches = table[:, num_extra:].reshape(1, t, h * w, width).mean(1)
            table = jnp.concatenate([table[:, :num_extra], patches], axis=1)
        of_image = is_image and config.image_positions != "resized"
        native = (1, h, w) if of_image else config.grid
        return resize_position_table(table, native, grid, num_extra)
    spatial = param("pos_embed_spatial", lambda: sincos_2d(sines(4), (h, w)))
    temporal = param("pos_embed_temporal", lambda: sincos_1d(sines(2), np.arange(t)))
    spatial = resize_position_table(spatial, (1, h, w), (1, *grid[1:]), num_extra=0)
    temporal = resize_position_table(temporal, (t, 1, 1), (grid[0], 1, 1), num_extra=0)
    if config.image_positions == "spatial" and grid[0] == 1:
        table = spatial
    else:
        table = (temporal[:, :, None] + spatial[:, None]).reshape(1, -1, width)
    if cls_token:
        cls = param("pos_embed_cls", lambda: np.zeros((1, width), np.float32))
        table = jnp.concatenate([cls, table], axis=1)
    return table


def take_tokens(x: jax.Array, kept: jax.Array) -> jax.Array:
    """Rows `kept` `[B, K]` (int) of tokens `[B | 1, N, D]`, as `[B, K, D]`."""
    x = jnp.broadcast_to(x, (kept.shape[0], *x.shape[1:]))
    return jnp.take_along_axis(x, kept[..., None], axis=1)


class VideoViT(Tower):
    """Video encoder: tubelets, class token, positions, pre-norm blocks, attention pooler."""

    config: VideoViTConfig

    # Not the parts of separable position tables: upstream leaves them at the full rate.
    input_parts = ("patch_embed", "cls_token", "pos_embed")

    @nn.compact
    def __call__(
        self,
        video: jax.Array,
        kept: jax.Array | None = None,
        *,
        hidden_layers: tuple[int, ...] = (),
        return_pooler_attention: bool = False,
        deterministic: bool = True,
    ) -> VideoViTOutput:
        """Encodes normalised clips.

        Args:
          video: `[B, T, H, W, 3]` float, normalised. If the clip's grid is not the config's, the
            position table is resized as the released loaders do.
          kept: `[B, K]` ascending indices of the tokens to keep, 0 being the class token; None
            keeps all.
          hidden_layers: ascending indices of the blocks whose outputs are wanted.
          return_pooler_attention: whether to return the pooler's attention.
          deterministic: False turns drop path on (needs the `dropout` RNG).

        Raises:
          ValueError: the patches or tubelets do not cover the clip, or bad `hidden_layers`.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        if video.ndim != 5:
            raise ValueError(
                f"expected a batch of clips [B, T, H, W, 3], found shape {video.shape};"
                " add a leading axis for a single clip"
            )
        grid = token_grid(video.shape[1:4], c.tubelet_size, c.patch_size)
        x = PatchEmbed(c.width, c.tubelet_size, c.patch_size, dtype, name="patch_embed")(video)
        cls_init = with_axes(default_kernel_init, (None, None, "embed"))
        cls = self.param("cls_token", cls_init, (1, 1, c.width), jnp.float32).astype(dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.width)), x], axis=1)
        x = x + position_table(self, c, grid).astype(dtype)
        if kept is not None:
            x = take_tokens(x, kept)
        x, hidden_states, _ = stack(
            PreNormBlock,
            c,
            x,
            depth=c.depth,
            remat=c.remat,
            hidden_layers=hidden_layers,
            drop_path_rate=c.drop_path_rate,
            deterministic=deterministic,
        )
        pooler = AttentionPooler(c.pooler_heads, c.pooled_dim, dtype, name="pooler")
        pooled, attention = pooler(x, return_weights=return_pooler_attention)
        return VideoViTOutput(x, pooled, hidden_states, attention)

    def video_tower(self) -> tuple[Tower, tuple[str, ...]]:
        return self, ()

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        return (example_video(self.config, batch_size),)


class EncoderModel(Tower):
    """Base of the models around one encoder, which `config.encoder` describes.

    Its parameters are `encoder/...`; what a model adds to it comes after its last layer.
    """

    encoder_cls: ClassVar[type[Tower]] = VideoViT

    def detached_encoder(self) -> Tower:
        """The encoder as a module of its own."""
        return self.encoder_cls(self.config.encoder, parent=None)

    def video_tower(self) -> tuple[Tower, tuple[str, ...]] | None:
        return inside("encoder", self.detached_encoder())

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        return self.detached_encoder().example_inputs(batch_size)

    @property
    def last_layer(self) -> int:
        return self.detached_encoder().last_layer

    def layer_of(self, path: str) -> int | np.ndarray:
        return self.detached_encoder().layer_of(path.removeprefix("encoder/"))


def inside(name: str, module: Tower) -> tuple[Tower, tuple[str, ...]] | None:
    """The `video_tower` of a model, told from one that holds it as its submodule `name`."""
    found = module.video_tower()
    return found and (found[0], (name, *found[1]))


def example_video(config: Any, batch_size: int) -> jax.ShapeDtypeStruct:
    """Shape of a batch of normalised clips of the size that an encoder's config names."""
    side = config.image_size
    return jax.ShapeDtypeStruct((batch_size, config.num_frames, side, side, 3), jnp.float32)


def video_encoder(module: nn.Module, variables: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The encoder of clips inside a model, with its variables.

    Raises:
      ValueError: the model has none.
    """
    found = module.video_tower() if isinstance(module, Tower) else None
    if found is None:
        raise ValueError(
            f"expected a model with a video encoder, found {type(module).__name__}; pass an"
            " encoder, a classifier, a student, an InternVideo2 teacher, or a model that compares"
            " clips with texts"
        )
    encoder, path = found
    return encoder, {"params": functools.reduce(operator.getitem, path, variables["params"])}


def check_num_frames(
    module: nn.Module, num_frames: int, option: str = "--frames, num_frames"
) -> None:
    """Finds out before clips are read whether a model takes so many frames of each.

    Args:
      module: the model.
      num_frames: of a clip.
      option: what errors call it.

    Raises:
      ValueError: the tubelets of its video encoder, if it has one, do not divide them.
    """
    found = module.video_tower() if isinstance(module, Tower) else None
    size = found[0].config.tubelet_size if found else 1
    if num_frames % size:
        below = num_frames // size * size
        nearest = f"{below} or {below + size}" if below else f"{size}"
        raise ValueError(
            f"expected frames per clip ({option}) in multiples of {size}, the model's"
            f" tubelet size, found {num_frames}; take {nearest}"
        )


def encode(
    module: nn.Module,
    variables: dict[str, Any],
    video: jax.Array,
    kept: jax.Array | None = None,
    **options: Any,
) -> Any:
    """Runs the video encoder inside any model, without drop path, `row_by_row`.

    Args:
      module: a model with a video encoder.
      variables: its variables.
      video: normalised clips `[B, T, H, W, 3]`.
      kept: tokens to keep `[B, K]`, or None for all, as in the encoder's `__call__`.
      options: the others of the encoder's `__call__`.

    Returns:
      What the encoder does, `VideoViTOutput` or its like.
    """
    encoder, encoder_variables = video_encoder(module, variables)

    def forward(clips: Any) -> Any:
        output: Any = encoder.apply(encoder_variables, *clips, **options)
        return output.replace(hidden_states=output.hidden_states.swapaxes(0, 1))

    output: Any = row_by_row(forward, (video, kept))
    return output.replace(hidden_states=output.hidden_states.swapaxes(0, 1))


def row_by_row(fn: Callable[[Any], Any], batch: Any) -> Any:
    """`fn` of a pytree of arrays `[B, ...]`, which gives such a pytree; one row after the other.

    Only on a CPU, which keeps the activations of one row in its caches (docs/benchmarks.md); a mesh
    and other devices take all rows at once.
    """
    is_split = not jax.sharding.get_abstract_mesh().empty
    if is_split or current_platform() != "cpu" or len(jax.tree.leaves(batch)[0]) == 1:
        return fn(batch)
    rows = jax.tree.map(lambda x: x[:, None], batch)
    return jax.tree.map(lambda x: x[:, 0], jax.lax.map(fn, rows))


ARCHITECTURES = {"video_vit": Architecture(VideoViTConfig, VideoViT)}
