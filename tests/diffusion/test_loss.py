import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from cfg.diffusion import loss, mixture, process

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


@pytest.mark.parametrize('p_uncond', [0.1, 0.2, 0.5])
def test_labels_are_dropped_at_the_given_rate(p_uncond):
    count = 50000
    u = jax.random.uniform(jax.random.key(0), (count,))
    labels = np.arange(count, dtype=np.int32) % 10
    dropped = np.asarray(loss.drop_labels(u, labels, p_uncond=p_uncond, null_label=10))
    gone = dropped == 10
    assert scipy.stats.binomtest(int(gone.sum()), count, p_uncond).pvalue > 1e-3
    np.testing.assert_array_equal(dropped[~gone], labels[~gone])
    # Whether a label goes says nothing about which label it was.
    table = np.stack([np.bincount(labels[gone], minlength=10), np.bincount(labels[~gone], minlength=10)])
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_never_and_always_dropped():
    # The smallest and the largest draw of [0, 1).
    u = np.float32([0, 0.5, np.nextafter(np.float32(1), np.float32(0))])
    labels = np.array([3, 0, 9], np.int32)
    never = loss.drop_labels(u, labels, p_uncond=0.0, null_label=10)
    always = loss.drop_labels(u, labels, p_uncond=1.0, null_label=10)
    np.testing.assert_array_equal(never, labels)
    np.testing.assert_array_equal(always, [10] * 3)
    assert never.dtype == always.dtype == jnp.int32


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


# ---- the classifier of noisy images

LIMITS = {'logsnr_min': -20.0, 'logsnr_max': 20.0}
MEANS, DEVIATION, PRIOR = np.array([-1.0, 0.4, 1.5]), 0.5, np.array([0.5, 0.3, 0.2])


def _log_joint(z, logsnr):
    """log p(c) + log p(z | c) of three Gaussians on a line, float64 [N, 3]."""
    alpha, sigma = _scales(np.asarray(logsnr, np.float64)[..., None])
    deviation = np.sqrt(alpha**2 * DEVIATION**2 + sigma**2)
    return np.log(PRIOR) + scipy.stats.norm.logpdf(np.asarray(z, np.float64)[..., None], alpha * MEANS, deviation)


def _conditional_entropy(logsnr):
    """H(c | z) = -E sum_c p(c | z) log p(c | z) at one level, by quadrature."""

    def integrand(z):
        joint = _log_joint(np.array(z), logsnr)
        return -np.sum(np.exp(joint) * (joint - scipy.special.logsumexp(joint)))

    return scipy.integrate.quad(integrand, -12, 12, points=[-1, 0, 1], limit=200)[0]


def _labelled(count, u_time, seed=0):
    """(x [count, 1], labels, draws at one time)."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, count, p=PRIOR).astype(np.int32)
    x = (MEANS[labels] + DEVIATION * random.normal(size=count)).astype(np.float32)[:, None]
    draws = draw(jax.random.split(jax.random.key(seed), count), (1,))
    return x, labels, draws._replace(u_time=jnp.full(count, u_time, jnp.float32))


def _exact_logits():
    return mixture.logits_fn(mixture.gaussian_mixture(MEANS[:, None], np.full((3, 1, 1), DEVIATION**2), PRIOR))


@pytest.mark.parametrize('u_time', [0.02, 0.3, 0.5, 0.7, 0.98])
def test_the_classification_loss_of_the_exact_classifier_is_the_conditional_entropy(u_time):
    count = 40_000
    x, labels, draws = _labelled(count, u_time)
    losses, correct = loss.classification_loss(_exact_logits(), x, labels, draws, **LIMITS)
    logsnr = _quantile(u_time, -20.0, 20.0)
    assert losses.shape == correct.shape == (count,)
    losses = np.float64(losses)
    error = 4.5 * losses.std() / np.sqrt(count)
    assert losses.mean() == pytest.approx(_conditional_entropy(logsnr), abs=error)
    z = _scales(logsnr)[0] * x[:, 0] + _scales(logsnr)[1] * np.float64(draws.eps[:, 0])
    wins = _log_joint(z, logsnr).argmax(axis=1) == labels
    assert np.mean(wins != np.asarray(correct)) < 1e-3


def test_other_classifiers_lose_by_their_divergence_from_bayes_rule():
    """E loss(q) - E loss(p) = E KL(p(c | z) || q(c | z)), whose zero is the minimum."""
    x, labels, draws = _labelled(40_000, 0.5, seed=1)
    exact = _exact_logits()

    def other(z, logsnr):
        return 0.6 * exact(z, logsnr) + jnp.array([0.0, 0.5, -0.3])

    of_p, _ = loss.classification_loss(exact, x, labels, draws, **LIMITS)
    of_q, _ = loss.classification_loss(other, x, labels, draws, **LIMITS)
    z = _scales(0.0)[0] * x[:, 0] + _scales(0.0)[1] * np.float64(draws.eps[:, 0])
    log_p = scipy.special.log_softmax(_log_joint(z, np.zeros(len(z))), axis=1)
    log_q = scipy.special.log_softmax(0.6 * log_p + [0.0, 0.5, -0.3], axis=1)
    divergence = np.sum(np.exp(log_p) * (log_p - log_q), axis=1).mean()
    difference = np.float64(of_q) - np.float64(of_p)
    assert divergence > 0.05
    assert difference.mean() == pytest.approx(divergence, abs=4.5 * difference.std() / np.sqrt(len(z)))


def test_training_on_it_comes_to_bayes_rule():
    """Two Gaussians at +-m: the exact logit is 2 alpha m z / (alpha^2 s^2 + sigma^2), linear in z at each level."""
    m, s, logsnr = 0.8, 0.5, 0.0
    random = np.random.default_rng(2)
    labels = random.integers(0, 2, 20_000).astype(np.int32)
    x = ((2 * labels - 1) * m + s * random.normal(size=len(labels))).astype(np.float32)[:, None]
    draws = draw(jax.random.split(jax.random.key(2), len(x)), (1,))._replace(u_time=jnp.full(len(x), 0.5))

    @jax.jit
    def slope_of(slope):
        def mean(slope):
            losses, _ = loss.classification_loss(
                lambda z, _: jnp.concatenate([jnp.zeros_like(z), slope * z], axis=1), x, labels, draws, **LIMITS
            )
            return losses.mean()

        return jax.grad(mean)(slope)

    slope = 0.0
    for _ in range(200):
        slope -= 2.0 * slope_of(slope)
    alpha, sigma = _scales(logsnr)
    assert slope == pytest.approx(2 * alpha * m / (alpha**2 * s**2 + sigma**2), rel=0.05)


def test_the_classifier_sees_the_noise_that_the_model_is_trained_on():
    x, labels, keys = _batch(8)
    draws = draw(keys, x.shape[1:])
    seen = []
    loss.denoising_loss(lambda *inputs: seen.append(inputs) or inputs[0], x, labels, draws, **SETTINGS)
    loss.classification_loss(lambda *inputs: seen.append(inputs) or jnp.zeros((8, NULL)), x, labels, draws, **LIMITS)
    (z, logsnr, _), (z_again, logsnr_again) = seen
    np.testing.assert_array_equal(z, z_again)
    np.testing.assert_array_equal(logsnr, logsnr_again)
