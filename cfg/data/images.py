"""Changes the scale of pixels between uint8 0..255 and float32 [-1, 1], here and nowhere else."""

import jax
import jax.numpy as jnp

Array = jax.Array


def to_float(images: Array) -> Array:
    """Converts uint8 0..255 to float32 [-1, 1], in any shape."""
    return images.astype(jnp.float32) / 127.5 - 1.0


# How a grey level between two whole ones becomes one of them.
ROUNDINGS = {'round': jnp.round, 'truncate': jnp.floor}


def to_uint8(images: Array, rounding: str = 'round') -> Array:
    """Converts float [-1, 1] to uint8 0..255, in any shape: to a whole grey level, then clipped.

    Args:
      rounding: 'round' to the nearest (EDM, DiT, SiT), or 'truncate' to the one below (ADM): half a grey level darker.
    """
    return jnp.clip(ROUNDINGS[rounding]((images + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)
