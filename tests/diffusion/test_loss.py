import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from cfg.diffusion import loss, process

NULL = 5
draw = jax.jit(loss.draw, static_argnums=1)
SETTINGS = {'p_uncond': 0.2, 'null_label': NULL, 'logsnr_min': -20.0, 'logsnr_max': 20.0}


def _scales(logsnr):
    """alpha and sigma of Eq. 1 in float64."""
    return np.sqrt(scipy.special.expit(logsnr)), np.sqrt(scipy.special.expit(-logsnr))


def _quantile(u, logsnr_min, logsnr_max):
    b = np.arctan(np.exp(-logsnr_max / 2))
    a = np.arctan(np.exp(-logsnr_min / 2)) - b
    return -2 * np.log(np.tan(a * np.asarray(u, np.float64) + b))


def _toy_network(z, logsnr, labels, np_=jnp):
    """Depends on everything it is given, and is mild enough in z and logsnr for float32."""
    columns = (-1,) + (1,) * (z.ndim - 1)
    level, label = logsnr.reshape(columns), labels.reshape(columns)
    return np_.sin(z) + 0.3 * np_.tanh(level / 4) + 0.2 * label


def _batch(count=64, shape=(2, 2, 3)):
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (count, *shape)).astype(np.float32)
    return x, random.integers(0, NULL, count).astype(np.int32), jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize('prediction', process.PREDICTIONS)
@pytest.mark.parametrize(('logsnr_min', 'logsnr_max'), [(-20.0, 20.0), (-6.0, 9.0)])
def test_loss_matches_float64(prediction, logsnr_min, logsnr_max):
    x, labels, keys = _batch()
    draws = draw(keys, x.shape[1:])
    limits = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max}
    actual = loss.denoising_loss(
        _toy_network, x, labels, draws, prediction=prediction, p_uncond=0.2, null_label=NULL, **limits
    )

    x64, eps = x.astype(np.float64), np.float64(draws.eps)
    logsnr = _quantile(draws.u_time, **limits)
    alpha, sigma = _scales(logsnr.reshape(-1, 1, 1, 1))
    dropped = np.where(np.asarray(draws.u_label) < np.float32(0.2), NULL, labels)
    assert 0 < (dropped == NULL).sum() < len(labels)
    goal = {'eps': eps, 'x': x64, 'v': alpha * eps - sigma * x64}[prediction]
    error = _toy_network(alpha * x64 + sigma * eps, logsnr, dropped, np_=np) - goal
    assert actual.shape == (len(labels),)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, (error**2).mean(axis=(1, 2, 3)), rtol=2e-5)


def test_loss_of_a_low_precision_network_is_float32():
    x, labels, keys = _batch()
    result = loss.denoising_loss(
        lambda z, logsnr, c: jnp.zeros(z.shape, jnp.bfloat16), x, labels, draw(keys, x.shape[1:]), **SETTINGS
    )
    assert result.dtype == jnp.float32
    eps = np.float64(draw(keys, x.shape[1:]).eps)
    np.testing.assert_allclose(result, (eps**2).mean(axis=(1, 2, 3)), rtol=1e-5)


MEAN, SPREAD = 0.3, 0.5  # of Gaussian data, each component on its own


def _exact_network(prediction):
    """The posterior mean of eps, x or v for the Gaussian data: what the loss is minimised by."""

    def network(z, logsnr, labels):
        level = logsnr[:, None]
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))
        surprise = (z - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
        eps, x = sigma * surprise, MEAN + alpha * SPREAD**2 * surprise
        return {'eps': eps, 'x': x, 'v': alpha * eps - sigma * x}[prediction]

    return network


def _least_loss(prediction, logsnr_min, logsnr_max):
    """The posterior variance of what is predicted, averaged over the secant density of logsnr by quadrature."""

    def integrand(logsnr):
        alpha, sigma = _scales(logsnr)
        of_x = 1 / (1 / SPREAD**2 + alpha**2 / sigma**2)
        # z is known, so eps = (z - alpha x) / sigma and v = (alpha z - x) / sigma vary only with x.
        variance = of_x * {'eps': alpha**2 / sigma**2, 'x': 1, 'v': 1 / sigma**2}[prediction]
        return variance / np.cosh(logsnr / 2)

    weight, _ = scipy.integrate.quad(lambda logsnr: 1 / np.cosh(logsnr / 2), logsnr_min, logsnr_max)
    total, _ = scipy.integrate.quad(integrand, logsnr_min, logsnr_max)
    return total / weight


@pytest.mark.parametrize('prediction', process.PREDICTIONS)
@pytest.mark.parametrize(('logsnr_min', 'logsnr_max'), [(-20.0, 20.0), (-4.0, 1.0)])
def test_expected_loss_of_the_exact_network_is_the_least_possible(prediction, logsnr_min, logsnr_max):
    count, components = 40000, 4
    x = MEAN + SPREAD * jax.random.normal(jax.random.key(1), (count, components))
    draws = draw(jax.random.split(jax.random.key(2), count), (components,))

    @jax.jit
    def losses(scale, x, draws):
        exact = _exact_network(prediction)
        return loss.denoising_loss(
            lambda z, logsnr, c: scale * exact(z, logsnr, c),
            x,
            jnp.zeros(count, jnp.int32),
            draws,
            prediction=prediction,
            p_uncond=0.1,
            null_label=NULL,
            logsnr_min=logsnr_min,
            logsnr_max=logsnr_max,
        )

    least = np.float64(losses(1.0, x, draws))
    error_bar = least.std() / np.sqrt(count)
    expected = _least_loss(prediction, logsnr_min, logsnr_max)
    assert error_bar < 0.01 * expected  # or the comparison would say little
    assert abs(least.mean() - expected) < 4 * error_bar
    assert losses(0.9, x, draws).mean() > least.mean()
    assert losses(1.1, x, draws).mean() > least.mean()


def _equal_draws(actual, expected):
    np.testing.assert_array_equal(actual.u_label, expected.u_label)
    np.testing.assert_array_equal(actual.u_time, expected.u_time)
    # The transform from bits to normals may round differently at another batch size.
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=1e-6, atol=1e-6)


def test_draws_depend_only_on_the_key_of_the_example():
    keys = jax.random.split(jax.random.key(3), 8)
    draws = draw(keys, (2, 2, 3))
    order = np.random.default_rng(0).permutation(8)
    _equal_draws(draw(keys[order], (2, 2, 3)), jax.tree.map(lambda value: value[order], draws))
    pieces = [draw(keys[start : start + 4], (2, 2, 3)) for start in (0, 4)]
    _equal_draws(jax.tree.map(lambda *values: jnp.concatenate(values), *pieces), draws)


def test_loss_of_an_example_does_not_depend_on_its_batch():
    x, labels, keys = _batch(8)

    compiled = jax.jit(lambda x, labels, draws: loss.denoising_loss(_toy_network, x, labels, draws, **SETTINGS))

    def of(rows):
        return compiled(x[rows], labels[rows], draw(keys[rows], x.shape[1:]))

    whole = np.asarray(of(np.arange(8)))
    order = np.random.default_rng(1).permutation(8)
    np.testing.assert_allclose(of(order), whole[order], rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([of(np.arange(4)), of(np.arange(4, 8))]), whole, rtol=1e-5)


def test_draws_have_the_right_laws_and_are_independent():
    count, components = 40000, 4
    draws = draw(jax.random.split(jax.random.key(4), count), (components,))
    assert draws.eps.shape == (count, components)
    assert scipy.stats.kstest(np.float64(draws.u_label), 'uniform').pvalue > 1e-3
    assert scipy.stats.kstest(np.float64(draws.u_time), 'uniform').pvalue > 1e-3
    assert scipy.stats.kstest(np.float64(draws.eps).ravel(), 'norm').pvalue > 1e-3
    # A key used twice would show here: the same bits in two of the columns.
    columns = np.column_stack([draws.u_label, draws.u_time, scipy.stats.norm.cdf(draws.eps)])
    correlation = np.corrcoef(columns, rowvar=False) - np.eye(2 + components)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(count)


@pytest.mark.parametrize('p_uncond', [0.0, 0.3, 1.0])
def test_the_null_label_reaches_the_network_and_only_by_dropout(p_uncond):
    x, labels, keys = _batch()
    draws = draw(keys, x.shape[1:])
    seen = []

    def network(z, logsnr, c):
        seen.append((z, logsnr, c))
        return z

    loss.denoising_loss(network, x, labels, draws, **SETTINGS | {'p_uncond': p_uncond})
    ((z, logsnr, c),) = seen
    np.testing.assert_array_equal(c, np.where(np.asarray(draws.u_label) < np.float32(p_uncond), NULL, labels))
    # Dropping the label leaves the rest of what the network sees as it was.
    expected = _quantile(draws.u_time, -20.0, 20.0)
    np.testing.assert_allclose(logsnr, expected, rtol=0, atol=3e-6)
    alpha, sigma = _scales(expected.reshape(-1, 1, 1, 1))
    np.testing.assert_allclose(z, alpha * x + sigma * np.float64(draws.eps), rtol=0, atol=5e-6)


@pytest.mark.parametrize('prediction', process.PREDICTIONS)
def test_gradients_of_the_loss_are_finite_at_the_extremes_of_time(prediction):
    x, labels, keys = _batch(8)
    draws = draw(keys, x.shape[1:])._replace(u_time=jnp.float32([0, 2.0**-24, 1e-3, 0.4, 0.5, 0.9, 1 - 2.0**-24, 1]))

    def total(scale):
        return loss.denoising_loss(
            lambda z, logsnr, c: scale * z, x, labels, draws, prediction=prediction, **SETTINGS
        ).sum()

    value, slope = jax.jit(jax.value_and_grad(total))(0.7)
    assert np.isfinite(value)
    assert np.isfinite(slope)


def test_an_unknown_prediction_is_refused():
    x, labels, keys = _batch(8)
    with pytest.raises(ValueError, match='prediction must be one of'):
        loss.denoising_loss(_toy_network, x, labels, draw(keys, x.shape[1:]), prediction='score', **SETTINGS)
