"""The jackknife over blocks: against the definition, known errors of means, and the coverage of its intervals."""

import math
import types

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cfg.evaluation.measurement import Measurement
from cfg.features.network import Features
from cfg.metrics import distances, jackknife
from cfg.metrics.moments import Moments, ScoreSums, Splits

REPETITIONS, BLOCKS = 200, jackknife.BLOCKS
T_95 = scipy.stats.t.ppf(0.975, BLOCKS - 1)


def direct(statistic, array, cuts):
    """Computes the standard error and the bias by the definition, each time from what is left."""
    values = np.array([statistic(np.delete(array, cut, axis=0)) for cut in cuts])
    scale = (len(cuts) - 1) / len(cuts)
    error = math.sqrt(scale * np.sum((values - values.mean()) ** 2))
    return error, (len(cuts) - 1) * (values.mean() - statistic(array))


def covered(intervals, truth):
    return np.mean([abs(value - truth) <= T_95 * error for value, error in intervals])


@given(count=st.integers(1, 300), blocks=st.integers(1, 40))
def test_blocks_are_a_partition_into_equal_parts(count, blocks):
    cuts = jackknife.block_slices(count, blocks)
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(count))
    sizes = {cut.stop - cut.start for cut in cuts}
    assert len(cuts) == min(blocks, count) and max(sizes) - min(sizes) <= 1 <= min(sizes)


@given(
    repeats=st.integers(2, 30),
    classes=st.integers(1, 12),
    blocks=st.integers(2, 20),
    kind=st.sampled_from(['periods', 'sorted', 'mixed', 'random']),
)
def test_blocks_of_balanced_labels_hold_each_equally_often(repeats, classes, blocks, kind):
    count, rng = repeats * classes, np.random.default_rng(0)
    labels = rng.integers(0, classes, count) if kind == 'random' else np.arange(count) % classes
    labels = {'sorted': np.sort, 'mixed': rng.permutation}.get(kind, np.asarray)(labels)
    found = jackknife.blocks_of(count, labels, blocks=blocks)
    assert sorted(np.concatenate(found)) == list(range(count))
    if kind != 'random' and repeats >= distances.LEAST_ROUNDS:
        assert len(found) == min(blocks, repeats)
        for block in found:
            assert set(np.bincount(labels[block], minlength=classes)) == {len(block) // classes}


@given(seed=st.integers(0, 99), kept=st.integers(2, 20), left=st.integers(1, 20), offset=st.floats(-1e4, 1e4))
def test_moments_without_a_part_are_those_of_the_rest(seed, kept, left, offset):
    x = np.random.default_rng(seed).normal(size=(kept + left, 3)) + offset
    found, rest = jackknife.moments_without(Moments.of(x), Moments.of(x[kept:])), Moments.of(x[:kept])
    assert found.count == rest.count
    np.testing.assert_allclose(found.mean, rest.mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.scatter, rest.scatter, atol=1e-6)


@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=40))
def test_the_error_of_a_mean_with_blocks_of_one_is_that_of_the_mean(values):
    x = np.array(values)
    found = jackknife.Jackknife.of(x.mean(), [np.delete(x, i).mean() for i in range(len(x))])
    assert found.standard_error == pytest.approx(x.std(ddof=1) / math.sqrt(len(x)), rel=1e-7, abs=1e-10)
    assert found.bias == pytest.approx(0, abs=1e-9)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), size=st.integers(1, 9), within=st.integers(9, 30))
def test_small_splits_end_where_large_ones_end(sizes, size, within):
    small = Splits(size, within=within)
    for count in sizes:
        small.add(np.zeros((count, 1)))
        small = Splits.from_state(small.state())
    ends = np.cumsum([split.count for split in small.sums])
    assert set(range(within, sum(sizes) + 1, within)) <= set(ends) and ends[-1] == sum(sizes)
    assert max(split.count for split in small.sums) <= size
    assert len(ends) == sum(-(-min(within, sum(sizes) - at) // size) for at in range(0, sum(sizes), within))


def test_one_block_has_no_error():
    assert math.isnan(jackknife.inception_score_error([ScoreSums.of(np.zeros((9, 1)))], 9))
    with pytest.raises(ValueError, match='at least 2 blocks'):
        jackknife.Jackknife.of(1.0, [1.0])


@given(seed=st.integers(0, 99), count=st.integers(12, 60), blocks=st.integers(2, 6))
def test_fid_is_the_direct_jackknife(seed, count, blocks):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)) + 5
    root = rng.normal(size=(3, 3))
    mean, cov = rng.normal(size=3), root @ root.T

    def statistic(vectors):
        return distances.frechet_distance(vectors.mean(axis=0), np.cov(vectors.T), mean, cov)

    cuts = jackknife.blocks_of(count, blocks=blocks)
    found = jackknife.fid(x, mean, cov, blocks=cuts)
    error, bias = direct(statistic, x, cuts)
    assert found.value == pytest.approx(statistic(x), rel=1e-8)
    assert found.standard_error == pytest.approx(error, rel=1e-5, abs=1e-8)
    assert found.bias == pytest.approx(bias, rel=1e-5, abs=1e-6)


@given(seed=st.integers(0, 99), splits=st.integers(1, 3), blocks=st.integers(2, 5))
def test_inception_score_is_the_direct_jackknife_of_each_split(seed, splits, blocks):
    logits = np.random.default_rng(seed).normal(0, 2, (splits, 30, 6))
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    cuts = jackknife.block_slices(30, blocks)
    sums = Splits(1, within=30)
    sums.add(log_p.reshape(-1, 6))
    found = jackknife.inception_score_error(sums.sums, 30, blocks=blocks)
    errors = [direct(lambda x: distances.inception_score([ScoreSums.of(x)])[0], split, cuts)[0] for split in log_p]
    assert found == pytest.approx(math.sqrt(np.sum(np.square(errors))) / splits, rel=1e-8, abs=1e-10)


@given(seed=st.integers(0, 99), n=st.integers(6, 30), m=st.integers(6, 30), blocks=st.integers(2, 6))
def test_kid_is_the_direct_jackknife_of_both_sets(seed, n, m, blocks):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(0.5, 1, size=(m, 3))

    def statistic(a, b):
        pairs = [(distances.polynomial_kernel(v, v), len(v)) for v in (a, b)]
        within = [(k.sum() - np.trace(k)) / (size * (size - 1)) for k, size in pairs]
        return sum(within) - 2 * distances.polynomial_kernel(a, b).mean()

    xs, ys = (jackknife.blocks_of(size, blocks=min(blocks, size // 2)) for size in (n, m))
    found = jackknife.kid(x, y, blocks=xs, real=ys)
    of_x = direct(lambda a: statistic(a, y), x, xs)[0]
    of_y = direct(lambda b: statistic(x, b), y, ys)[0]
    assert found.value == pytest.approx(statistic(x, y), rel=1e-9, abs=1e-9)
    assert found.standard_error == pytest.approx(math.hypot(of_x, of_y), rel=1e-7, abs=1e-9)


def test_intervals_of_fid_cover_the_known_distance():
    """Features N(m, S) of width 8, 2000 a set, against N(0, I): the value less its bias is for the distributions."""
    scale, shift = np.linspace(0.7, 1.4, 8), np.full(8, 0.2)
    truth = np.sum(shift**2) + np.sum((scale - 1) ** 2)
    found = []
    for seed in range(REPETITIONS):
        x = np.random.default_rng(seed).normal(shift, scale, size=(2000, 8))
        found.append(jackknife.fid(x, np.zeros(8), np.eye(8)))
    assert 0.90 <= covered([(it.value - it.bias, it.standard_error) for it in found], truth) <= 0.98
    mean = np.mean([it.value for it in found])  # what as many samples score, which the plain value is for
    assert 0.90 <= covered([(it.value, it.standard_error) for it in found], mean) <= 0.98
    assert np.mean([it.bias for it in found]) == pytest.approx(mean - truth, rel=0.35)


def test_intervals_of_the_inception_score_cover_what_as_many_samples_score():
    found = []
    for seed in range(REPETITIONS):
        logits = np.random.default_rng(seed).normal(0, 2, (2000, 10))
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        sums = Splits(50, within=5000)
        sums.add(log_p)
        whole = distances.inception_score([ScoreSums.of(log_p)])[0]
        found.append((whole, jackknife.inception_score_error(sums.sums, 5000)))
    assert 0.90 <= covered(found, np.mean([value for value, _ in found])) <= 0.98


def test_intervals_of_kid_cover_the_known_distance():
    """For scalars the kernel (x y + 1)^3 has MMD^2 = sum over k of binom(3, k) (E x^k - E y^k)^2."""
    moments_x, moments_y = (0, 1, 0), (0.5, 1.25, 0.125 + 1.5)
    truth = sum(math.comb(3, k) * (moments_x[k - 1] - moments_y[k - 1]) ** 2 for k in (1, 2, 3))
    found = []
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(seed)
        it = jackknife.kid(rng.normal(size=(300, 1)), rng.normal(0.5, 1, size=(300, 1)))
        found.append((it.value, it.standard_error))
    assert 0.90 <= covered(found, truth) <= 0.98


@pytest.mark.parametrize(
    ('classes', 'kind'), [(10, 'balanced'), (40, 'balanced'), (100, 'balanced'), (10, 'sorted'), (40, 'random')]
)
def test_errors_of_fid_are_those_of_the_way_in_which_labels_are_drawn(classes, kind):
    """Neighbouring classes are alike, as ImageNet's: 20 blocks of neighbours would be unlike, and the error far off."""
    centres = np.sort(np.random.default_rng(7).normal(size=(classes, 4)), axis=0)
    mean, cov = centres.mean(axis=0) + 0.2, np.cov(centres.T, bias=True) + np.eye(4)
    found = []
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, 2000) if kind == 'random' else np.arange(2000) % classes
        labels = np.sort(labels) if kind == 'sorted' else labels
        x = centres[labels] + rng.normal(size=(2000, 4))
        found.append(jackknife.fid(x, mean, cov, blocks=jackknife.blocks_of(2000, labels)))
    spread = np.std([it.value for it in found])
    assert np.mean([it.standard_error for it in found]) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize('classes', [10, 100])
def test_errors_of_the_inception_score_are_those_of_balanced_labels(classes, tmp_path):
    """The classifier is surer of some classes than of their neighbours; blocks are what a measurement makes of it."""
    sure, found = np.linspace(0.5, 6, classes), []
    network = types.SimpleNamespace(width=1, spatial_width=0, second=None)
    size = {'is_split_size': 1000, 'image_shape': (1, 1, 1), 'save_seconds': 9}
    for seed in range(100):
        logits = np.random.default_rng(seed).normal(size=(2000, classes))
        logits[np.arange(2000), np.arange(2000) % classes] += np.resize(sure, 2000)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        network.extract = lambda _, log_p=log_p: Features(np.zeros((2000, 1)), None, log_p, None)
        with Measurement(tmp_path / str(seed), network, period=classes, **size) as measured:
            measured.add(np.zeros((2000, 1, 1, 1), np.uint8))
        whole = distances.inception_score(measured.splits.sums)[0]
        found.append((whole, jackknife.inception_score_error(measured.blocks.sums, 1000)))
    values, errors = np.transpose(found)
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)
