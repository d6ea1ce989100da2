import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from cfg.diffusion import guidance, pairs, rules, sampling, schedule, strength

LIMITS = {'logsnr_min': -20.0, 'logsnr_max': 20.0}
NULL = 5


def test_a_number_is_a_strength_at_every_level():
    for w in (1.5, np.float32([0, 1, 2])):
        np.testing.assert_array_equal(strength.strength_at(w, jnp.float32(3)), np.float32(w))
        assert strength.strength_at(w, jnp.float32(3)).dtype == jnp.float32


def test_an_interval_is_closed_at_the_noise_and_open_at_the_data():
    limited = strength.interval(2.0, logsnr_lo=-1.0, logsnr_hi=3.0)
    levels = np.float32([-20, -1.001, -1, 0, 2.999, 3, 20])
    np.testing.assert_array_equal(limited(levels), [0, 0, 2, 2, 2, 0, 0])


def test_an_interval_of_edm_is_the_same_set_of_levels():
    # (sigma_lo, sigma_hi] of the paper, at the very ends and between.
    sigma_lo, sigma_hi = np.float32(0.28), np.float32(2.9)
    limited = strength.interval(
        1.0, logsnr_lo=schedule.logsnr_from_sigma(sigma_hi), logsnr_hi=schedule.logsnr_from_sigma(sigma_lo)
    )
    sigma = np.float32([0.01, 0.27, 0.28, 0.29, 1, 2.9, 2.91, 80])
    np.testing.assert_array_equal(limited(schedule.logsnr_from_sigma(sigma)), (sigma > sigma_lo) & (sigma <= sigma_hi))


def test_an_infinite_interval_changes_nothing():
    w = np.float32([0, -1, 3])
    limited = strength.interval(w, logsnr_lo=-np.inf, logsnr_hi=np.inf)
    for level in (-20, 0, 20):
        np.testing.assert_array_equal(limited(jnp.float32(level)), w)


@pytest.mark.parametrize('kind', [strength.linear, strength.cosine])
def test_schedules_grow_from_0_to_twice_w_and_have_mean_w(kind):
    scheduled = jax.jit(kind(1.5, **LIMITS))
    np.testing.assert_allclose(scheduled(jnp.float32(-20)), 0, atol=1e-6)
    np.testing.assert_allclose(scheduled(jnp.float32(20)), 3, rtol=1e-6)
    np.testing.assert_allclose(scheduled(jnp.float32(0)), 1.5, rtol=1e-5)  # u = 1/2
    assert (np.diff(scheduled(np.linspace(-15, 15, 61, dtype=np.float32))) > 0).all()
    mean, _ = scipy.integrate.quad(lambda u: float(scheduled(schedule.logsnr_from_u(u, **LIMITS))), 0, 1)
    assert mean == pytest.approx(1.5, abs=1e-4)


def test_schedules_at_a_quarter_of_the_time():
    level = schedule.logsnr_from_u(0.25, **LIMITS)
    np.testing.assert_allclose(strength.linear(1.0, **LIMITS)(level), 1.5, rtol=1e-5)
    np.testing.assert_allclose(strength.cosine(1.0, **LIMITS)(level), 1 + np.sqrt(0.5), rtol=1e-5)


def test_strengths_go_around_strengths_with_one_w_an_example():
    w = np.float32([0, 1, 2])
    both = strength.interval(strength.linear(w, **LIMITS), logsnr_lo=-1.0, logsnr_hi=1.0)
    np.testing.assert_allclose(both(jnp.float32(0)), w, rtol=1e-5)
    np.testing.assert_array_equal(both(jnp.float32(2)), [0, 0, 0])
    # One level an example as well.
    np.testing.assert_allclose(both(np.float32([0, 2, 0])), [0, 0, 2], rtol=1e-5)


def _toy_eps(z, logsnr, labels):
    level = jnp.broadcast_to(logsnr, labels.shape)[:, None]
    return jnp.tanh(z + 0.3 * labels[:, None]) * (1 + 0.1 * jnp.sin(level))


@pytest.mark.parametrize('models', [1, 2])
def test_outside_the_interval_one_pass_runs(models):
    """Inside 2N rows or two networks are evaluated, outside N rows of one."""
    runs = []

    def recording(name):
        def network(z, logsnr, labels):
            jax.debug.callback(lambda level: runs.append((name, z.shape[0], float(np.ravel(level)[0]))), logsnr)
            return _toy_eps(z, logsnr, labels)

        return network

    w = strength.interval(1.5, logsnr_lo=-2.0, logsnr_hi=2.0)
    if models == 1:
        guided = guidance.classifier_free_eps_fn(recording('first'), w, null_label=NULL)
    else:
        pair = pairs.two_model_pair(recording('first'), recording('second'), null_label=NULL)
        guided = rules.classifier_free(pair, w)
    grid = schedule.uniform_grid(8, logsnr_min=-6.0, logsnr_max=6.0)
    keys, labels = jax.random.split(jax.random.key(0), 3), np.arange(3, dtype=np.int32)
    settings = {'shape': (2,), 'logvar_interp': 0.3, 'clip_x': False}
    actual = jax.jit(lambda: sampling.ancestral(guided, keys, labels, grid, **settings))()
    jax.effects_barrier()

    inside = (grid >= -2) & (grid < 2)
    assert 0 < inside.sum() < 8
    expected = []
    for level, guides in zip(np.asarray(grid).tolist(), inside, strict=True):
        if models == 1:
            expected.append(('first', 6 if guides else 3, level))
        else:
            expected += [(name, 3, level) for name in (('first', 'second') if guides else ('first',))]
    assert sorted(runs) == sorted(expected)

    # And the sample is that of Eq. 6 inside and the conditional eps outside.
    def by_hand(z, logsnr, labels):
        cond, uncond = _toy_eps(z, logsnr, labels), _toy_eps(z, logsnr, jnp.full_like(labels, NULL))
        return jnp.where((logsnr >= -2) & (logsnr < 2), 2.5 * cond - 1.5 * uncond, cond)

    np.testing.assert_allclose(actual, sampling.ancestral(by_hand, keys, labels, grid, **settings), atol=2e-5)
