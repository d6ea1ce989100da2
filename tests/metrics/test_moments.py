import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cfg.metrics import distances
from cfg.metrics.moments import Moments, ScoreSums, Splits


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), seed=st.integers(0, 99), offset=st.floats(-1e4, 1e4))
def test_moments_of_pieces_are_those_of_the_whole(sizes, seed, offset):
    pieces = [np.random.default_rng(seed + i).normal(size=(n, 3)) + offset for i, n in enumerate(sizes)]
    whole = np.concatenate(pieces)
    left = Moments.empty(3)
    for piece in pieces:
        left = left.merge(Moments.of(piece))
    right = Moments.of(pieces[-1])
    for piece in reversed(pieces[:-1]):
        right = Moments.of(piece).merge(right)
    for moments in (left, right):
        assert moments.count == len(whole)
        np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-12, atol=1e-12)
        if len(whole) > 1:
            np.testing.assert_allclose(moments.covariance(), np.cov(whole.T), atol=1e-8)


@given(data=st.data(), width=st.integers(1, 4))
def test_any_order_and_any_tree_of_merges_give_the_same_moments_and_fid(data, width):
    vectors = np.random.default_rng(width).normal(size=(24, width)) * np.arange(1, width + 1) + 5
    order = data.draw(st.permutations(range(24)))
    cuts = sorted(data.draw(st.sets(st.integers(1, 23), max_size=8)))
    parts = [Moments.of(vectors[piece]) for piece in np.split(np.array(order), cuts)]
    while len(parts) > 1:
        left = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        right = data.draw(st.integers(0, len(parts) - 1))
        parts[right] = parts[right].merge(left)
    (merged,), whole = parts, Moments.of(vectors)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance(), whole.covariance(), rtol=1e-9, atol=1e-11)
    reference = Moments.of(np.random.default_rng(9).normal(size=(40, width)))
    assert distances.fid(merged, reference) == pytest.approx(distances.fid(whole, reference), rel=1e-9)


def test_merging_nothing_changes_nothing():
    moments = Moments.of(np.random.default_rng(0).normal(size=(5, 2)))
    for merged in (moments.merge(Moments.empty(2)), Moments.empty(2).merge(moments)):
        np.testing.assert_allclose(merged.covariance(), moments.covariance())
    assert Moments.empty(2).merge(Moments.empty(2)).count == 0


def test_a_covariance_needs_two():
    with pytest.raises(ValueError, match='at least 2'):
        Moments.of(np.zeros((1, 2))).covariance()


def random_covariance(rng, dim, rank=None):
    factor = rng.normal(size=(dim, rank or dim))
    return factor @ factor.T


@given(dim=st.integers(1, 8), seed=st.integers(0, 999))
def test_frechet_distance_against_scipys_square_root(dim, seed):
    rng = np.random.default_rng(seed)
    mean_a, mean_b = rng.normal(size=(2, dim))
    cov_a, cov_b = random_covariance(rng, dim), random_covariance(rng, dim)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root.real)
    got = distances.frechet_distance(mean_a, cov_a, mean_b, cov_b)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-6 * np.trace(cov_a + cov_b))
    assert distances.frechet_distance(mean_b, cov_b, mean_a, cov_a) == pytest.approx(got, rel=1e-6, abs=1e-7)


def test_frechet_distance_of_known_gaussians():
    """In one dimension (m_a - m_b)^2 + (s_a - s_b)^2; so too for each axis of diagonal covariances."""
    assert distances.frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]])) == 5.0
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 0.0])
    got = distances.frechet_distance(np.zeros(3), np.diag(a), np.ones(3), np.diag(b))
    assert got == pytest.approx(3 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2))


def test_frechet_distance_of_singular_covariances():
    rng = np.random.default_rng(0)
    cov = random_covariance(rng, 6, rank=2)
    assert distances.frechet_distance(np.zeros(6), cov, np.zeros(6), cov) == pytest.approx(0.0, abs=1e-6)
    # Orthogonal supports: the cross term vanishes.
    a, b = np.diag([1.0, 2.0, 0.0, 0.0]), np.diag([0.0, 0.0, 3.0, 4.0])
    assert distances.frechet_distance(np.zeros(4), a, np.zeros(4), b) == pytest.approx(10.0)


@given(count=st.integers(1, 60), size=st.integers(1, 25), batch=st.integers(1, 17), seed=st.integers(0, 99))
def test_inception_score_of_a_stream_is_that_of_consecutive_splits(count, size, batch, seed):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(count, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    splits = Splits(size)
    for start in range(0, count, batch):
        splits.add(np.log(p[start : start + batch]))
    expected = []
    for start in range(0, count, size):
        part = p[start : start + size]
        expected.append(np.exp(np.mean([scipy.stats.entropy(row, part.mean(axis=0)) for row in part])))
    mean, std = distances.inception_score(splits.sums)
    assert [s.count for s in splits.sums] == [min(size, count - start) for start in range(0, count, size)]
    assert mean == pytest.approx(np.mean(expected))
    assert std == pytest.approx(np.std(expected), abs=1e-9)


def test_inception_score_at_its_ends():
    sure = np.log(np.maximum(np.eye(5), 0.0), where=np.eye(5) > 0, out=np.full((5, 5), -np.inf))
    assert distances.inception_score([ScoreSums.of(sure)])[0] == pytest.approx(5.0)
    unsure = np.log(np.full((7, 5), 0.2))
    assert distances.inception_score([ScoreSums.of(unsure)])[0] == pytest.approx(1.0)
    one_class = np.tile(sure[:1], (4, 1))
    assert distances.inception_score([ScoreSums.of(one_class)])[0] == pytest.approx(1.0)
