"""Estimates the standard errors of FID, inception score and KID by leaving out one block of samples at a time.

A statistic t of n samples in B blocks of about the same size has the values t_1 ... t_B without block 1 ... B. With
their mean t_m, the variance of t is taken as (B - 1) / B sum (t_b - t_m)^2, and its bias as (B - 1) (t_m - t): the
delete-a-group form of the jackknife (Quenouille 1956, Kott 2001). An interval takes Student's t with B - 1 degrees of
freedom. Blocks must be alike: of samples that are independent, or that each hold every label equally often. Where they
are not, the spread between classes is taken for that of the samples, and the error comes out many times too large.

FID and the inception score are biased: an interval around them is for what as many samples score, and one around the
value less its bias for the distributions. FID has no linear part where these are the same, and the error is then rough.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cfg.metrics.distances import frechet_distance, inception_score, polynomial_kernel, rounds_of, symmetric_sqrt
from cfg.metrics.moments import Moments, ScoreSums

Array = np.ndarray

BLOCKS = 20


class Jackknife(NamedTuple):
    """Holds what leaving out blocks says of a statistic."""

    value: float  # of all samples
    standard_error: float
    bias: float  # value - bias is the statistic without the part of its bias that falls as 1 / n
    blocks: int  # B

    @classmethod
    def of(cls, value: float, without: Sequence[float]) -> 'Jackknife':
        """Makes it of the statistic of all samples and those without each block, 2 or more."""
        without, count = np.asarray(without, np.float64), len(without)
        if count < 2:
            raise ValueError(f'a jackknife needs at least 2 blocks, not {count}')
        spread = math.sqrt((count - 1) * np.var(without))
        return cls(float(value), spread, float((count - 1) * (without.mean() - value)), count)


def block_slices(count: int, blocks: int = BLOCKS) -> list[slice]:
    """Cuts `count` samples into consecutive blocks whose sizes differ by one at most; fewer than asked for if few."""
    ends = np.linspace(0, count, min(blocks, count) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]


def blocks_of(count: int, labels: Array | None = None, *, blocks: int = BLOCKS) -> list[Array]:
    """Cuts samples into blocks that are alike, in whatever order they come.

    Where each label occurs equally often, as in balanced draws, it does so in each block. Else blocks are random. These
    serve labels drawn at random; of balanced labels with too few samples each, their errors are too large.

    Args:
      labels: [count], if known.

    Returns:
      The indices of each block.
    """
    order = rounds_of(count, labels, np.random.default_rng(0))
    return [order[:, cut].T.ravel() for cut in block_slices(order.shape[1], blocks)]


def moments_without(whole: Moments, part: Moments) -> Moments:
    """Returns the moments of what is in the whole and not in the part: what `merge` undoes."""
    count = whole.count - part.count
    mean = whole.mean + (whole.mean - part.mean) * (part.count / count)
    delta = part.mean - mean
    scatter = whole.scatter - part.scatter
    scatter -= np.outer(delta, delta * (count * part.count / whole.count))
    return Moments(count, mean, scatter)


def fid(
    features: Array, mean: Array, cov: Array, *, whole: Moments | None = None, blocks: Sequence[Array] | None = None
) -> Jackknife:
    """Estimates the error of the Frechet distance of features [n, D] to a Gaussian that is known.

    One block's moments are held at a time, and one eigenvalue problem is solved for each: the reference's root serves
    all of them.

    Args:
      features: of the samples. It may be a file that is mapped.
      mean, cov: of the reference, [D] and [D, D].
      whole: moments of all the features, where they are known.
      blocks: see `blocks_of`; random ones if none are given.
    """
    blocks = blocks or blocks_of(len(features))
    root = symmetric_sqrt(cov)

    def distance(moments: Moments) -> float:
        return frechet_distance(mean, cov, moments.mean, moments.covariance(), root_a=root)

    if whole is None:
        whole = Moments.of_parts(features[block] for block in blocks)
    parts = (Moments.of(features[block]) for block in blocks)
    return Jackknife.of(distance(whole), [distance(moments_without(whole, part)) for part in parts])


def inception_score_error(sums: Sequence[ScoreSums], split_size: int, *, blocks: int = BLOCKS) -> float:
    """Estimates the standard error of the inception score, the mean over splits; nan where a split is one block.

    Splits are independent, so the variance of the mean is the sum of theirs, divided by their number squared.

    Args:
      sums: of consecutive samples, small blocks that are alike and end where the splits end; up to `blocks` of a split
        are taken, each of neighbours together.
    """
    ends = np.cumsum([it.count for it in sums])
    places = (ends - 1) // split_size
    splits = [[it for it, at in zip(sums, places, strict=True) if at == place] for place in np.unique(places)]
    if any(len(split) < 2 for split in splits):
        return math.nan
    errors = [
        _split([functools.reduce(ScoreSums.merge, split[cut]) for cut in block_slices(len(split), blocks)])
        for split in splits
    ]
    return math.hypot(*(it.standard_error for it in errors)) / len(splits)


def _split(blocks: Sequence[ScoreSums]) -> Jackknife:
    whole = functools.reduce(ScoreSums.merge, blocks)
    rest = (ScoreSums(-block.count, -block.probabilities, -block.negentropy) for block in blocks)
    return Jackknife.of(_score(whole), [_score(whole.merge(it)) for it in rest])


def _score(sums: ScoreSums) -> float:
    # What is left of a sum without all its terms is 0 but for rounding.
    return inception_score([ScoreSums(sums.count, np.maximum(sums.probabilities, 0.0), sums.negentropy)])[0]


def kid(
    samples: Array, reference: Array, *, blocks: Sequence[Array] | None = None, real: Sequence[Array] | None = None
) -> Jackknife:
    """Estimates squared MMD of all vectors with KID's kernel, without a bias, and its error over both sets.

    The error counts the draw of the samples and that of the reference: variances of independent sets add. All pairs are
    taken, a pair of blocks at a time, so the time is quadratic in the number of vectors.

    Args:
      samples, reference: [N, D] and [M, D]; vectors that are in no block are left out.
      blocks, real: of the samples and of the reference, see `blocks_of`; random ones if none are given.
    """
    xs, ys = blocks or blocks_of(len(samples)), real or blocks_of(len(reference))
    xx, yy = _within(samples, xs), _within(reference, ys)
    xy = np.array([[polynomial_kernel(samples[a], reference[b]).sum() for b in ys] for a in xs])
    x_sizes, y_sizes = (np.array([len(block) for block in of]) for of in (xs, ys))
    n, m = x_sizes.sum(), y_sizes.sum()

    def rest(sums: Array) -> Array:
        return sums.sum() - 2 * sums.sum(axis=1) + np.diag(sums)

    within_x, within_y = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1))
    value = within_x + within_y - 2 * xy.sum() / (n * m)
    left, right = n - x_sizes, m - y_sizes
    no_x = rest(xx) / (left * (left - 1)) + within_y - 2 * (xy.sum() - xy.sum(axis=1)) / (left * m)
    no_y = within_x + rest(yy) / (right * (right - 1)) - 2 * (xy.sum() - xy.sum(axis=0)) / (n * right)
    of_x, of_y = Jackknife.of(value, no_x), Jackknife.of(value, no_y)
    error = math.hypot(of_x.standard_error, of_y.standard_error)
    return Jackknife(float(value), error, 0.0, min(of_x.blocks, of_y.blocks))


def _within(vectors: Array, cuts: Sequence[Array]) -> Array:
    """Sums the kernel over pairs of two vectors for each pair of blocks, [B, B]."""
    sums = np.zeros((len(cuts), len(cuts)))
    for i, a in enumerate(cuts):
        for j, b in enumerate(cuts[: i + 1]):
            kernel = polynomial_kernel(vectors[a], vectors[b])
            sums[i, j] = sums[j, i] = kernel.sum() - (np.trace(kernel) if i == j else 0.0)
    return sums
