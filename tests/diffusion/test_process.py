import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from cfg.diffusion import process

EPS32 = 2.0**-23


def _scales(logsnr):
    """alpha and sigma of Eq. 1 in float64."""
    logsnr = np.asarray(logsnr, np.float64)
    return np.sqrt(scipy.special.expit(logsnr)), np.sqrt(scipy.special.expit(-logsnr))


def _linear_gaussian(logsnr_s, logsnr_t):
    """(r, s2) with z_t = r z_s + N(0, s2), from nothing but the two marginals of Eq. 1.

    alpha_t = r alpha_s gives r and sigma_t^2 = r^2 sigma_s^2 + s2 gives s2. The difference loses digits in
    proportion to 1 / (logsnr_s - logsnr_t), which float64 can afford.
    """
    alpha_s, sigma_s = _scales(logsnr_s)
    alpha_t, sigma_t = _scales(logsnr_t)
    ratio = alpha_t / alpha_s
    return ratio, sigma_t**2 - ratio**2 * sigma_s**2


@st.composite
def _increasing(draw, count):
    """`count` float32 levels in [-20, 20], at least 1e-3 apart, as numpy scalars in increasing order."""
    gaps = [draw(st.floats(1e-3, 12)) for _ in range(count - 1)]
    scale = min(1, 40 / sum(gaps))
    span = scale * sum(gaps)
    start = draw(st.floats(0, 1)) * (40 - span) - 20
    levels = np.float32(start + scale * np.cumsum([0, *gaps]))
    return tuple(np.clip(levels, np.float32(-20), np.float32(20)))


pixels = st.floats(-1, 1, width=32)
normals = st.floats(-5, 5, width=32)


@given(_increasing(2), normals)
def test_transition_composed_with_the_marginal_is_the_marginal(levels, z):
    logsnr_t, logsnr_s = levels
    result = process.transition(np.float32([z]), logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    ratio, variance = _linear_gaussian(logsnr_s, logsnr_t)
    np.testing.assert_allclose(result.mean, [ratio * z], rtol=3e-6)
    np.testing.assert_allclose(np.exp(np.float64(result.logvar)), variance, rtol=1e-5)


@given(_increasing(3))
def test_transitions_compose(levels):
    logsnr_r, logsnr_t, logsnr_s = levels
    one = np.ones(1, np.float32)
    first = process.transition(one, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    second = process.transition(one, logsnr_s=logsnr_t, logsnr_t=logsnr_r)
    direct = process.transition(one, logsnr_s=logsnr_s, logsnr_t=logsnr_r)
    ratio = np.float64(second.mean)
    np.testing.assert_allclose(ratio * first.mean, direct.mean, rtol=3e-6)
    composed = ratio**2 * np.exp(np.float64(first.logvar)) + np.exp(np.float64(second.logvar))
    np.testing.assert_allclose(composed, np.exp(np.float64(direct.logvar)), rtol=1e-5)


@given(_increasing(2), normals, pixels)
def test_posterior_is_bayes_rule(levels, z, x):
    logsnr_t, logsnr_s = levels
    result = process.posterior(np.float32([z]), np.float32([x]), logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    alpha_s, sigma_s = _scales(logsnr_s)
    ratio, variance = _linear_gaussian(logsnr_s, logsnr_t)
    # The product of the prior N(alpha_s x, sigma_s^2) and the likelihood N(z_t; ratio z_s, variance).
    precision = 1 / sigma_s**2 + ratio**2 / variance
    from_x = alpha_s / sigma_s**2 / precision
    from_z = ratio / variance / precision
    tolerance = 1e-5 * (abs(from_x * x) + abs(from_z * z)) + 1e-12
    np.testing.assert_allclose(np.float64(result.mean), [from_x * x + from_z * z], rtol=0, atol=tolerance)
    np.testing.assert_allclose(np.exp(np.float64(result.logvar)), 1 / precision, rtol=1e-5)


@given(_increasing(2), pixels)
def test_posterior_averaged_over_the_marginal_is_the_marginal(levels, x):
    # E over z_t of q(z_s | z_t, x) is q(z_s | x): the law of total mean and variance.
    logsnr_t, logsnr_s = levels
    alpha_s, sigma_s = _scales(logsnr_s)
    alpha_t, sigma_t = _scales(logsnr_t)
    points = np.float32([0, 1])
    result = process.posterior(points, np.float32([x, x]), logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    offset, slope = float(result.mean[0]), float(result.mean[1]) - float(result.mean[0])
    np.testing.assert_allclose(offset + slope * alpha_t * x, alpha_s * x, rtol=0, atol=2e-6)
    total = slope**2 * sigma_t**2 + np.exp(float(result.logvar))
    # The slope is a difference of float32 numbers of size up to 1 + slope.
    np.testing.assert_allclose(total, sigma_s**2, rtol=1e-5, atol=1e-6 * slope * sigma_t**2)


@given(_increasing(2), st.floats(0, 1))
def test_reverse_variance_is_geometric_between_its_ends(levels, interp):
    logsnr_t, logsnr_s = levels
    z = np.zeros(1, np.float32)
    small = process.posterior(z, z, logsnr_s=logsnr_s, logsnr_t=logsnr_t).logvar
    large = process.transition(z, logsnr_s=logsnr_s, logsnr_t=logsnr_t).logvar

    def logvar(value):
        return process.reverse_logvar(logsnr_s=logsnr_s, logsnr_t=logsnr_t, logvar_interp=value)

    np.testing.assert_array_equal(logvar(0.0), small)
    np.testing.assert_array_equal(logvar(1.0), large)
    assert small <= large
    ratio, variance = _linear_gaussian(logsnr_s, logsnr_t)
    _, sigma_s = _scales(logsnr_s)
    posterior = 1 / (1 / sigma_s**2 + ratio**2 / variance)
    expected = (1 - interp) * np.log(posterior) + interp * np.log(variance)
    np.testing.assert_allclose(logvar(interp), expected, rtol=1e-6, atol=5e-6)


def _log_one_minus_exp64(a):
    """Each form in float64 where it is exact; the same split would be no reference if it were misplaced."""
    a = np.asarray(a, np.float64)
    result = np.empty_like(a)
    near = a > -1
    result[near] = np.log(-np.expm1(a[near]))
    result[~near] = np.log1p(-np.exp(a[~near]))
    return result


def _negatives():
    # From the smallest step that separates two float32 levels near 20 to the whole range.
    around_split = np.log(2) * (1 + np.linspace(-1e-3, 1e-3, 20))
    return -np.concatenate([np.logspace(-30, np.log10(80), 2001), around_split]).astype(np.float32)


def test_log_one_minus_exp_is_accurate_at_both_ends():
    """JAX's own, of which the variances are made."""
    a = _negatives()
    # Relative: the far end is -exp(a), down to 1e-35, and an absolute test would accept 0 there.
    np.testing.assert_allclose(jax.nn.log1mexp(-a), _log_one_minus_exp64(a), rtol=5e-7)


def test_log_one_minus_exp_has_accurate_gradients_at_both_ends():
    a = _negatives()
    slope = jax.vmap(jax.grad(lambda a: jax.nn.log1mexp(-a)))(a)
    wide = a.astype(np.float64)
    np.testing.assert_allclose(slope, np.exp(wide) / np.expm1(wide), rtol=1e-6)


@given(pixels, normals, st.floats(-20, 20, width=32))
def test_diffuse_matches_float64(x, eps, logsnr):
    alpha, sigma = _scales(logsnr)
    z = process.diffuse(np.float32([x]), np.float32([eps]), np.float32(logsnr))
    bound = 4 * EPS32 * (1 + alpha * abs(x) + sigma * abs(eps))
    np.testing.assert_allclose(np.float64(z), [alpha * x + sigma * eps], rtol=0, atol=bound)


def _batch(seed=0, count=401):
    """Images in [-1, 1], noise, and one level an example over the whole range."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (count, 2, 2, 3)).astype(np.float32)
    eps = random.standard_normal((count, 2, 2, 3)).astype(np.float32)
    return x, eps, np.linspace(-20, 20, count).astype(np.float32)


def _columns(logsnr):
    """alpha and sigma in float64, shaped to broadcast against images."""
    return _scales(logsnr.reshape(-1, 1, 1, 1))


def test_marginal_mean_and_variance_over_the_range():
    # Recovers the two coefficients of Eq. 1 to relative accuracy, which an additive check cannot at the ends.
    _, _, logsnr = _batch()
    one, zero = np.ones((logsnr.size, 1), np.float32), np.zeros((logsnr.size, 1), np.float32)
    alpha, sigma = _scales(logsnr)
    np.testing.assert_allclose(process.diffuse(one, zero, logsnr)[:, 0], alpha, rtol=1e-6)
    np.testing.assert_allclose(process.diffuse(zero, one, logsnr)[:, 0], sigma, rtol=1e-6)


def test_x_and_eps_are_recovered_up_to_the_conditioning():
    x, eps, logsnr = _batch()
    alpha, sigma = _columns(logsnr)
    z = process.diffuse(x, eps, logsnr)
    # The rounding of z, of size alpha + sigma, is divided by alpha or by sigma.
    size = alpha * np.abs(x) + sigma * np.abs(eps)
    assert (np.abs(process.x_from_eps(z, eps, logsnr) - x) <= 2 * EPS32 * size / alpha).all()
    assert (np.abs(process.eps_from_x(z, x, logsnr) - eps) <= 2 * EPS32 * size / sigma).all()


def test_x_from_eps_and_eps_from_x_match_float64():
    _, eps, logsnr = _batch(1)
    z = np.random.default_rng(2).standard_normal(eps.shape).astype(np.float32)
    alpha, sigma = _columns(logsnr)
    x = (z.astype(np.float64) - sigma * eps) / alpha
    bound = 8 * EPS32 * (np.abs(z) + sigma * np.abs(eps)) / alpha
    assert (np.abs(process.x_from_eps(z, eps, logsnr) - x) <= bound).all()
    given_x = np.clip(x, -1, 1).astype(np.float32)
    expected = (z.astype(np.float64) - alpha * given_x) / sigma
    bound = 8 * EPS32 * (np.abs(z) + alpha * np.abs(given_x)) / sigma
    assert (np.abs(process.eps_from_x(z, given_x, logsnr) - expected) <= bound).all()


def test_v_is_the_velocity_of_z_along_the_circle_of_alpha_and_sigma():
    # With alpha = cos t, sigma = sin t: z = cos t x + sin t eps and v = dz / dt.
    x, eps, logsnr = _batch()
    alpha, sigma = _columns(logsnr)
    angle = np.arctan2(sigma, alpha)
    step = 1e-5
    moved = [np.cos(angle + d) * x.astype(np.float64) + np.sin(angle + d) * eps for d in (-step, step)]
    derivative = (moved[1] - moved[0]) / (2 * step)
    np.testing.assert_allclose(process.v_from_x_eps(x, eps, logsnr), derivative, rtol=0, atol=3e-6)


@pytest.mark.parametrize('prediction', process.PREDICTIONS)
def test_the_target_is_read_back(prediction):
    x, eps, logsnr = _batch()
    alpha, sigma = _columns(logsnr)
    z = process.diffuse(x, eps, logsnr)
    output = process.target(x, eps, logsnr, prediction=prediction)
    result = process.from_output(output, z, logsnr, prediction=prediction)
    size = np.abs(x) + np.abs(eps)
    # Only what the network does not predict is ill-conditioned; v is well-conditioned in both.
    worst_x = {'eps': 1 / alpha, 'x': 1, 'v': 2}[prediction]
    worst_eps = {'eps': 1, 'x': 1 / sigma, 'v': 2}[prediction]
    assert (np.abs(np.float64(result.x) - x) <= 2 * EPS32 * size * worst_x).all()
    assert (np.abs(np.float64(result.eps) - eps) <= 2 * EPS32 * size * worst_eps).all()


@pytest.mark.parametrize('prediction', process.PREDICTIONS)
def test_x_and_eps_of_any_output_satisfy_the_identity(prediction):
    output, z, logsnr = _batch(3)
    alpha, sigma = _columns(logsnr)
    result = process.from_output(output, z, logsnr, prediction=prediction)
    x, eps = np.float64(result.x), np.float64(result.eps)
    bound = 8 * EPS32 * (np.abs(z) + alpha * np.abs(x) + sigma * np.abs(eps))
    assert (np.abs(alpha * x + sigma * eps - z) <= bound).all()
    # And the output is what it is said to be.
    again = {'eps': eps, 'x': x, 'v': alpha * eps - sigma * x}[prediction]
    assert (np.abs(again - output) <= 8 * EPS32 * (1 + alpha * np.abs(eps) + sigma * np.abs(x))).all()


def test_targets():
    x, eps, logsnr = _batch()
    alpha, sigma = _columns(logsnr)
    np.testing.assert_array_equal(process.target(x, eps, logsnr, prediction='eps'), eps)
    np.testing.assert_array_equal(process.target(x, eps, logsnr, prediction='x'), x)
    np.testing.assert_allclose(
        process.target(x, eps, logsnr, prediction='v'), alpha * eps - sigma * x, rtol=0, atol=3e-6
    )


@pytest.mark.parametrize('prediction', ['epsilon', '', 'V', None])
def test_an_unknown_prediction_is_refused(prediction):
    x = np.zeros((1, 2), np.float32)
    with pytest.raises(ValueError, match='prediction must be one of'):
        process.from_output(x, x, np.float32(0), prediction=prediction)
    with pytest.raises(ValueError, match='prediction must be one of'):
        process.target(x, x, np.float32(0), prediction=prediction)


def _functions():
    """Every function of images and a level, or of images and a pair of levels one unit apart."""
    return {
        'diffuse': process.diffuse,
        'x_from_eps': process.x_from_eps,
        'eps_from_x': process.eps_from_x,
        'v_from_x_eps': process.v_from_x_eps,
        'from_output': lambda a, b, level: [
            process.from_output(a, b, level, prediction=prediction) for prediction in process.PREDICTIONS
        ],
        'transition': lambda a, b, level: process.transition(a, logsnr_s=level + 1, logsnr_t=level),
        'posterior': lambda a, b, level: process.posterior(a, b, logsnr_s=level + 1, logsnr_t=level),
    }


@pytest.mark.parametrize('name', sorted(_functions()))
def test_levels_of_each_example_equal_separate_calls(name):
    function = jax.jit(_functions()[name])
    a, b, _ = _batch(count=4)
    levels = np.float32([-7, -1, 0.5, 6])
    together = jax.tree.leaves(function(a, b, levels))
    for i, level in enumerate(levels):
        alone = jax.tree.leaves(function(a[i : i + 1], b[i : i + 1], np.float32(level)))
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_allclose(np.squeeze(one), np.squeeze(all_of_them[i]), rtol=1e-6, atol=1e-6)
    # One level for all is the same as that level repeated.
    scalar = jax.tree.leaves(function(a, b, jnp.float32(0.5)))
    repeated = jax.tree.leaves(function(a, b, jnp.full((4,), 0.5)))
    for one, many in zip(scalar, repeated, strict=True):
        np.testing.assert_allclose(np.broadcast_to(one, many.shape), many, rtol=1e-6, atol=1e-6)


def test_expand_appends_axes():
    like = np.zeros((4, 2, 2, 3), np.float32)
    assert process.expand(np.zeros(4, np.float32), like).shape == (4, 1, 1, 1)
    assert process.expand(1.5, like).shape == ()
    # As many examples as columns: the level must still run along the batch.
    square = np.zeros((3, 3), np.float32)
    np.testing.assert_array_equal(
        process.expand(np.float32([1, 2, 3]), square) + square, [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    )


@pytest.mark.parametrize('name', sorted(_functions()))
def test_values_and_gradients_are_finite_over_the_range(name):
    function = _functions()[name]
    levels = np.linspace(-20, 19, 79).astype(np.float32)  # a pair ends one unit higher
    random = np.random.default_rng(0)
    a, b = (random.uniform(-1, 1, (79, 3)).astype(np.float32) for _ in range(2))

    def total(a, b, level):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(a, b, level)))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.jit(function)(a, b, levels)))
    for slope in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(a, b, levels):
        assert np.isfinite(slope).all()
        assert slope.dtype == jnp.float32


@pytest.mark.parametrize('interp', [0.0, 0.3, 1.0])
def test_step_variances_are_finite_with_finite_gradients(interp):
    # Every pair of a grid, the neighbours and the whole jump from noise to data.
    grid = np.linspace(-20, 20, 33).astype(np.float32)
    pairs = np.array([(t, s) for t, s in itertools.product(grid, grid) if t < s])

    def logvar(logsnr_t, logsnr_s):
        return process.reverse_logvar(logsnr_s=logsnr_s, logsnr_t=logsnr_t, logvar_interp=interp)

    value, slopes = jax.jit(jax.vmap(jax.value_and_grad(logvar, argnums=(0, 1))))(pairs[:, 0], pairs[:, 1])
    assert np.isfinite(value).all()
    assert np.isfinite(slopes).all()
