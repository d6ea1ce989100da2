"""FID, inception score, KID and MIND against closed forms and torch-fidelity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfg.metrics import distances
from cfg.metrics.moments import Moments, Splits
from tests.peers import metric_fid, metric_isc, metric_kid


def features(seed, count, width, shift=0.0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) / math.sqrt(width)
    return (np.maximum(rng.normal(size=(count, width)) @ mix + 0.3, 0) + shift).astype(np.float32)


def test_fid_is_torch_fidelitys():
    a, b = features(0, 500, 40), features(1, 300, 40, 0.1)
    theirs = metric_fid.fid_statistics_to_metric(
        *(metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), False
    )
    assert distances.fid(Moments.of(a), Moments.of(b)) == pytest.approx(theirs[metric_fid.KEY_METRIC_FID], rel=1e-6)


def test_fid_of_singular_covariances_is_torch_fidelitys():
    a, b = features(0, 20, 40), features(1, 30, 40, 0.1)
    theirs = metric_fid.fid_statistics_to_metric(
        *(metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), False
    )
    assert distances.fid(Moments.of(a), Moments.of(b)) == pytest.approx(theirs[metric_fid.KEY_METRIC_FID], rel=1e-5)


@given(seed=st.integers(0, 1000), width=st.integers(1, 12))
def test_fid_of_gaussians_that_commute_is_the_closed_form(seed, width):
    """Covariances with the same eigenvectors: |m_a - m_b|^2 + sum (sqrt(l_a) - sqrt(l_b))^2."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(width, width)))[0]
    (mean_a, mean_b), (a, b) = rng.normal(size=(2, width)), rng.exponential(size=(2, width))
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    found = distances.frechet_distance(mean_a, (vectors * a) @ vectors.T, mean_b, (vectors * b) @ vectors.T)
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(('count', 'size'), [(600, 200), (500, 500)])
def test_inception_score_is_torch_fidelitys(count, size):
    logits = np.random.default_rng(0).normal(0, 2, (count, 30)).astype(np.float32)
    splits = Splits(size)
    splits.add(torch.from_numpy(logits).double().log_softmax(dim=1).numpy())
    theirs = metric_isc.isc_features_to_metric(torch.from_numpy(logits), count // size, shuffle=False)
    mean, std = distances.inception_score(splits.sums)
    assert mean == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert std == pytest.approx(theirs[metric_isc.KEY_METRIC_ISC_STD], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize('width', [2, 64])
def test_kid_is_torch_fidelitys(width):
    a, b = features(0, 150, width), features(1, 200, width, 0.2)
    ours = distances.kid(a, b, num_subsets=7, subset_size=100, seed=2020)
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(a).double(),
        torch.from_numpy(b).double(),
        kid_subsets=7,
        kid_subset_size=100,
        verbose=False,
        rng_seed=2020,
    )
    assert ours.value == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-6)
    assert ours.std == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_STD], rel=1e-6)


def test_kid_has_the_expectation_of_the_squared_mmd():
    """For scalars the kernel (x y + 1)^3 has MMD^2 = sum over k of binom(3, k) (E x^k - E y^k)^2."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4000, 1)), rng.normal(0.5, 1.0, size=(4000, 1))
    moments_x, moments_y = (0, 1, 0), (0.5, 1.25, 0.125 + 1.5)
    expected = sum(math.comb(3, k) * (moments_x[k - 1] - moments_y[k - 1]) ** 2 for k in (1, 2, 3))
    found = distances.kid(x, y, num_subsets=100, subset_size=400, seed=0)
    assert found.value == pytest.approx(expected, abs=4 * found.standard_error)
    assert found.standard_error < expected / 4


def test_the_standard_error_of_kid_is_the_spread_over_data_sets():
    found = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(300, 4)), rng.normal(0.6, 1.2, size=(300, 4))
        found.append(distances.kid(x, y, num_subsets=60, subset_size=100, seed=seed))
    spread = np.std([kid.value for kid in found])
    assert np.mean([kid.standard_error for kid in found]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize(('num_subsets', 'subset_size'), [(3, 50), (1, 20)])
def test_the_error_of_kid_is_unknown_where_there_is_one_subset(num_subsets, subset_size):
    x = features(0, 50, 4)
    assert math.isnan(distances.kid(x, x, num_subsets=num_subsets, subset_size=subset_size, seed=0).standard_error)


@pytest.mark.parametrize('chunk', [7, 5000])
def test_draws_of_features_score_what_their_vectors_score(chunk):
    x, rng = features(0, 40, 4), np.random.default_rng(1)
    draws = [rng.integers(0, 40, count) for count in (3, 30, 200)]
    wanted = [distances.fid(Moments.of(x[drawn]), Moments.of(x)) for drawn in draws]
    assert distances.fids_of_draws(x, draws, chunk=chunk) == pytest.approx(wanted, rel=1e-6)


def test_the_floor_falls_with_the_number_of_samples():
    """For Gaussian features of unit covariance the leading term is (D + D (D + 1) / 4) / n: of mean and covariance."""
    width, rng = 20, np.random.default_rng(0)
    x = rng.normal(size=(20_000, width)).astype(np.float32)
    for count in (1000, 10_000):
        found = distances.fids_of_draws(x, [rng.integers(0, len(x), count) for _ in range(5)])
        assert np.mean(found) == pytest.approx((width + width * (width + 1) / 4) / count, rel=0.1)


def test_fid_at_infinity_of_balanced_labels():
    """Subsets that are not balanced have a spread between classes that all samples lack, and too steep a line."""
    rng, found = np.random.default_rng(0), {}
    labels = np.arange(1000) % 4
    centres = 10.0 * np.eye(4)[:, :3]
    mean, cov = centres.mean(axis=0), np.cov(centres.T, bias=True) + np.eye(3)
    for known in (None, labels):
        of_draws = [centres[labels] + rng.normal(size=(1000, 3)) for _ in range(20)]
        values = [distances.fid_at_infinity(x, mean, cov, seed=i, labels=known).value for i, x in enumerate(of_draws)]
        found[known is not None] = np.mean(values), np.std(values) / np.sqrt(20)
    assert abs(found[True][0]) < 4 * found[True][1]
    assert found[False][0] < -10 * found[True][1]


def test_fid_at_infinity_of_labels_that_are_too_many_for_rounds():
    x, mean, cov = features(0, 40, 4), np.zeros(4), np.eye(4)
    alone = distances.fid_at_infinity(x, mean, cov, seed=0)
    assert distances.fid_at_infinity(x, mean, cov, seed=0, labels=np.arange(40)) == alone


def test_fid_at_infinity_has_far_less_bias_than_fid():
    """Gaussian features whose distance is known, 60 sets of samples: the bias of FID is several times its spread."""
    width, count = 20, 1000
    scale = np.linspace(0.5, 1.5, width)
    truth = width * 0.1**2 + ((scale - 1) ** 2).sum()
    biased, limits = [], []
    for seed in range(60):
        x = 0.1 + scale * np.random.default_rng(seed).normal(size=(count, width))
        of_all = Moments.of(x)
        biased.append(distances.frechet_distance(of_all.mean, of_all.covariance(), np.zeros(width), np.eye(width)))
        limits.append(distances.fid_at_infinity(x, np.zeros(width), np.eye(width), seed=seed).value)
    bias, error = np.mean(biased) - truth, np.std(limits) / math.sqrt(60)
    assert bias > 8 * error
    assert abs(np.mean(limits) - truth) < 3 * error + 0.05 * bias


def test_fid_at_infinity_is_the_line_through_fids_of_subsets():
    """The last point is all samples; the fit and its error are scipy's."""
    x, reference = features(0, 400, 5), Moments.of(features(1, 300, 5))
    mean, cov = reference.mean, reference.covariance()
    found = distances.fid_at_infinity(x, mean, cov, seed=3, chunk=70)
    rng, sizes, fids = np.random.default_rng(3), np.linspace(40, 400, 15).astype(int), []
    for size in sizes:
        subset = x[rng.permutation(400)[:size]]
        fids.append(distances.fid(Moments.of(subset), reference))
    assert fids[-1] == pytest.approx(distances.fid(Moments.of(x), reference), rel=1e-9)
    line = scipy.stats.linregress(1 / sizes, fids)
    assert found == pytest.approx((line.intercept, line.intercept_stderr), rel=1e-6)


def test_too_few_samples_for_their_features_have_no_fid_at_infinity():
    x = features(0, 39, 10)
    assert distances.fid_at_infinity(x, np.zeros(10), np.eye(10), seed=0) is None
    assert distances.fid_at_infinity(features(0, 40, 10), np.zeros(10), np.eye(10), seed=0) is not None


def test_mind_on_a_line_is_thrice_the_squared_cost_of_optimal_transport():
    x, y = features(0, 40, 1), features(1, 40, 1)
    cost = (x - y.T) ** 2
    expected = 3 * cost[scipy.optimize.linear_sum_assignment(cost)].mean()
    assert distances.mind(x, y, seed=0, num_directions=3) == pytest.approx(expected, rel=1e-6)


def test_mind_of_gaussians_that_differ_by_a_shift_or_a_scale():
    """W2^2 of N(0, 1) and N(m, s^2) is m^2 + (s - 1)^2, and a shift v has |v|^2 / D of it in a direction on average."""
    x, y = np.random.default_rng(0).normal(size=(2, 20_000, 10))
    found = [distances.mind(x, other, seed=0, count=20_000) for other in (y, y + 0.4, 1.5 * y)]
    assert found[0] < 0.02  # what remains of a finite sample
    assert found[1] == pytest.approx(3 * 10 * 0.4**2, rel=0.05)
    assert found[2] == pytest.approx(3 * 10 * 0.5**2, rel=0.02)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([-2.0, 0.5, 4.0]), shift=st.sampled_from([0.0, 1.0, -8.0]))
def test_mind_of_whole_sets_is_symmetric_and_squares_with_their_scale(seed, scale, shift):
    """It does not change where both are shifted, nor by their order; powers of 2 leave the rounding as it is."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-8, 8, (2, 12, 3)).astype(np.float32)
    options = {'seed': seed, 'num_directions': 4}
    found = distances.mind(x, y, **options)
    assert distances.mind(y, x, **options) == found
    assert distances.mind(x, rng.permutation(x), **options) == 0
    moved = distances.mind(scale * rng.permutation(x) + shift, scale * y + shift, **options)
    assert moved == pytest.approx(scale**2 * found, rel=1e-9)


def test_mind_takes_as_many_of_both_as_there_are_and_no_more_than_it_is_told():
    x, y = features(0, 50, 4), features(1, 30, 4)
    assert distances.mind(x, y, seed=0) == distances.mind(x, y, seed=0, count=30)
    assert distances.mind(x, y, seed=0, count=20) != distances.mind(x, y, seed=0, count=30)


def gaussians(width=6):
    rng = np.random.default_rng(3)
    mixed = rng.normal(size=(2, width, width))
    return *rng.normal(size=(2, width)), *(mixed @ mixed.swapaxes(1, 2) / width + 0.3 * np.eye(width))


def test_the_frechet_distance_within_jit_has_the_gradients_of_the_closed_form():
    """d/dm_b = 2 (m_b - m_a); d/dS_b = I - T with T the map that takes N(m_b, S_b) to N(m_a, S_a)."""
    mean_a, mean_b, cov_a, cov_b = gaussians()
    given = jnp.float32(mean_b), jnp.float32(cov_b)
    value, (of_mean, of_cov) = jax.jit(
        jax.value_and_grad(lambda mean, cov: distances.frechet_distance(mean_a, cov_a, mean, cov), argnums=(0, 1))
    )(*given)
    assert value == pytest.approx(distances.frechet_distance(mean_a, cov_a, mean_b, cov_b), rel=1e-5)
    root = scipy.linalg.sqrtm(cov_a)
    transport = root @ np.linalg.inv(scipy.linalg.sqrtm(root @ cov_b @ root)) @ root
    np.testing.assert_allclose(of_mean, 2 * (mean_b - mean_a), rtol=1e-5)
    np.testing.assert_allclose(of_cov, np.eye(6) - transport, atol=2e-5)


def test_a_singular_covariance_has_a_finite_gradient():
    singular = jnp.diag(jnp.array([1.0, 2.0, 0.0]))
    of_cov = jax.grad(lambda cov: distances.frechet_distance(jnp.ones(3), singular, jnp.zeros(3), cov))(singular)
    np.testing.assert_allclose(of_cov, np.diag([0.0, 0.0, 1.0]), atol=1e-6)


def test_the_mmd_within_jit_is_that_of_numpy_and_so_is_its_slope():
    x, y, way = (np.random.default_rng(i).normal(size=(20, 4)) for i in range(3))
    value, slope = jax.jit(lambda x, way: jax.jvp(lambda x: distances.mmd2(x, jnp.float32(y)), (x,), (way,)))(x, way)
    assert value == pytest.approx(distances.mmd2(x, y), rel=1e-4)
    difference = (distances.mmd2(x + 1e-5 * way, y) - distances.mmd2(x - 1e-5 * way, y)) / 2e-5
    assert slope == pytest.approx(difference, rel=1e-3)
