"""Compares sets of points by distances to nearest neighbours, by blocks on the device.

Precision and recall are those of Kynkaanniemi et al. 2019 (arXiv 1904.06991), density and coverage those of Naeem et
al. 2020 (arXiv 2002.09797).
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray

# Rows and columns of a block of distances; ADM's evaluator decides in such blocks whether float16 will do.
BLOCKS = {'float32': (2048, 8192), 'float16': (10_000, 10_000)}


class PRDC(NamedTuple):
    """Holds what balls around the points of two sets say; density and coverage are None of too small a reference."""

    precision: float  # the share of samples in the manifold of the reference
    recall: float  # the share of the reference in the manifold of samples
    density: float | None  # in how many balls of the reference a sample is, over k: 1 for equal distributions
    coverage: float | None  # the share of the reference's balls that hold a sample


def prdc(
    reference: Array,
    samples: Array,
    *,
    k: int = 3,
    k_density: int = 5,
    dtype: str = 'float32',
    block: tuple[int, int] | None = None,
) -> PRDC:
    """Computes precision and recall, and density and coverage from the same distances.

    The manifold of a set is the union of a ball around each of its points that reaches, borders included, to the k-th
    nearest other point of the set. Density and coverage are of the balls to the k_density-th. (Their authors' code
    leaves the border out, which differs only where distances are equal.)

    Args:
      reference: float32 [M, D] with M > k; may be a np.memmap, read a block at a time. Density and coverage need more
        than k_density.
      samples: likewise, [N, D] with N > k.
      k: of precision and recall.
      k_density: of density and coverage.
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
    block = _fitting(block or BLOCKS[dtype], reference, samples)
    radii_of_reference = radii(reference, (k, k_density), dtype=dtype, block=block)
    radii_of_samples = radii(samples, (k,), dtype=dtype, block=block)[:, 0]
    reference_in, covered, samples_in = (np.zeros(len(of), bool) for of in (reference, reference, samples))
    balls = 0  # of the reference and samples in them, in pairs
    for columns, y in _blocks(samples, block[1]):
        y_radii = _padded(radii_of_samples[columns], block[1], -1.0)
        for rows, x in _blocks(reference, block[0]):
            x_radii = _padded(radii_of_reference[rows], block[0], -1.0)
            x_in, x_covered, y_in, y_count = map(np.asarray, _members(x, y, x_radii, y_radii, dtype=dtype))
            here, there = rows.stop - rows.start, columns.stop - columns.start
            reference_in[rows] |= x_in[:here]
            covered[rows] |= x_covered[:here]
            samples_in[columns] |= y_in[:there]
            balls += int(y_count[:there].sum(dtype=np.int64))
    density, coverage = balls / (k_density * len(samples)), float(covered.mean())
    known = (density, coverage) if len(reference) > k_density else (None, None)
    return PRDC(float(samples_in.mean()), float(reference_in.mean()), *known)


def nearest(points: Array, others: Array, *, block: tuple[int, int] | None = None) -> tuple[Array, Array]:
    """Finds the nearest of others for each point, the first of equals.

    Args:
      points, others: [N, D] and [M, D] float32; may be np.memmaps, read a block at a time.
      block: rows and columns at a time; `BLOCKS` by default.

    Returns:
      (squared distances [N] float32, indices [N] int64)
    """
    block = _fitting(block or BLOCKS['float32'], points, others)
    best, which = np.full(len(points), np.inf, np.float32), np.zeros(len(points), np.int64)
    for columns, y in _blocks(others, block[1]):
        there = np.arange(block[1]) < columns.stop - columns.start
        for rows, x in _blocks(points, block[0]):
            distances, places = (np.asarray(it)[: rows.stop - rows.start] for it in _closest(x, y, there))
            nearer = distances < best[rows]
            best[rows] = np.where(nearer, distances, best[rows])
            which[rows] = np.where(nearer, columns.start + places, which[rows])
    return best, which


def radii(points: Array, ks: tuple[int, ...], *, dtype: str = 'float32', block: tuple[int, int] | None = None) -> Array:
    """Computes the squared distances [N, len(ks)] of points [N, D] to their k-th nearest others; inf of too few.

    The point itself is the nearest, at distance 0, so it is the k-th after that.
    """
    block = block or _fitting(BLOCKS[dtype], points)
    best = np.full((len(points), max(ks) + 1), np.inf, np.float32)
    for columns, y in _blocks(points, block[1]):
        there = np.arange(block[1]) < columns.stop - columns.start
        for rows, x in _blocks(points, block[0]):
            so_far = _padded(best[rows], block[0], np.inf)
            best[rows] = np.asarray(_nearest(x, y, there, so_far, dtype=dtype))[: rows.stop - rows.start]
    return best[:, ks]


def _fitting(block: tuple[int, int], *sets: Array) -> tuple[int, int]:
    """Returns a block that is no larger than the largest set."""
    most = max(map(len, sets))
    return min(block[0], most), min(block[1], most)


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
) -> tuple[jax.Array, ...]:
    """Finds who is in whose ball: `x_radii` are [n, 2], `y_radii` [m], and a negative radius is of no point.

    Returns:
      (x in a ball of a y, x with a y in its second ball, y in a first ball of an x, how many second balls of x y is in)
    """
    distances = _distances(x, y, dtype)
    first, second = distances <= x_radii[:, :1], distances <= x_radii[:, 1:]
    covered = jnp.any(second & (y_radii >= 0), axis=1)
    return jnp.any(distances <= y_radii, axis=1), covered, jnp.any(first, axis=0), jnp.sum(second, axis=0)


@jax.jit
def _closest(x: jax.Array, y: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the nearest y that is there for each x: (distances [n], places [n])."""
    distances = jnp.where(there, _distances(x, y, 'float32'), jnp.inf)
    return jnp.min(distances, axis=1), jnp.argmin(distances, axis=1)
