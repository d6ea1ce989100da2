"""Computes FID, inception score, KID and MIND, in float64.

`frechet_distance` and `mmd2` take JAX's arrays too, in their precision; then they may be traced and differentiated.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cfg.metrics.moments import Moments, ScoreSums

Array = np.ndarray

LEAST_ROUNDS = 10  # of all labels, so that a tenth of the samples can hold each of them


def _library(*arrays: Any) -> Any:
    """Returns jax.numpy where any of the arrays is JAX's, else NumPy."""
    return next((of for array in arrays if (of := array.__array_namespace__()) is not np), np)


def _roots(values: Array) -> Array:
    """Computes square roots; rounding below 0 counts as 0, also in a gradient."""
    xp, positive = _library(values), values > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, values, 1.0)), 0.0)


def symmetric_sqrt(matrix: Array) -> Array:
    """Computes the square root of a symmetric positive semi-definite matrix; rounding below 0 counts as 0."""
    values, vectors = _library(matrix).linalg.eigh(matrix)
    return (vectors * _roots(values)) @ vectors.T


def frechet_distance(
    mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array, *, root_a: Array | None = None
) -> float | Array:
    """Computes |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500).

    The trace of the root is that of (S_a^(1/2) S_b S_a^(1/2))^(1/2), a symmetric matrix with the same
    eigenvalues: no complex rounding, and singular covariances are no special case.

    Args:
      mean_a: [D].
      cov_a: [D, D]. Equal eigenvalues of it have no gradient: differentiate with respect to the other Gaussian.
      mean_b: [D].
      cov_b: [D, D].
      root_a: S_a^(1/2), where it is known.

    Returns:
      A float; of JAX's arrays one of shape [].
    """
    xp = _library(mean_a, cov_a, mean_b, cov_b)
    root = symmetric_sqrt(cov_a) if root_a is None else root_a
    trace_of_root = _roots(xp.linalg.eigvalsh(root @ cov_b @ root)).sum()
    distance = xp.sum((mean_a - mean_b) ** 2) + xp.trace(cov_a) + xp.trace(cov_b) - 2.0 * trace_of_root
    distance = xp.maximum(distance, 0.0)
    return float(distance) if xp is np else distance


def fid(samples: Moments, reference: Moments) -> float:
    """Computes the Frechet distance of two sets of features, of whatever network they are."""
    return frechet_distance(samples.mean, samples.covariance(), reference.mean, reference.covariance())


class Extrapolated(NamedTuple):
    """Holds what a score tends to."""

    value: float  # may be below 0
    standard_error: float  # of the fit; how much another set of samples would differ is not in it


def rounds_of(count: int, labels: Array | None, rng: np.random.Generator) -> Array:
    """Orders samples at random, [K, n] indices, so that any columns of it are alike to any others.

    Where each of K labels occurs equally often, `LEAST_ROUNDS` times at least, a column holds each of them once; else a
    column is one sample.

    Args:
      labels: [count], if known.
    """
    order = rng.permutation(count)
    if labels is not None:
        sizes = np.unique(labels, return_counts=True)[1]
        if sizes[0] >= LEAST_ROUNDS and (sizes == sizes[0]).all():
            return order[np.argsort(labels[order], kind='stable')].reshape(len(sizes), -1)
    return order[None]


def fid_at_infinity(
    samples: Array,
    mean: Array,
    cov: Array,
    *,
    seed: int,
    labels: Array | None = None,
    num_points: int = 15,
    chunk: int = 5000,
) -> Extrapolated | None:
    """Extrapolates the FID of samples to infinitely many of them (Chong & Forsyth 2020, arXiv 1911.07023).

    FID of n samples is linear in 1/n to first order. A line is fitted to those of random subsets, whose sizes go evenly
    from a tenth of all (5000 of 50,000, as in the authors' code) to all. Fewer than twice the features are too few: the
    bias of so few is not linear. The bias that a finite reference adds stays.

    Args:
      samples: [N, D]; may be a np.memmap, read `chunk` vectors at a time.
      mean: of the reference, float64 [D].
      cov: likewise, [D, D].
      labels: of the samples, if known; where each occurs equally often, it does so in each subset.

    Returns:
      The fit's value at 1/n = 0; None for N < 4 D, where sizes would span less than a factor of 2.
    """
    count, width = samples.shape
    if count < 4 * width:
        return None
    sizes = np.linspace(max(count // 10, 2 * width), count, num_points).astype(int)
    rng, root, inverse, fids = np.random.default_rng(seed), symmetric_sqrt(cov), [], []
    for size in sizes:
        order = rounds_of(count, labels, rng)
        chosen = np.sort(order[:, : size // len(order)], axis=None)
        of_subset = Moments.of_parts(samples[chosen[at : at + chunk]] for at in range(0, len(chosen), chunk))
        inverse.append(1 / len(chosen))
        fids.append(frechet_distance(mean, cov, of_subset.mean, of_subset.covariance(), root_a=root))
    (_, value), covariance = np.polyfit(inverse, fids, 1, cov=True)
    return Extrapolated(float(value), math.sqrt(covariance[1, 1]))


def inception_score(splits: Sequence[ScoreSums]) -> tuple[float, float]:
    """Computes exp of the mean KL(p(y | sample) || p(y)) of each split (Salimans et al. 2016, arXiv 1606.03498).

    Returns:
      (mean over splits, standard deviation over splits); 1 <= score <= number of classes.
    """
    scores = []
    for split in splits:
        marginal = split.probabilities / split.count
        entropy = -np.sum(np.where(marginal > 0, marginal * np.log(np.where(marginal > 0, marginal, 1.0)), 0.0))
        scores.append(np.exp(split.negentropy / split.count + entropy))
    return float(np.mean(scores)), float(np.std(scores))


def fids_of_draws(features: Array, draws: Sequence[Array], *, chunk: int = 5000) -> list[float]:
    """Computes the FID to features of each of several draws of them: the floor that a number of samples alone sets.

    A model that has the distribution of these features scores no less on average, with labels drawn in the same way.

    Args:
      features: [M, D], of real images; may be a np.memmap, read `chunk` vectors at a time.
      draws: of each the indices that were drawn, with replacement; [n] with n > 1.
    """
    parts = [slice(start, start + chunk) for start in range(0, len(features), chunk)]
    whole = Moments.of_parts(features[part] for part in parts)
    mean, cov = whole.mean, whole.covariance()
    root, found = symmetric_sqrt(cov), []
    for drawn in draws:
        times = np.bincount(drawn, minlength=len(features))
        chosen = [part for part in parts if times[part].any()]
        of_draw = Moments.of_parts(np.repeat(features[part], times[part], axis=0) for part in chosen)
        found.append(frechet_distance(mean, cov, of_draw.mean, of_draw.covariance(), root_a=root))
    return found


def mind(samples: Array, reference: Array, *, seed: int, count: int = 5000, num_directions: int = 1000) -> float:
    """Computes the Monge Inception distance (Berthet et al. 2026, arXiv 2605.06797).

    It is 3 D times the mean, over random unit directions, of the squared Wasserstein distance between what both sets
    project to: 3 |v|^2 in expectation where they differ by a shift v. Of fewer vectors it is larger. The factor, and
    how many vectors and directions, are those of torch-fidelity and others.

    Args:
      samples, reference: [N, D] and [M, D]; may be np.memmaps. `count` of each are drawn, or as many as both have.
    """
    rng, size = np.random.default_rng(seed), min(count, len(samples), len(reference))
    directions = rng.standard_normal((num_directions, samples.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # Optimal transport on a line pairs the sorted.
    drawn = (vectors[np.sort(rng.choice(len(vectors), size, replace=False))] for vectors in (samples, reference))
    ours, theirs = (np.sort(directions @ np.asarray(vectors, np.float64).T, axis=1) for vectors in drawn)
    return float(3 * samples.shape[1] * np.mean((ours - theirs) ** 2))


class KID(NamedTuple):
    """Holds the kernel inception distance."""

    value: float  # mean over subsets
    std: float  # standard deviation over subsets, which is what is published beside it
    # of the value, as an estimate for the distributions; nan where the subsets are all there is, or there is one alone
    standard_error: float


def kid(samples: Array, reference: Array, *, num_subsets: int, subset_size: int, seed: int) -> KID:
    """Estimates squared MMD with the kernel (x.y / D + 1)^3, unbiased, over random subsets (Binkowski et al. 2018,
    arXiv 1801.01401).

    The subsets are those of torch-fidelity for the same seed. They overlap, so the spread over subsets is not the error
    of the value: for subsets of m of n vectors, drawn without replacement, a statistic that is close to a mean of
    terms with variance s^2 has variance s^2 (1/m - 1/n) over subsets and s^2 / n over data sets. So the error is taken
    as std sqrt(m / (n - m) + 1 / num_subsets), with n the smaller of both numbers of vectors.

    Args:
      samples, reference: [N, D] and [M, D], at least subset_size vectors each.
      subset_size: m, at least 2.
    """
    rng = np.random.RandomState(seed)

    def subset(vectors: Array) -> Array:
        return np.asarray(vectors[rng.choice(len(vectors), subset_size, replace=False)], np.float64)

    values = [mmd2(subset(samples), subset(reference)) for _ in range(num_subsets)]
    spread, count = float(np.std(values)), min(len(samples), len(reference))
    error = math.nan
    if count > subset_size and num_subsets > 1:
        error = spread * math.sqrt(subset_size / (count - subset_size) + 1 / num_subsets)
    return KID(float(np.mean(values)), spread, error)


def mmd2(x: Array, y: Array) -> float | Array:
    """Estimates squared MMD of two sets, [m, D] each, with KID's kernel: without a bias, so it may be below 0."""
    m = len(x)
    xx, yy = polynomial_kernel(x, x), polynomial_kernel(y, y)
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return within / (m * (m - 1)) - 2.0 * polynomial_kernel(x, y).sum() / (m * m)


def polynomial_kernel(a: Array, b: Array) -> Array:
    """Computes KID's kernel (x.y / D + 1)^3 of all pairs of [N, D] and [M, D], in float64 if in NumPy: [N, M]."""
    if _library(a, b) is np:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a @ b.T / a.shape[1] + 1.0) ** 3
