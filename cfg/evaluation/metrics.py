"""FID and inception score from statistics, in float64."""

from collections.abc import Sequence

import numpy as np

from cfg.evaluation.statistics import Moments, ScoreSums

Array = np.ndarray


def _symmetric_sqrt(matrix: Array) -> Array:
    """The square root of a symmetric positive semi-definite matrix; rounding below 0 counts as 0."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500).

    The trace of the root is that of (S_a^(1/2) S_b S_a^(1/2))^(1/2), a symmetric matrix with the same
    eigenvalues: no complex rounding, and singular covariances are no special case.

    Args:
      mean_a, mean_b: [D].
      cov_a, cov_b: [D, D], symmetric.
    """
    root = _symmetric_sqrt(cov_a)
    eigenvalues = np.linalg.eigvalsh(root @ cov_b @ root)
    trace_of_root = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2.0 * trace_of_root
    return float(max(distance, 0.0))


def fid(samples: Moments, reference: Moments) -> float:
    """The Frechet distance of two sets of features; its name says nothing of whose features they are."""
    return frechet_distance(samples.mean, samples.covariance(), reference.mean, reference.covariance())


def inception_score(splits: Sequence[ScoreSums]) -> tuple[float, float]:
    """exp of the mean KL(p(y | sample) || p(y)) of each split (Salimans et al. 2016, arXiv 1606.03498).

    Returns:
      (mean over splits, standard deviation over splits); 1 <= score <= number of classes.
    """
    scores = []
    for split in splits:
        marginal = split.probabilities / split.count
        entropy = -np.sum(np.where(marginal > 0, marginal * np.log(np.where(marginal > 0, marginal, 1.0)), 0.0))
        scores.append(np.exp(split.negentropy / split.count + entropy))
    return float(np.mean(scores)), float(np.std(scores))
