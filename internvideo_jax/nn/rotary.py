"""Rotary position embedding in the half-split form: channel i turns with channel i + D/2."""

import jax
import jax.numpy as jnp


def rotary_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles `p * theta ** (-2i / D)`.

    Args:
      positions: integers `[B, N]`.
      head_dim: D, even.
      theta: base of the wavelengths.

    Returns:
      Two tables `[B, N, D / 2]` float32.

    Raises:
      ValueError: `head_dim` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"expected an even head_dim for rotary positions, found {head_dim}")
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[..., None].astype(jnp.float32) / theta**exponents
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns `x` `[B, N, H, D]` by the tables of its positions, in float32."""
    cos, sin = (table[:, :, None] for table in tables)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
