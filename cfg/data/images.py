"""The one place where pixels change scale: uint8 0..255 <-> float32 [-1, 1]."""

import jax
import jax.numpy as jnp

Array = jax.Array


def to_float(images: Array) -> Array:
    """uint8 0..255 -> float32 [-1, 1], any shape."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Array) -> Array:
    """float [-1, 1] -> uint8 0..255, any shape: clipped, then rounded to the nearest grey level."""
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)
