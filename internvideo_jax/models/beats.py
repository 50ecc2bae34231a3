"""BEATs, the audio tower of InternVideo2 stage 2: a post-norm transformer on filterbank patches.

Source: upstream `InternVideo2/multi_modality/models/backbones/beats/`.
"""

import dataclasses
import functools
import math
from typing import Annotated

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from internvideo_jax.config import Few, Frames, Range, Size, Width
from internvideo_jax.models.architecture import Architecture, Tower
from internvideo_jax.nn.linear import default_kernel_init, dense
from internvideo_jax.nn.normalization import layer_norm
from internvideo_jax.nn.partitioning import with_axes
from internvideo_jax.nn.postnorm_block import PostNormBlock, PostNormConfig, PostNormInputs
from internvideo_jax.nn.stack import stack

# The relative position bias has a number for each pair of them.
_MAX_TOKENS = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeatsConfig(PostNormConfig):
    """Dimensions and options of BEATs; those of its blocks are in `PostNormConfig`.

    Attributes:
      num_frames: frames of the filterbank in examples; any number can be encoded.
      num_mels: its mel bins, likewise.
      patch_size: side of a patch in frames and in mel bins.
      patch_width: width of the embedded patches; where it is not `width`, they are projected.
      patch_bias: whether the patch embedding has a bias.
      conv_size: kernel of the convolution that gives positions, in tokens.
      conv_groups: its groups; must divide `width`.
      num_buckets: entries of the relative position bias; 0 leaves it out.
      max_distance: tokens from where on all share the last bucket.
    """

    num_frames: Frames = 998
    num_mels: Few = 64
    patch_size: Few = 16
    patch_width: Width = 512
    patch_bias: bool = False
    conv_size: Few = 128
    conv_groups: Width = 16
    num_buckets: Annotated[int, Range(0, 2**16)] = 320
    max_distance: Size = 800
    gated_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.conv_groups:
            raise ValueError(
                f"expected a width that conv_groups divides, found {self.width} and"
                f" {self.conv_groups}"
            )
        if not 0 < self.num_tokens <= _MAX_TOKENS:
            raise ValueError(
                f"expected 1 to {_MAX_TOKENS} patches of {self.patch_size} x {self.patch_size},"
                f" found {self.num_tokens} in {self.num_frames} frames of {self.num_mels} mel bins"
            )
        if 0 < self.num_buckets < 4 or (
            self.num_buckets and self.max_distance <= self.num_buckets // 4
        ):
            raise ValueError(
                "expected num_buckets of 0 or at least 4, and a max_distance above a quarter of"
                f" it, found {self.num_buckets} and {self.max_distance}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of an example; what no patch covers at the end is dropped."""
        return (self.num_frames // self.patch_size) * (self.num_mels // self.patch_size)


def beats_iter3_plus() -> BeatsConfig:
    """BEATs iter3+, pre-trained on AudioSet-2M, as InternVideo2-6B uses it."""
    return BeatsConfig(
        width=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        residual_scale=deep_norm_scale(12),
        gradient_scale=0.6,
    )


def deep_norm_scale(depth: int) -> float:
    """DeepNorm's factor on the residual stream of an encoder."""
    return (2.0 * depth) ** 0.25


@flax.struct.dataclass
class BeatsOutput:
    """What the tower returns.

    Attributes:
      tokens: last layer's output `[B, N, D]`, time first, mel bins second.
      pooled: mean of the tokens `[B, D]`.
      hidden_states: outputs of the wanted layers `[K, B, N, D]`; K may be 0.
    """

    tokens: jax.Array
    pooled: jax.Array
    hidden_states: jax.Array


class FilterbankPatches(nn.Module):
    """Projects square patches of a filterbank `[B, T, M]` to `[B, t * m, E]`, time first."""

    config: BeatsConfig

    @nn.compact
    def __call__(self, filterbank: jax.Array) -> jax.Array:
        c = self.config
        dtype, p = jnp.dtype(c.dtype), c.patch_size
        t, m = (size // p for size in filterbank.shape[1:])
        if not t * m:
            raise ValueError(
                f"expected a filterbank of at least {p} frames and {p} mel bins, found"
                f" {filterbank.shape[1:]}; pad it"
            )
        axes = ("patch", "patch", "patch", "embed")
        kernel_init = with_axes(default_kernel_init, axes)
        kernel = self.param("kernel", kernel_init, (p, p, 1, c.patch_width), jnp.float32)
        patches = filterbank[:, : t * p, : m * p].astype(dtype).reshape(-1, t, p, m, p)
        patches = patches.swapaxes(2, 3).reshape(-1, t * m, p * p)
        x = patches @ kernel.astype(dtype).reshape(p * p, -1)
        if c.patch_bias:
            zeros = with_axes(nn.initializers.zeros, ("norm",))
            x = x + self.param("bias", zeros, (c.patch_width,), jnp.float32).astype(dtype)
        return x


class PositionConv(nn.Module):
    """Positions from a grouped, weight-normalised convolution over tokens, `[B, N, D] -> same`."""

    config: BeatsConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        size, group = c.conv_size, c.width // c.conv_groups
        deviation = math.sqrt(4 / (size * c.width))
        init = with_axes(nn.initializers.normal(deviation), (None, None, "embed"))
        v = self.param("v", init, (size, group, c.width), jnp.float32)
        norms = jnp.sqrt(jnp.sum(v * v, axis=(1, 2)))
        g = self.param("g", with_axes(lambda key: norms, (None,)))
        bias_init = with_axes(nn.initializers.zeros, ("norm",))
        bias = self.param("bias", bias_init, (c.width,), jnp.float32)
        kernel = (g / norms)[:, None, None] * v
        x = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(1,),
            padding=[(size // 2, (size - 1) // 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=c.conv_groups,
        )
        return jax.nn.gelu(x + bias.astype(x.dtype), approximate=False)


class RelativeBias(nn.Module):
    """A bias `[H, N, N]` float32 on the scores of N tokens, by how far apart they are."""

    config: BeatsConfig

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        c = self.config
        positions = np.arange(length)
        offsets = positions[None, :] - positions[:, None]
        buckets = relative_buckets(offsets, c.num_buckets, c.max_distance)
        init = with_axes(default_kernel_init, (None, "heads"))
        table = self.param("embedding", init, (c.num_buckets, c.num_heads), jnp.float32)
        return table[buckets].transpose(2, 0, 1)


def relative_buckets(offsets: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each offset (key minus query): one half of them for keys to the right.

    In each half, the first buckets hold one distance each and the others ever longer ranges, up to
    `max_distance`, beyond which all is in the last. Source: T5's bidirectional buckets.
    """
    half = num_buckets // 2
    exact = half // 2
    distances = np.abs(offsets)
    # In float32, as the reference computes it: a bucket's edge may lie on a whole distance.
    ratios = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    ratios = ratios / np.float32(math.log(max_distance / exact)) * np.float32(half - exact)
    far = np.minimum(exact + ratios.astype(np.int64), half - 1)
    return np.where(offsets > 0, half, 0) + np.where(distances < exact, distances, far)


class Beats(Tower):
    """Patches, positions from a convolution, blocks with a gated relative position bias."""

    config: BeatsConfig

    input_parts = ("patch_norm", "patch_embed", "patch_proj", "pos_conv", "relative_bias")

    @nn.compact
    def __call__(
        self,
        filterbank: jax.Array,
        *,
        hidden_layers: tuple[int, ...] = (),
        deterministic: bool = True,
    ) -> BeatsOutput:
        """Encodes sounds.

        Upstream also drops whole layers at random in training (rate 0.05), which is left out.

        Args:
          filterbank: normalised log-mel filterbanks `[B, T, M]`; padding is attended to.
          hidden_layers: ascending indices of the blocks whose outputs are wanted.
          deterministic: False turns dropout on (needs the `dropout` RNG).

        Raises:
          ValueError: less than one patch, or bad `hidden_layers`.
        """
        c = self.config
        dtype = jnp.dtype(c.dtype)
        norm = functools.partial(layer_norm, 1e-5, dtype)
        x = norm("patch_norm")(FilterbankPatches(c, name="patch_embed")(filterbank))
        if c.patch_width != c.width:
            x = dense(c.width, ("patch", "embed"), dtype, "patch_proj")(x)
        x = x + PositionConv(c, name="pos_conv")(x)
        final_norm = norm("norm")
        x = x if c.norm_first else final_norm(x)
        x = nn.Dropout(c.dropout_rate)(x, deterministic=deterministic)
        bias = RelativeBias(c, name="relative_bias")(x.shape[1]) if c.num_buckets else None
        stacked = stack(
            PostNormBlock,
            c,
            x,
            PostNormInputs(bias=bias),
            depth=c.depth,
            remat=c.remat,
            hidden_layers=hidden_layers,
            deterministic=deterministic,
        )
        tokens = final_norm(stacked.x) if c.norm_first else stacked.x
        pooled = tokens.mean(axis=1, dtype=jnp.float32).astype(tokens.dtype)
        return BeatsOutput(tokens, pooled, stacked.hidden_states)

    def example_inputs(self, batch_size: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shape of a batch of filterbanks."""
        c = self.config
        return (jax.ShapeDtypeStruct((batch_size, c.num_frames, c.num_mels), jnp.float32),)

    def is_decayed(self, path: str) -> bool:
        """Whether weight decay applies: to what has several dimensions in the released model.

        There, the gates' scales and the convolution's norms have dimensions of size 1.
        """
        is_matrix = path.endswith(("/gate_scale", "pos_conv/v", "pos_conv/g"))
        return is_matrix or super().is_decayed(path)

    def layer_of(self, path: str) -> int | np.ndarray:
        """Layer of a parameter; a norm that is not the last comes before the blocks."""
        layer = super().layer_of(path)
        return 0 if path.startswith("norm/") and not self.config.norm_first else layer


ARCHITECTURES = {"beats": Architecture(BeatsConfig, Beats)}
