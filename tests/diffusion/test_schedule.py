import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cfg.diffusion import schedule

RANGES = [(-20.0, 20.0), (-20.0, 5.0), (-3.0, 20.0), (-8.0, 8.0), (-1.0, 0.5)]
ranges = pytest.mark.parametrize(('logsnr_min', 'logsnr_max'), RANGES)


def _a_b(logsnr_min, logsnr_max):
    b = np.arctan(np.exp(-logsnr_max / 2))
    return np.arctan(np.exp(-logsnr_min / 2)) - b, b


def _quantile(u, logsnr_min, logsnr_max):
    """The closed form in float64, where the angle near pi / 2 is still resolved."""
    a, b = _a_b(logsnr_min, logsnr_max)
    return -2 * np.log(np.tan(a * np.asarray(u, np.float64) + b))


def _time(logsnr, logsnr_min, logsnr_max):
    a, b = _a_b(logsnr_min, logsnr_max)
    return (np.arctan(np.exp(-np.asarray(logsnr, np.float64) / 2)) - b) / a


def _cdf(logsnr, logsnr_min, logsnr_max):
    """P(lambda <= logsnr): lambda decreases in u, so this is P(u >= u(logsnr))."""
    return 1 - _time(np.clip(logsnr, logsnr_min, logsnr_max), logsnr_min, logsnr_max)


def _levels(count=4001):
    return np.linspace(-20, 20, count).astype(np.float32)


def test_alpha_and_sigma_match_float64_to_relative_accuracy():
    logsnr = _levels()
    alpha, sigma = schedule.alpha_sigma(logsnr)
    wide = logsnr.astype(np.float64)
    np.testing.assert_allclose(alpha, np.sqrt(scipy.special.expit(wide)), rtol=1e-6)
    np.testing.assert_allclose(sigma, np.sqrt(scipy.special.expit(-wide)), rtol=1e-6)


def test_process_is_variance_preserving():
    alpha, sigma = (np.asarray(value, np.float64) for value in schedule.alpha_sigma(_levels()))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=0, atol=3e-7)


def test_logsnr_is_the_log_of_the_signal_to_noise_ratio():
    logsnr = _levels()
    alpha, sigma = (np.asarray(value, np.float64) for value in schedule.alpha_sigma(logsnr))
    np.testing.assert_allclose(np.log(alpha**2 / sigma**2), logsnr, rtol=0, atol=3e-6)


def test_alpha_and_sigma_swap_under_negation():
    alpha, sigma = schedule.alpha_sigma(_levels())
    mirrored_alpha, mirrored_sigma = schedule.alpha_sigma(-_levels())
    np.testing.assert_array_equal(alpha, mirrored_sigma)
    np.testing.assert_array_equal(sigma, mirrored_alpha)


def test_gradients_of_alpha_and_sigma():
    logsnr = _levels(401)
    wide = logsnr.astype(np.float64)
    alpha, sigma = np.sqrt(scipy.special.expit(wide)), np.sqrt(scipy.special.expit(-wide))
    d_alpha = jax.jit(jax.vmap(jax.grad(lambda level: schedule.alpha_sigma(level)[0])))(logsnr)
    d_sigma = jax.jit(jax.vmap(jax.grad(lambda level: schedule.alpha_sigma(level)[1])))(logsnr)
    np.testing.assert_allclose(d_alpha, alpha * sigma**2 / 2, rtol=3e-6)
    np.testing.assert_allclose(d_sigma, -sigma * alpha**2 / 2, rtol=3e-6)


@ranges
def test_quantiles_match_the_closed_form(logsnr_min, logsnr_max):
    # The logarithmic parts reach where float32 cannot tell a u + b from pi / 2.
    near_end = np.arange(1, 65) * 2.0**-24
    u = np.concatenate([np.linspace(0, 1, 5001), np.logspace(-9, -1, 200), 1 - near_end, 1 - np.logspace(-6, -1, 200)])
    u = u.astype(np.float32)
    actual = schedule.logsnr_from_u(u, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    np.testing.assert_allclose(actual, _quantile(u, logsnr_min, logsnr_max), rtol=0, atol=3e-6)


def test_quantiles_near_the_noise_end_are_better_than_plain_float32():
    u = (1 - np.arange(0, 65) * 2.0**-24).astype(np.float32)
    a, b = (np.float32(value) for value in _a_b(-20.0, 20.0))
    plain = -2 * np.log(np.tan(a * u + b))
    expected = _quantile(u, -20.0, 20.0)
    actual = schedule.logsnr_from_u(u, logsnr_min=-20.0, logsnr_max=20.0)
    assert np.abs(plain - expected).max() > 1e-3
    assert np.abs(np.asarray(actual, np.float64) - expected).max() < 3e-6


def test_quantiles_are_symmetric_in_a_symmetric_range():
    # Multiples of 2^-12: 1 - u is exact in float32.
    u = (np.arange(4097) / 4096).astype(np.float32)
    logsnr = schedule.logsnr_from_u(u, logsnr_min=-20.0, logsnr_max=20.0)
    mirrored = schedule.logsnr_from_u(1 - u, logsnr_min=-20.0, logsnr_max=20.0)
    np.testing.assert_allclose(logsnr, -mirrored, rtol=0, atol=3e-6)
    assert abs(float(logsnr[2048])) < 1e-6


@ranges
def test_time_is_the_inverse_of_the_quantile(logsnr_min, logsnr_max):
    limits = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max}
    u = np.linspace(0, 1, 2001).astype(np.float32)
    again = schedule.u_from_logsnr(schedule.logsnr_from_u(u, **limits), **limits)
    # The narrow range divides the rounding of an angle of about 1 by a = 0.34.
    np.testing.assert_allclose(again, u, rtol=0, atol=1e-6)
    logsnr = np.linspace(logsnr_min, logsnr_max, 2001).astype(np.float32)
    np.testing.assert_allclose(
        schedule.u_from_logsnr(logsnr, **limits), _time(logsnr, logsnr_min, logsnr_max), rtol=0, atol=1e-6
    )


def test_time_resolves_the_clean_end():
    # u is about 1e-5 here: relative accuracy asks that b be subtracted before it is rounded away.
    logsnr = np.linspace(15, 19, 101).astype(np.float32)
    actual = schedule.u_from_logsnr(logsnr, logsnr_min=-20.0, logsnr_max=20.0)
    np.testing.assert_allclose(actual, _time(logsnr, -20.0, 20.0), rtol=5e-6)


@given(
    st.floats(-20, 20, width=32),
    st.floats(-20, 20, width=32),
    st.floats(0, 1, width=32),
)
def test_quantiles_stay_in_the_range_and_invert(one, other, u):
    logsnr_min, logsnr_max = min(one, other), max(one, other)
    # Ranges that hold a level near 0; float32 angles are coarser for a range wholly on one side.
    logsnr_min, logsnr_max = min(logsnr_min, -0.5), max(logsnr_max, 0.5)
    logsnr = schedule.logsnr_from_u(np.float32(u), logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    assert logsnr_min <= float(logsnr) <= logsnr_max
    np.testing.assert_allclose(logsnr, _quantile(u, logsnr_min, logsnr_max), rtol=0, atol=3e-6)
    again = schedule.u_from_logsnr(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    np.testing.assert_allclose(again, u, rtol=0, atol=1e-6)


def _density64(logsnr_min, logsnr_max, points):
    """The package's density on a grid, in float64."""
    logsnr = np.linspace(logsnr_min, logsnr_max, points).astype(np.float32)
    return logsnr, np.asarray(schedule.logsnr_density(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max), np.float64)


@ranges
def test_density_is_the_derivative_of_the_cdf(logsnr_min, logsnr_max):
    logsnr, density = _density64(logsnr_min, logsnr_max, 1001)
    step, inner = 1e-4, logsnr[1:-1].astype(np.float64)
    slope = (_cdf(inner + step, logsnr_min, logsnr_max) - _cdf(inner - step, logsnr_min, logsnr_max)) / (2 * step)
    np.testing.assert_allclose(density[1:-1], slope, rtol=2e-5, atol=2e-11)


@ranges
def test_density_integrates_to_one(logsnr_min, logsnr_max):
    density = jax.jit(lambda level: schedule.logsnr_density(level, logsnr_min=logsnr_min, logsnr_max=logsnr_max))
    # A tolerance above the float32 noise of the integrand, or quad never stops refining.
    total, _ = scipy.integrate.quad(
        lambda level: float(density(np.float32(level))), logsnr_min, logsnr_max, epsabs=1e-5, epsrel=1e-5, points=[0]
    )
    assert total == pytest.approx(1, abs=2e-6)


def test_density_is_zero_outside_and_secant_without_bounds():
    outside = schedule.logsnr_density(np.float32([-9, 9, 20]), logsnr_min=-8.0, logsnr_max=8.0)
    np.testing.assert_array_equal(outside, 0)
    logsnr = np.linspace(-5, 5, 11).astype(np.float32)
    wide = schedule.logsnr_density(logsnr, logsnr_min=-60.0, logsnr_max=60.0)
    np.testing.assert_allclose(wide, 1 / np.cosh(logsnr / 2) / (2 * np.pi), rtol=2e-6)


@ranges
def test_sampled_levels_follow_the_density(logsnr_min, logsnr_max):
    u = jax.random.uniform(jax.random.key(3), (20000,))
    logsnr = np.asarray(schedule.logsnr_from_u(u, logsnr_min=logsnr_min, logsnr_max=logsnr_max), np.float64)
    assert scipy.stats.kstest(logsnr, lambda level: _cdf(level, logsnr_min, logsnr_max)).pvalue > 1e-3
    # Independently of the quantile function: the distribution function by integrating the secant density.
    probability = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    a, _ = _a_b(logsnr_min, logsnr_max)
    for p, level in zip(probability, np.quantile(logsnr, probability), strict=True):
        mass, _ = scipy.integrate.quad(lambda x: 1 / (4 * a * np.cosh(x / 2)), logsnr_min, level)
        assert abs(mass - p) < 4.5 * np.sqrt(p * (1 - p) / logsnr.size)


@pytest.mark.parametrize('num_steps', [2, 3, 16, 256])
@ranges
def test_sampling_grid_is_uniform_in_time(logsnr_min, logsnr_max, num_steps):
    grid = np.asarray(schedule.sampling_grid(num_steps, logsnr_min=logsnr_min, logsnr_max=logsnr_max))
    assert grid.shape == (num_steps,)
    np.testing.assert_allclose(grid[[0, -1]], [logsnr_min, logsnr_max], rtol=0, atol=3e-6)
    assert grid.min() >= logsnr_min
    assert grid.max() <= logsnr_max
    assert (np.diff(grid) > 0).all()
    u = _time(grid, logsnr_min, logsnr_max)
    np.testing.assert_allclose(np.diff(u), -1 / (num_steps - 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize('total', [1, 2, 48])
def test_stratify_puts_one_draw_in_each_stratum(total):
    u = jax.random.uniform(jax.random.key(0), (total,))
    index = jax.random.permutation(jax.random.key(1), total)
    result = np.asarray(schedule.stratify(u, index, total), np.float64)
    np.testing.assert_array_equal(np.floor(result * total), index)
    np.testing.assert_allclose(result * total - index, u, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(np.sort(np.floor(result * total)), np.arange(total))


@given(st.integers(1, 4096), st.data(), st.floats(0, 1, width=32, exclude_max=True))
def test_stratify_stays_in_its_stratum(total, data, u):
    index = data.draw(st.integers(0, total - 1))
    result = float(schedule.stratify(np.float32(u), np.int32(index), total))
    # Two roundings of float32: of index + u, and of the quotient.
    assert 0 <= result <= 1
    assert result == pytest.approx((index + u) / total, abs=2.0**-23)


def test_stratified_draw_of_a_random_stratum_is_uniform():
    total, count = 16, 20000
    u = jax.random.uniform(jax.random.key(4), (count,))
    index = jax.random.randint(jax.random.key(5), (count,), 0, total)
    result = np.asarray(schedule.stratify(u, index, total), np.float64)
    assert scipy.stats.kstest(result, 'uniform').pvalue > 1e-3


def test_gradients_are_finite():
    limits = {'logsnr_min': -20.0, 'logsnr_max': 20.0}
    logsnr = _levels(401)
    u = np.concatenate([np.linspace(0, 1, 401), 2.0 ** -np.arange(1, 25), 1 - 2.0 ** -np.arange(1, 25)])
    slope = np.asarray(jax.jit(jax.vmap(jax.grad(lambda t: schedule.logsnr_from_u(t, **limits))))(u.astype(np.float32)))
    assert np.isfinite(slope).all()
    # d logsnr / du = -1 / p(logsnr); at the two ends the clip may halve it or stop it.
    inner = (u > 1e-4) & (u < 1 - 1e-4)
    a, _ = _a_b(-20.0, 20.0)
    expected = -4 * a * np.cosh(_quantile(u[inner].astype(np.float32), -20.0, 20.0) / 2)
    # The middle of the range joins two branches, where a tie splits the gradient of minimum and maximum.
    apart = np.abs(u[inner] - 0.5) > 1e-6
    np.testing.assert_allclose(slope[inner][apart], expected[apart], rtol=1e-4)
    assert np.isfinite(jax.jit(jax.vmap(jax.grad(lambda level: schedule.u_from_logsnr(level, **limits))))(logsnr)).all()
    assert np.isfinite(
        jax.jit(jax.vmap(jax.grad(lambda level: schedule.logsnr_density(level, **limits))))(logsnr)
    ).all()


def test_functions_keep_shape_and_precision():
    u = jnp.full((2, 3), 0.3)
    limits = {'logsnr_min': -20.0, 'logsnr_max': 20.0}
    logsnr = schedule.logsnr_from_u(u, **limits)
    results = (
        logsnr,
        schedule.u_from_logsnr(logsnr, **limits),
        schedule.logsnr_density(logsnr, **limits),
        *schedule.alpha_sigma(logsnr),
    )
    for value in results:
        assert value.shape == (2, 3)
        assert value.dtype == jnp.float32


@pytest.mark.parametrize(('logsnr_min', 'logsnr_max'), [(1.0, 1.0), (20.0, -20.0), (float('nan'), 1.0)])
def test_an_empty_range_is_refused(logsnr_min, logsnr_max):
    limits = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max}
    for function in (schedule.logsnr_from_u, schedule.u_from_logsnr, schedule.logsnr_density):
        with pytest.raises(ValueError, match='must be smaller'):
            function(0.5, **limits)
    with pytest.raises(ValueError, match='must be smaller'):
        schedule.sampling_grid(4, **limits)


@pytest.mark.parametrize('num_steps', [1, 0, -3])
def test_a_grid_without_two_ends_is_refused(num_steps):
    with pytest.raises(ValueError, match='at least 2'):
        schedule.sampling_grid(num_steps, logsnr_min=-20.0, logsnr_max=20.0)


GRIDS = {
    'uniform': (schedule.uniform_grid, lambda count, lo, hi: np.linspace(lo, hi, count)),
    'rho': (
        schedule.rho_grid,
        # Eq. 5 of Karras et al. 2022, for sigma.
        lambda count, lo, hi: (
            -2
            * np.log((np.exp(-lo / 14) + np.arange(count) / (count - 1) * (np.exp(-hi / 14) - np.exp(-lo / 14))) ** 7)
        ),
    ),
}


@ranges
@pytest.mark.parametrize('num_steps', [2, 3, 18, 1024])
@pytest.mark.parametrize('name', GRIDS)
def test_other_grids_match_float64_and_include_both_ends(name, num_steps, logsnr_min, logsnr_max):
    make, reference = GRIDS[name]
    grid = np.asarray(make(num_steps, logsnr_min=logsnr_min, logsnr_max=logsnr_max))
    assert grid.dtype == np.float32
    assert (grid[0], grid[-1]) == (np.float32(logsnr_min), np.float32(logsnr_max))
    assert (np.diff(grid) > 0).all()
    np.testing.assert_allclose(grid, reference(num_steps, logsnr_min, logsnr_max), rtol=1e-5, atol=2e-5)


@ranges
@pytest.mark.parametrize('num_steps', [1, 2, 3, 64])
def test_a_nested_grid_is_every_other_level_of_twice_as_many_steps(num_steps, logsnr_min, logsnr_max):
    limits = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max}
    grid = np.asarray(schedule.nested_grid(num_steps, **limits))
    assert grid.shape == (num_steps,)
    np.testing.assert_allclose(schedule.nested_grid(2 * num_steps, **limits)[::2], grid, rtol=1e-6)
    assert grid[0] == pytest.approx(logsnr_min)
    # u = 0, clean data, comes after the last level.
    expected = schedule.sampling_grid(num_steps + 1, **limits)[:-1]
    np.testing.assert_allclose(grid, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='at least 1'):
        schedule.nested_grid(0, **limits)


def test_rho_1_is_uniform_in_sigma_and_a_large_rho_in_logsnr():
    limits = {'logsnr_min': -3.0, 'logsnr_max': 3.0}
    sigma = np.asarray(schedule.sigma_from_logsnr(schedule.rho_grid(9, **limits, rho=1.0)))
    np.testing.assert_allclose(np.diff(sigma), np.full(8, (sigma[-1] - sigma[0]) / 8), rtol=1e-5)
    np.testing.assert_allclose(schedule.rho_grid(9, **limits, rho=1e5), schedule.uniform_grid(9, **limits), atol=1e-3)


def test_edm_s_range_of_sigma():
    np.testing.assert_allclose(schedule.logsnr_from_sigma(np.float32([80, 0.002])), [-8.76, 12.43], atol=5e-3)
    levels = _levels(101)
    np.testing.assert_allclose(schedule.logsnr_from_sigma(schedule.sigma_from_logsnr(levels)), levels, atol=2e-5)
    alpha, sigma = schedule.alpha_sigma(levels)
    np.testing.assert_allclose(schedule.sigma_from_logsnr(levels), sigma / alpha, rtol=5e-6)


@pytest.mark.parametrize('grid', [schedule.uniform_grid, schedule.rho_grid])
def test_other_grids_refuse_what_the_paper_s_refuses(grid):
    with pytest.raises(ValueError, match='at least 2'):
        grid(1, logsnr_min=-20.0, logsnr_max=20.0)
    with pytest.raises(ValueError, match='must be smaller'):
        grid(4, logsnr_min=1.0, logsnr_max=1.0)


@pytest.mark.parametrize('rho', [0.0, -7.0, float('nan')])
def test_a_rho_that_is_not_positive_is_refused(rho):
    with pytest.raises(ValueError, match='rho must be positive'):
        schedule.rho_grid(4, logsnr_min=-20.0, logsnr_max=20.0, rho=rho)
