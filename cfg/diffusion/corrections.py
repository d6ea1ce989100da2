"""Corrects predictions as newer guidance does beyond Eq. 6: rescaling, thresholding, projection, frequencies.

Pure functions of images [N, ...], each image on its own. Every one is harmless where its statistic vanishes (an
image without contrast, an estimate that is 0).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cfg.diffusion.process import expand

Array = jax.Array


def _axes(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def rescale(guided: Array, cond: Array, *, phi: Array) -> Array:
    """Returns phi guided std(cond) / std(guided) + (1 - phi) guided (Lin et al. 2023, arXiv 2305.08891, Sec. 3.4).

    The standard deviation is over all components of an image. phi in [0, 1] is [] or [N]: 0 changes nothing, and 1
    gives the guided prediction the standard deviation of the conditional one.
    """
    std_guided = jnp.std(guided, axis=_axes(guided), keepdims=True)
    std_cond = jnp.std(cond, axis=_axes(cond), keepdims=True)
    # Of an image of one value the deviation is rounding, and says nothing.
    contrast = std_guided > 1e-6 * jnp.max(jnp.abs(guided), axis=_axes(guided), keepdims=True)
    ratio = jnp.where(contrast, std_cond / jnp.where(contrast, std_guided, 1.0), 1.0)
    return guided * (1.0 + expand(phi, guided) * (ratio - 1.0))


def dynamic_threshold(x: Array, *, quantile: float) -> Array:
    """Returns clip(x, -s, s) / s with s = max(1, that quantile of |x|) (Saharia et al. 2022, arXiv 2205.11487).

    The quantile, in [0, 1], is of the components of an image, linearly interpolated. The result is in [-1, 1]. Where
    |x| <= 1 nothing changes. Where s is 1 it is plain clipping, as for quantile = 0 and every image with a component
    inside [-1, 1].
    """
    s = jnp.quantile(jnp.abs(x), quantile, axis=_axes(x), keepdims=True)
    s = jnp.maximum(s, 1.0)
    return jnp.clip(x, -s, s) / s


def decompose(v: Array, onto: Array) -> tuple[Array, Array]:
    """Splits v into (its part parallel to `onto`, the rest, orthogonal to it); the parallel part of 0 is 0."""
    # A unit vector first: the squares of a large image would lose more, or overflow.
    size = jnp.sqrt(jnp.sum(jnp.square(onto), axis=_axes(v), keepdims=True))
    unit = onto / jnp.where(size > 0.0, size, 1.0)
    parallel = jnp.sum(v * unit, axis=_axes(v), keepdims=True) * unit
    return parallel, v - parallel


def limit_norm(v: Array, *, norm_threshold: Array) -> Array:
    """Returns v min(1, r / ||v||), with the norm over all components of an image; r = infinity changes nothing."""
    r = expand(norm_threshold, v)
    norm = jnp.sqrt(jnp.sum(jnp.square(v), axis=_axes(v), keepdims=True))
    return v * jnp.where(norm > r, r / jnp.where(norm > r, norm, 1.0), 1.0)


def adaptive_projection(x_cond: Array, update: Array, w: Array, *, eta: Array, norm_threshold: Array) -> Array:
    """Returns x_cond + w (orthogonal + eta parallel) of the update cut to norm r (Sadat et al. 2024, 2410.02416).

    The two parts of the update are relative to x_cond. The update is x_cond - x_uncond, or its running sum. Without
    cut and sum, and for eta = 1, this is Eq. 6 on the estimates of x. w, eta and r are [] or [N].
    """
    parallel, orthogonal = decompose(limit_norm(update, norm_threshold=norm_threshold), x_cond)
    return x_cond + expand(w, x_cond) * (orthogonal + expand(eta, x_cond) * parallel)


def anneal(y: Array, noise: Array, *, kept: Array, scale: Array, mix: Array) -> Array:
    """Returns a label's embedding with noise, kept in [0, 1] of it (Sadat et al. 2023, arXiv 2310.17347).

    y' = sqrt(kept) y + scale sqrt(1 - kept) noise; then psi times y' with the mean and deviation of y, each over the
    components of an example, and 1 - psi times y' as it is, where `mix` is psi. kept = 1 is y to the bit.

    Args:
      y, noise: [N, E]; the noise is standard normal.
      kept, scale, mix: [N].
    """
    kept, scale, mix = (expand(each, y) for each in (kept, scale, mix))
    noisy = jnp.sqrt(kept) * y + scale * jnp.sqrt(1.0 - kept) * noise
    centred, deviation = noisy - noisy.mean(axis=1, keepdims=True), noisy.std(axis=1, keepdims=True)
    centred = centred / jnp.where(deviation > 0.0, deviation, 1.0)
    restored = centred * y.std(axis=1, keepdims=True) + y.mean(axis=1, keepdims=True)
    return jnp.where(kept == 1.0, y, mix * restored + (1.0 - mix) * noisy)


def cosine(one: Array, other: Array) -> Array:
    """Returns the cosine of the angle between two images, [N], at most 1; 0 where one of them is 0."""
    sizes = (jnp.sqrt(jnp.sum(jnp.square(each), axis=_axes(each))) for each in (one, other))
    of_both = math.prod(sizes)
    product = jnp.sum(one * other, axis=_axes(one))
    return jnp.minimum(product / jnp.where(of_both > 0.0, of_both, 1.0), 1.0)


def along_common(v: Array, beside: Array) -> Array:
    """Returns the part of v along the first right singular vector of the two rows [beside, v].

    The second one, across which the two differ, is taken out of v (Kwon et al. 2025, arXiv 2503.18137). The first is
    cos(t) beside + sin(t) v up to its length, with tan(2 t) = 2 <beside, v> / (||beside||^2 - ||v||^2).
    """
    own, whole, mixed = (
        jnp.sum(a * b, axis=_axes(v), keepdims=True) for a, b in ((v, v), (beside, beside), (v, beside))
    )
    angle = 0.5 * jnp.arctan2(2.0 * mixed, whole - own)
    return decompose(v, jnp.cos(angle) * beside + jnp.sin(angle) * v)[0]


def low_pass(x: Array) -> Array:
    """Returns what the second level of a Laplacian pyramid holds of images [N, ..., C], at their own size.

    Each axis between the first and the last is blurred by (1, 4, 6, 4, 1) / 16, halved, doubled, and blurred again, all
    of it linear, as kornia does it. An image is reflected at its ends; one of a single pixel is its own low band.
    """
    spatial = range(1, x.ndim - 1)
    half = tuple(max(size // 2, 1) if axis in spatial else size for axis, size in enumerate(x.shape))

    def blurred(x):
        return functools.reduce(lambda x, axis: convolve(x, (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16), axis), spatial, x)

    small = jax.image.resize(blurred(x), half, 'linear', antialias=False)
    return blurred(jax.image.resize(small, x.shape, 'linear', antialias=False))


def convolve(x: Array, weights: Sequence[float], axis: int) -> Array:
    """Returns x convolved along an axis by an odd number of weights that are symmetric; its ends are reflected."""
    half = len(weights) // 2
    padded = jnp.pad(x, [(half, half) if each == axis else (0, 0) for each in range(x.ndim)], mode='reflect')
    shifted = (jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(len(weights)))
    return sum(weight * each for weight, each in zip(weights, shifted, strict=True))
