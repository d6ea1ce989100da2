"""Measures how far samples in the plane are from an exact guided density, and from as many exact draws of it.

A density is integrated by the midpoint rule on a fine square grid over [-2 extent, 2 extent]^2: for its masses in the
cells of Fig. 2, and along each of several directions, on grids turned into them, for its marginals.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import mixture

# The panels of Fig. 2 have NUM_BINS x NUM_BINS cells of SUBCELLS x SUBCELLS points of the fine grid.
NUM_BINS = 40
SUBCELLS = 5
# Points of the fine grid along a side, which is twice the panel.
FINE = 2 * NUM_BINS * SUBCELLS
PANEL = slice(FINE // 4, -FINE // 4)
NUM_DIRECTIONS = 16
FLOOR_DRAWS = 8
# The two logarithms that every guided density of a mixture is made of, log p(z | c) and log p(c | z) of every class:
# both [K, rows, FINE], the last axis along the first direction of a square grid, turned or not.
Terms = tuple[np.ndarray, np.ndarray]
METRICS = ('sliced_w2', 'kl', 'total_variation')
# Strata of the quantile functions that a search over w compares.
STRATA = 500


def wasserstein_2(values: np.ndarray, edges: np.ndarray, cdf: np.ndarray) -> float:
    """Computes W_2 on the line, (int_0^1 (F_values^-1(u) - F^-1(u))^2 du)^(1/2), by the midpoint rule over M draws.

    F is the distribution function, given at `edges` from 0 to 1 and linear in between.
    """
    exact = np.interp((np.arange(len(values)) + 0.5) / len(values), cdf, edges)
    return float(np.sqrt(np.mean(np.square(np.sort(values) - exact))))


def directions(count: int) -> np.ndarray:
    """Returns unit vectors at equal angles over half a circle: [count, 2]."""
    angles = np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def kl_divergence(drawn: np.ndarray, log_exact: np.ndarray) -> float:
    """Computes sum drawn (log drawn - log exact), in nats, over cells: at most the KL divergence of the distributions.

    Args:
      drawn: fractions of sum 1, [cells]. Of M samples they are noisy, which adds about (occupied cells - 1) / 2M; it is
        not taken off, the same is in the value of M exact draws.
      log_exact: logarithms of the exact masses, [cells].
    """
    seen = drawn > 0.0
    return float(np.sum(drawn[seen] * (np.log(drawn[seen]) - log_exact[seen])))


def histogram(x: np.ndarray, *, extent: float) -> np.ndarray:
    """Counts x [M, 2] in the cells of [-extent, extent]^2 as fractions [NUM_BINS, NUM_BINS], with rows along x_2."""
    edges = np.linspace(-extent, extent, NUM_BINS + 1)
    counts, _, _ = np.histogram2d(x[:, 1], x[:, 0], bins=(edges, edges))
    return counts / len(x)


def total_variation(drawn: np.ndarray, exact: np.ndarray) -> float:
    """Sums |drawn - exact| / 2 over the cells and the outside, where `exact` (of sum 1) has no mass: in [0, 1]."""
    return float(0.5 * (np.abs(drawn - exact).sum() + (1.0 - drawn.sum())))


class Target:
    """A target is one guided density, p(z | c) p(c | z)^w normalised."""

    def __init__(self, densities: 'GuidedDensities', label: int, w: float):
        self._densities, self._label, self._w = densities, label, w
        self.extent, self.edges = densities.extent, densities.edges

    @functools.cached_property
    def log_masses(self) -> np.ndarray:
        """Returns the logarithms of the masses on the fine grid, rows along z_2: [FINE, FINE]."""
        return _log_masses(self._densities.flat, self._label, self._w)

    @functools.cached_property
    def cdfs(self) -> np.ndarray:
        """Returns the distribution functions of z along the `directions` at `edges`: [NUM_DIRECTIONS, FINE + 1]."""
        return self._densities.cdfs(self._label, self._w)

    @property
    def log_fine(self) -> np.ndarray:
        """Returns the logarithms of the masses at the points of the panel: [NUM_BINS SUBCELLS, NUM_BINS SUBCELLS]."""
        return self.log_masses[PANEL, PANEL]

    @functools.cached_property
    def log_cells(self) -> np.ndarray:
        """Returns log masses of the NUM_BINS x NUM_BINS cells of the panel, and of all outside: [NUM_BINS^2 + 1]."""
        outside = np.ones((FINE, FINE), bool)
        outside[PANEL, PANEL] = False
        cells = _log_sum_exp(self.log_fine.reshape(NUM_BINS, SUBCELLS, NUM_BINS, SUBCELLS), axis=(1, 3))
        return np.append(cells.ravel(), _log_sum_exp(self.log_masses[outside]))

    @property
    def panel(self) -> np.ndarray:
        """Returns the masses of the cells of the panel, rows along z_2: [NUM_BINS, NUM_BINS]."""
        return np.exp(self.log_cells[:-1]).reshape(NUM_BINS, NUM_BINS)

    @functools.cached_property
    def _cumulative(self) -> np.ndarray:
        return np.cumsum(np.exp(self.log_masses).ravel())

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws exactly, up to the grid: a cell by its mass, uniform inside the cell. Returns [count, 2]."""
        cell = np.searchsorted(self._cumulative, rng.random(count) * self._cumulative[-1])
        place = np.stack([cell % FINE, cell // FINE], axis=1) + rng.random((count, 2))
        return self.edges[0] + place * (self.edges[1] - self.edges[0])

    def distances(self, x: np.ndarray) -> dict[str, float]:
        """Computes the distances of samples x [M, 2] to this density.

        Returns:
          sliced_w2: (the mean of W_2^2 over the directions)^(1/2), in the units of x.
          kl: KL(samples || density) in nats, on the cells of the panel and the outside.
          total_variation: on the cells of the panel, with the density normalised inside, as in Fig. 2.
        """
        projected = x @ directions(NUM_DIRECTIONS).T
        each = [wasserstein_2(values, self.edges, cdf) for values, cdf in zip(projected.T, self.cdfs, strict=True)]
        drawn = histogram(x, extent=self.extent)
        return {
            'sliced_w2': float(np.sqrt(np.mean(np.square(each)))),
            'kl': kl_divergence(np.append(drawn.ravel(), max(1.0 - drawn.sum(), 0.0)), self.log_cells),
            'total_variation': total_variation(drawn, self.panel / self.panel.sum()),
        }

    def floor(self, count: int, rng: np.random.Generator) -> list[dict[str, float]]:
        """Computes the distances of as many exact draws, FLOOR_DRAWS times."""
        return [self.distances(self.draw(count, rng)) for _ in range(FLOOR_DRAWS)]


class GuidedDensities:
    """These are all guided densities of a mixture of K Gaussians in the plane, at one noise level.

    The logarithms that they are made of are computed once. `extent` is half the width of the panels; twice of it must
    contain the densities.
    """

    def __init__(self, gaussians: mixture.GaussianMixture, *, logsnr: float, extent: float):
        self.extent, self._labels = extent, range(gaussians.null_label)
        self.edges = np.linspace(-2.0 * extent, 2.0 * extent, FINE + 1)  # of the fine grid along a side
        self._centres = self.edges[:-1] + 2.0 * extent / FINE
        self._terms = functools.partial(_terms, gaussians, logsnr=logsnr)

    def target(self, label: int, w: float) -> Target:
        """Returns the density of a class at strength w."""
        return Target(self, label, w)

    def targets(self, w: float) -> list[Target]:
        """Returns the densities of all classes at strength w."""
        return [self.target(label, w) for label in self._labels]

    @functools.cached_property
    def flat(self) -> Terms:
        """Returns the terms on the fine grid."""
        return self._terms(np.stack(np.meshgrid(self._centres, self._centres), axis=-1))

    @functools.cached_property
    def _turned(self) -> list[Terms]:
        # For the integral across a direction half of the points are plenty: the midpoint rule is good for smooth tails.
        along, across = np.meshgrid(self._centres, 0.5 * (self._centres[::2] + self._centres[1::2]))
        return [
            self._terms(along[..., None] * one + across[..., None] * np.array([-one[1], one[0]]))
            for one in directions(NUM_DIRECTIONS)
        ]

    def cdfs(self, label: int, w: float) -> np.ndarray:
        """Returns the distribution functions along the `directions` at `edges`: [NUM_DIRECTIONS, FINE + 1]."""
        marginals = [np.exp(_log_masses(terms, label, w)).sum(axis=0) for terms in self._turned]
        cdfs = np.cumsum(np.pad(marginals, ((0, 0), (1, 0))), axis=1)
        return cdfs / cdfs[:, -1:]

    def quantiles(self, w: float) -> np.ndarray:
        """Returns quantiles of all classes along all directions in STRATA strata: [K, NUM_DIRECTIONS, STRATA]."""
        u = (np.arange(STRATA) + 0.5) / STRATA
        return np.array([[np.interp(u, cdf, self.edges) for cdf in self.cdfs(label, w)] for label in self._labels])


def sample_quantiles(x: np.ndarray) -> np.ndarray:
    """Returns what `GuidedDensities.quantiles` does, of samples [K, M, 2]: means of strata of sorted projections."""
    projected = np.sort(np.swapaxes(x @ directions(NUM_DIRECTIONS).T, 1, 2), axis=-1)
    count = projected.shape[-1]
    starts = (np.arange(STRATA) * count) // STRATA
    if count < STRATA:
        return projected[..., starts]
    return np.add.reduceat(projected, starts, axis=-1) / np.diff(np.append(starts, count))


def nearest(x: np.ndarray, tables: np.ndarray) -> int:
    """Finds the guided densities that samples [K, M, 2] are nearest to, in the mean of W_2^2 over classes.

    The tables are those of `GuidedDensities.quantiles`, one for each w. Returns the place of one of them.
    """
    return int(np.argmin(np.mean(np.square(tables - sample_quantiles(x)), axis=(1, 2, 3))))


def _log_sum_exp(values: np.ndarray, axis: tuple[int, ...] | None = None) -> np.ndarray:
    """Computes log sum exp of masses that would underflow."""
    top = values.max(axis=axis, keepdims=True)
    return np.log(np.exp(values - top).sum(axis=axis)) + np.squeeze(top, axis=axis)


def _log_masses(terms: Terms, label: int, w: float) -> np.ndarray:
    """Computes log of p(z | c) p(c | z)^w at the points, normalised to sum 1: [rows, FINE]."""
    log_cond, log_posterior = terms
    values = log_cond[label].astype(np.float64) + w * log_posterior[label]
    return values - _log_sum_exp(values)


def _terms(gaussians: mixture.GaussianMixture, points: np.ndarray, logsnr: float) -> Terms:
    """Computes log p(z | c) and log p(c | z) of every class at points [rows, FINE, 2], each [K, rows, FINE]."""
    log_cond, log_posterior = _logarithms(gaussians, jnp.asarray(points.reshape(-1, 2), jnp.float32), logsnr)
    shape = (gaussians.null_label, *points.shape[:-1])
    return np.asarray(log_cond).reshape(shape), np.asarray(log_posterior).reshape(shape)


@jax.jit
def _logarithms(gaussians, z, logsnr):
    """Computes log p(z | c) and log p(c | z) of every class, each [K, points]."""
    labels = (jnp.full(len(z), label) for label in range(gaussians.null_label))
    log_cond = [mixture.log_density(gaussians, z, logsnr, each) for each in labels]
    return jnp.stack(log_cond), mixture.log_class_posterior(gaussians, z, logsnr).T
