"""Precision, recall, density and coverage against brute force in exact arithmetic, torch-fidelity and prdc."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfg.metrics.neighbours import PRDC, nearest, prdc, radii
from tests.peers import metric_prc


def precision_recall(*args, **options):
    return prdc(*args, **options)[:2]


def squared_distances(x, y):
    return ((x[:, None].astype(np.int64) - y[None].astype(np.int64)) ** 2).sum(axis=2)


def brute_force(reference, samples, k):
    """By the definition, in whole numbers."""

    def radii(points):
        distances = squared_distances(points, points)
        return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(distances)])

    across = squared_distances(reference, samples)
    precision = (across <= radii(reference)[:, None]).any(axis=0).mean()
    recall = (across <= radii(samples)[None]).any(axis=1).mean()
    return precision, recall


def density_coverage(reference, samples, k):
    """By the definition of Naeem et al. 2020 (Eq. 3 and 4), border included, in the numbers' own arithmetic."""
    within = ((reference[:, None] - reference[None]) ** 2).sum(axis=2)
    radii = np.sort(within, axis=1)[:, k]  # the first is the point itself
    inside = ((reference[:, None] - samples[None]) ** 2).sum(axis=2) <= radii[:, None]
    return inside.sum() / (k * len(samples)), inside.any(axis=1).mean()


@given(
    seed=st.integers(0, 10_000),
    k=st.sampled_from([1, 3, 5]),
    spread=st.sampled_from([2, 4, 12]),
    sizes=st.tuples(st.integers(6, 20), st.integers(4, 20)),
)
def test_density_and_coverage_are_exact_ties_and_duplicates_included(seed, k, spread, sizes):
    rng = np.random.default_rng(seed)
    reference, samples = (rng.integers(0, spread, (size, 3)) for size in sizes)
    samples += rng.integers(0, 3)
    found = prdc(reference.astype(np.float32), samples.astype(np.float32), k_density=k, block=(5, 7))
    assert found[2:] == density_coverage(reference, samples, k)


@pytest.mark.parametrize('block', [None, (64, 50)])
@pytest.mark.parametrize('seed', range(3))
def test_all_four_agree_with_their_authors_code(seed, block):
    """In float64; no two distances are equal here, so that the border, which it leaves out, does not matter."""
    from prdc import compute_prdc

    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(300, 12)).astype(np.float32)
    samples = (1.1 * rng.normal(size=(400, 12)) + 0.3).astype(np.float32)
    theirs = compute_prdc(reference.astype(np.float64), samples.astype(np.float64), nearest_k=5)
    found = prdc(reference, samples, k=5, k_density=5, block=block)
    assert found._asdict() == pytest.approx(theirs, rel=1e-12)
    assert 0.3 < found.density < 0.9 and 0.5 < found.coverage < 0.95


def test_density_and_coverage_of_equal_distributions():
    """Density is then 1 in expectation, and coverage 1 - (1/2)^k for large sets of as many points (their Lemma 2)."""
    x, y = np.random.default_rng(0).normal(size=(2, 2000, 4)).astype(np.float32)
    found = prdc(x, y)
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.01)


def test_a_reference_with_no_more_points_than_the_neighbours_of_density_has_none():
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    assert prdc(x[:5], x) == PRDC(*precision_recall(x[:5], x), None, None)
    assert prdc(x, x[:4]).coverage is not None  # few samples are no obstacle


@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 3]), spread=st.sampled_from([2, 4, 12]))
def test_small_sets_are_exact_ties_and_duplicates_included(seed, k, spread):
    """Whole numbers this small are exact in float32; few of them make ties and equal points."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, spread, (17, 3))
    samples = rng.integers(0, spread, (23, 3)) + rng.integers(0, 3)
    found = precision_recall(reference.astype(np.float32), samples.astype(np.float32), k=k, block=(5, 7))
    assert found == brute_force(reference, samples, k)


def test_a_point_on_the_border_is_inside():
    """Three equal distances of 1 give the radius 1 at 0; a sample at 1 is on it, one at 1 + 2^-20 is not."""
    reference = np.array([[0.0], [1.0], [-1.0], [1.0]], np.float32)
    far = np.array([[-1.0], [9.0], [9.0], [9.0]], np.float32)
    assert precision_recall(reference, far)[0] >= 0.25
    reference = np.eye(4, dtype=np.float32)  # all distances are 2
    samples = np.array([[0, 0, 0, 1], [0, 0, 0, 1 + 2**-10], [1, 1, 0, 0], [2, 0, 1, 0]], np.float32)
    # Squared distances to the nearest reference point: 0, ~0, 1, 2: the last one is on the border.
    assert precision_recall(reference, samples)[0] == 1.0
    samples[3] = [2, 0, 1.001, 0]
    assert precision_recall(reference, samples)[0] == 0.75


@pytest.mark.parametrize('block', [None, (64, 50), (1000, 1000)])
def test_large_sets_agree_with_torch_fidelity(block):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(400, 12)).astype(np.float32)
    reference = (1.2 * rng.normal(size=(300, 12)) + 0.4).astype(np.float32)
    theirs = metric_prc.prc_features_to_metric(
        torch.from_numpy(samples).double(),
        torch.from_numpy(reference).double(),
        prc_neighborhood=3,
        prc_batch_size=100,
        save_cpu_ram=False,
        verbose=False,
    )
    precision, recall = precision_recall(reference, samples, block=block)
    assert 0.1 < precision < 0.95
    assert precision == pytest.approx(theirs[metric_prc.KEY_METRIC_PRECISION], abs=1e-6)
    assert recall == pytest.approx(theirs[metric_prc.KEY_METRIC_RECALL], abs=1e-6)


def test_equal_sets_cover_each_other_and_far_sets_do_not():
    x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100) == (0.0, 0.0)


def test_the_points_may_lie_on_disk(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 5)).astype('<f4')
    x.tofile(tmp_path / 'x')
    mapped = np.memmap(tmp_path / 'x', '<f4', 'r', shape=x.shape)
    y = x[:40] + 0.3
    assert precision_recall(mapped, y) == precision_recall(x, y)


def half_precision(reference, samples, k):
    """The evaluator's arithmetic in NumPy, one block."""

    def distances(x, y):
        x, y = x.astype(np.float16), y.astype(np.float16)
        norms = [np.sum(np.square(v), axis=1, dtype=np.float32).astype(np.float16) for v in (x, y)]
        product = (x.astype(np.float32) @ y.T.astype(np.float32)).astype(np.float16)
        return np.maximum(norms[0][:, None] - np.float16(2) * product + norms[1][None], np.float16(0))

    def radii(points):
        return np.partition(distances(points, points), k, axis=1)[:, k]

    across = distances(reference, samples)
    return (across <= radii(reference)[:, None]).any(axis=0).mean(), (across <= radii(samples)[None]).any(axis=1).mean()


def test_float16_is_coarser_than_float32_and_is_what_it_says():
    """Whole numbers with exact sums in float16, but for 2049 and its like: there it rounds, and so must we."""
    rng = np.random.default_rng(0)
    reference = (rng.integers(0, 40, (60, 2)) + 20).astype(np.float32)
    samples = (rng.integers(0, 40, (80, 2)) + 30).astype(np.float32)
    found = precision_recall(reference, samples, dtype='float16')
    assert found == half_precision(reference, samples, 3)
    assert found != precision_recall(reference, samples)


def test_a_block_that_float16_cannot_hold_is_computed_in_float32():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 20, (40, 3)).astype(np.float32) + 300  # norms above 65504
    samples = rng.integers(0, 20, (50, 3)).astype(np.float32) + 302
    assert precision_recall(reference, samples, dtype='float16') == precision_recall(reference, samples)
    # Only blocks in which something overflows change to float32; two distant groups in blocks of their own do not.
    low = rng.integers(0, 20, (40, 3)).astype(np.float32)
    mixed = precision_recall(low, low + 2, dtype='float16')
    assert mixed == half_precision(low, low + 2, 3)


def test_too_few_points_are_an_error():
    x = np.zeros((3, 2), np.float32)
    with pytest.raises(ValueError, match='more than 3 points'):
        precision_recall(x, x)
    with pytest.raises(ValueError, match='dtype'):
        precision_recall(x, x, dtype='int8')


@given(seed=st.integers(0, 10_000), spread=st.sampled_from([2, 4, 12]))
def test_the_nearest_of_others_is_exact_and_the_first_of_equals_and_radii_are_exact(seed, spread):
    rng = np.random.default_rng(seed)
    points, others = rng.integers(0, spread, (17, 3)), rng.integers(0, spread, (23, 3))
    across = squared_distances(points, others)
    found = nearest(points.astype(np.float32), others.astype(np.float32), block=(5, 7))
    np.testing.assert_array_equal(found, (across.min(axis=1), across.argmin(axis=1)))
    within = np.where(np.eye(17, dtype=bool), 10**6, squared_distances(points, points))
    found = radii(points.astype(np.float32), (1, 3), block=(5, 7))
    np.testing.assert_array_equal(found, np.sort(within, axis=1)[:, [0, 2]])
