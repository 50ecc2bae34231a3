"""Token masks of masked-student training: guided by a teacher's attention, tubes, or random.

A mask is held as the ascending indices of the kept tokens, `[B, K]` int32 with K known from the
ratio alone: students gather their tokens with it, so shapes are static under `jit`. Index 0 is the
class token, always kept; patch token i (time-major) has index i + 1.

Source: `InternVideo2/single_modality/engines/engine_for_pretraining.py`, `engine_for_distill.py`
and `datasets/masking_generator.py` of upstream. Upstream's stage 1 lacks the class token's column
for tube and random masks and fails; here every mask has it.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Which tokens a student keeps.

    The methods take `grid`, the student's tokens along (time, height, width), and `per_frame`,
    whether attention masks are drawn frame by frame or over the whole clip.

    Attributes:
      kind: drawn in proportion to a teacher's attention, the same places in all frames, or anywhere
        in the clip.
      ratio: share of the tokens that are masked.
    """

    kind: Literal["attention", "tube", "random"] = "attention"
    ratio: float = 0.8

    def draw(
        self, key: PRNGKeyArray, batch_size: int, grid: tuple[int, int, int], per_frame: bool
    ) -> Array:
        """All the randomness of a batch's masks, one row for each clip.

        Returns:
          Exp(1) draws `[B, T, h*w]` or `[B, 1, T*h*w]` for attention masks, else the kept tokens
          `[B, R]`.
        """
        rows, tokens = self._rows(grid, per_frame)
        if self.kind == "attention":
            return jax.random.exponential(key, (batch_size, rows, tokens))
        return tube_kept(key, batch_size, rows, tokens, self.ratio)

    def kept(self, drawn: Array, attention: Float[Array, "rows N"] | None) -> Int[Array, "B R"]:
        """Ascending indices of the kept tokens, class token first, from what `draw` gave.

        Args:
          drawn: of `draw`.
          attention: a teacher's, as in `TeacherOutput.attention`; None without attention masks.
        """
        if self.kind != "attention":
            return drawn
        assert attention is not None
        draws = drawn.reshape(attention.shape)
        return attention_guided_kept(attention, draws, self.ratio, batch_size=drawn.shape[0])

    def num_kept(self, grid: tuple[int, int, int], per_frame: bool) -> int:
        """Tokens that are kept of a clip, class token included."""
        rows, tokens = self._rows(grid, per_frame)
        return 1 + rows * num_kept(tokens, self.ratio)

    def _rows(self, grid: tuple[int, int, int], per_frame: bool) -> tuple[int, int]:
        """Rows of tokens that keep so many each, and their length: frames, or the whole clip."""
        t, h, w = grid
        is_split = self.kind == "tube" or (self.kind == "attention" and per_frame)
        return (t, h * w) if is_split else (1, t * h * w)


def num_kept(num_tokens: int, mask_ratio: float) -> int:
    """Number of tokens left of `num_tokens` when `int(num_tokens * mask_ratio)` are masked.

    Raises:
      ValueError: the ratio is not in [0, 1), or no token would be left.
    """
    kept = num_tokens - int(num_tokens * mask_ratio) if 0 <= mask_ratio < 1 else 0
    if kept < 1:
        raise ValueError(
            f"expected a mask ratio in [0, 1) that leaves at least one of {num_tokens} tokens,"
            f" found {mask_ratio}"
        )
    return kept


def importance_order(
    attention: Float[Array, "R N"], draws: Float[Array, "R N"]
) -> Int[Array, "R N"]:
    """Token indices from most to least important in a weighted random permutation.

    Dividing weights by Exp(1) draws and sorting samples without replacement in proportion to the
    weights (what `torch.multinomial` does, and Gumbel top-k on their logarithms).

    Args:
      attention: non-negative weights of the tokens, in any scale. A token whose weight is 0,
        negative or not finite ranks after all others, in random order.
      draws: independent Exp(1) draws.

    Returns:
      `[R, N]` int32, each row a permutation.
    """
    usable = jnp.isfinite(attention) & (attention > 0)
    scores = jnp.where(usable, attention, 1.0).astype(jnp.float32) / draws
    return jnp.lexsort((-scores, ~usable)).astype(jnp.int32)


def attention_guided_kept(
    attention: Float[Array, "R N"],
    draws: Float[Array, "R N"],
    mask_ratio: float,
    batch_size: int,
) -> Int[Array, "B K"]:
    """Keeps the tokens that a teacher attends to, drawn in proportion to its attention.

    Each row of attention keeps `num_kept(N, mask_ratio)` tokens. Rows are the frames of the batch
    (R = B*T, frame-major as `TeacherOutput.attention` holds them: stage 1) or whole clips
    (R = B: distillation, where frames may keep different numbers).

    Args:
      attention: weights as in `importance_order`.
      draws: Exp(1) draws, `jax.random.exponential(key, attention.shape)`.
      mask_ratio: share of the tokens to mask.
      batch_size: B; must divide R.

    Returns:
      Kept indices `[B, 1 + R/B * num_kept(N, mask_ratio)]`, ascending.

    Raises:
      ValueError: B does not divide R, or a useless ratio.
    """
    rows, tokens = attention.shape
    if rows % batch_size:
        raise ValueError(
            f"expected attention rows in a multiple of the batch size {batch_size} (frames or"
            f" clips), found {rows}"
        )
    first = importance_order(attention, draws)[:, : num_kept(tokens, mask_ratio)]
    return _as_kept(first.reshape(batch_size, rows // batch_size, -1), tokens)


def tube_kept(
    key: PRNGKeyArray, batch_size: int, frames: int, places: int, mask_ratio: float
) -> Int[Array, "B K"]:
    """Keeps the same random places in all frames of a clip.

    Args:
      key: random key.
      batch_size: B.
      frames: rows of tokens; 1 draws over a whole clip.
      places: tokens of each.
      mask_ratio: share of the places to mask.

    Returns:
      Kept indices `[B, 1 + frames * num_kept(places, mask_ratio)]`, ascending.
    """
    first = _smallest(jax.random.uniform(key, (batch_size, 1, places)), mask_ratio)
    return _as_kept(jnp.repeat(first, frames, axis=1), places)


def least_kept(draws: Float[Array, "B N"], mask_ratio: float) -> Int[Array, "B K"]:
    """Keeps the tokens of the smallest draws, anywhere in a clip.

    Args:
      draws: of each patch token.
      mask_ratio: share of the tokens to mask.

    Returns:
      Kept indices `[B, 1 + num_kept(N, mask_ratio)]`, ascending.
    """
    return _as_kept(_smallest(draws[:, None], mask_ratio), draws.shape[1])


def kept_to_mask(kept: Int[Array, "B K"], num_tokens: int) -> Bool[Array, "B N"]:
    """Boolean mask `[B, N]` of kept indices, True where a token is dropped.

    `num_tokens` counts the class token.
    """
    rows = jnp.arange(kept.shape[0])[:, None]
    return jnp.ones((kept.shape[0], num_tokens), bool).at[rows, kept].set(False)


def mask_to_kept(mask: Bool[np.ndarray, "B N"]) -> Int[np.ndarray, "B K"]:
    """Ascending kept indices of a boolean mask (True = dropped); on the host, since K is data.

    Raises:
      ValueError: the mask is not 2-D boolean, or its rows keep different numbers of tokens.
    """
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(
            f"expected a boolean mask [B, N], True where a token is dropped; found {mask.dtype}"
            f" of shape {mask.shape}"
        )
    counts = (~mask).sum(axis=1)
    if np.unique(counts).size > 1:
        raise ValueError(
            "expected every sample of the batch to keep the same number of tokens, found"
            f" {counts.tolist()}"
        )
    return np.nonzero(~mask)[1].reshape(len(mask), -1).astype(np.int32)


def _smallest(draws: Float[Array, "*G P"], mask_ratio: float) -> Int[Array, "*G n"]:
    """Places of the smallest draws of each row."""
    return jnp.argsort(draws)[..., : num_kept(draws.shape[-1], mask_ratio)]


def _as_kept(tokens: Int[Array, "B G n"], group_size: int) -> Int[Array, "B K"]:
    """Kept indices of groups of `group_size` tokens from the indices chosen within each."""
    batch_size, groups, _ = tokens.shape
    tokens = jnp.sort(tokens, axis=-1) + group_size * jnp.arange(groups)[:, None] + 1
    tokens = tokens.reshape(batch_size, -1).astype(jnp.int32)
    return jnp.concatenate([jnp.zeros((batch_size, 1), jnp.int32), tokens], axis=1)
