"""Computes improved precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991), by blocks on the device."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray

# Rows and columns of a block of distances; ADM's evaluator decides in such blocks whether float16 will do.
BLOCKS = {'float32': (2048, 8192), 'float16': (10_000, 10_000)}


def precision_recall(
    reference: Array, samples: Array, *, k: int = 3, dtype: str = 'float32', block: tuple[int, int] | None = None
) -> tuple[float, float]:
    """Computes the shares of samples in the manifold of the reference, and of the reference in the manifold of samples.

    The manifold of a set is the union of a ball around each of its points that reaches, borders included, to the k-th
    nearest other point of the set.

    Args:
      reference, samples: [M, D] and [N, D] float32, more than k each; may be np.memmaps, read a block at a time.
      dtype: of distances. 'float16' is how ADM's evaluator computes: norms and products in float16, and a block with
        a distance that is not finite again in float32. (How a device sums in float16 is its own affair, so the last
        digits of that mode belong to it.)
      block: rows and columns at a time; `BLOCKS` by default.

    Raises:
      ValueError: for fewer than k + 1 points, or another dtype.
    """
    if dtype not in BLOCKS:
        raise ValueError(f'dtype must be one of {tuple(BLOCKS)}, not {dtype!r}')
    if min(len(reference), len(samples)) <= k:
        raise ValueError(f'the {k} nearest others need more than {k} points in each set')
    most = max(len(reference), len(samples))
    block = tuple(min(size, most) for size in block or BLOCKS[dtype])
    radii_of_reference = _radii(reference, k, dtype, block)
    radii_of_samples = _radii(samples, k, dtype, block)
    reference_in, samples_in = np.zeros(len(reference), bool), np.zeros(len(samples), bool)
    for columns, y in _blocks(samples, block[1]):
        y_radii = _padded(radii_of_samples[columns], block[1], -1.0)
        for rows, x in _blocks(reference, block[0]):
            x_radii = _padded(radii_of_reference[rows], block[0], -1.0)
            x_in, y_in = _members(x, y, x_radii, y_radii, dtype=dtype)
            reference_in[rows] |= np.asarray(x_in)[: rows.stop - rows.start]
            samples_in[columns] |= np.asarray(y_in)[: columns.stop - columns.start]
    return float(samples_in.mean()), float(reference_in.mean())


def _radii(points: Array, k: int, dtype: str, block: tuple[int, int]) -> Array:
    """Computes the squared distance of each point to the k-th nearest other, [N] float32.

    The point itself is the nearest, at distance 0, so it is the k-th after that.
    """
    nearest = np.full((len(points), k + 1), np.inf, np.float32)
    for columns, y in _blocks(points, block[1]):
        there = np.arange(block[1]) < columns.stop - columns.start
        for rows, x in _blocks(points, block[0]):
            best = _padded(nearest[rows], block[0], np.inf)
            nearest[rows] = np.asarray(_nearest(x, y, there, best, dtype=dtype))[: rows.stop - rows.start]
    return nearest[:, k]


def _blocks(points: Array, size: int) -> Iterator[tuple[slice, jax.Array]]:
    """Yields (which points, the points as [size, D] on the device, filled up with zeros)."""
    for start in range(0, len(points), size):
        stop = min(start + size, len(points))
        yield slice(start, stop), jnp.asarray(_padded(np.asarray(points[start:stop], np.float32), size, 0.0))


def _padded(x: Array, size: int, value: float) -> Array:
    missing = size - len(x)
    return np.concatenate([x, np.full((missing, *x.shape[1:]), value, x.dtype)]) if missing else x


def _distances(x: jax.Array, y: jax.Array, dtype: str) -> jax.Array:
    """Computes squared distances [n, m] float32 of [n, D] and [m, D]."""

    def of(x: jax.Array, y: jax.Array) -> jax.Array:
        product = jnp.matmul(x, y.T, precision='highest')
        return jnp.maximum(jnp.sum(x * x, 1)[:, None] - 2 * product + jnp.sum(y * y, 1)[None], 0)

    if dtype == 'float32':
        return of(x, y)
    half = of(x.astype(jnp.float16), y.astype(jnp.float16))
    return jax.lax.cond(jnp.all(jnp.isfinite(half)), lambda: half.astype(jnp.float32), lambda: of(x, y))


@functools.partial(jax.jit, static_argnames='dtype')
def _nearest(x: jax.Array, y: jax.Array, there: jax.Array, best: jax.Array, *, dtype: str) -> jax.Array:
    """Returns the smallest distances of `best` [n, k + 1] and those to the y that are there, ascending."""
    distances = jnp.where(there, _distances(x, y, dtype), jnp.inf)
    return -jax.lax.top_k(-jnp.concatenate([best, distances], axis=1), best.shape[1])[0]


@functools.partial(jax.jit, static_argnames='dtype')
def _members(
    x: jax.Array, y: jax.Array, x_radii: jax.Array, y_radii: jax.Array, *, dtype: str
) -> tuple[jax.Array, jax.Array]:
    """Tells which x are inside a ball of a y [n], which y inside a ball of an x [m]; a negative radius is no ball."""
    distances = _distances(x, y, dtype)
    return jnp.any(distances <= y_radii, axis=1), jnp.any(distances <= x_radii[:, None], axis=0)
