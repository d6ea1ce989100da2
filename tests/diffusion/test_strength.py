"""The strength as a function of the level, alone and as the options of a rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from cfg.diffusion import schedule, strength
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.grids import Uniform
from cfg.diffusion.rules import Cfg, Temperature
from cfg.diffusion.sampler import Sampler

LIMITS = {'logsnr_min': -20.0, 'logsnr_max': 20.0}
NULL = 5


def test_a_rule_without_options_has_its_strength_at_every_level():
    for w in (1.5, np.float32([0, 1, 2])):
        found = Cfg().strength_at(w, jnp.float32(3), **LIMITS)
        np.testing.assert_array_equal(found, np.float32(w))
        assert found.dtype == jnp.float32


def test_an_interval_is_closed_at_the_noise_and_open_at_the_data():
    levels = np.float32([-20, -1.001, -1, 0, 2.999, 3, 20])
    expected = [0, 0, 2, 2, 2, 0, 0]
    np.testing.assert_array_equal(strength.interval(2.0, levels, logsnr_lo=-1.0, logsnr_hi=3.0), expected)
    np.testing.assert_array_equal(Cfg(interval=(-1, 3)).strength_at(2.0, levels, **LIMITS), expected)


def test_an_interval_of_edm_is_the_same_set_of_levels():
    # (sigma_lo, sigma_hi] of the paper, at the very ends and between.
    sigma_lo, sigma_hi = np.float32(0.28), np.float32(2.9)
    low, high = schedule.logsnr_from_sigma(sigma_hi), schedule.logsnr_from_sigma(sigma_lo)
    sigma = np.float32([0.01, 0.27, 0.28, 0.29, 1, 2.9, 2.91, 80])
    limited = strength.interval(1.0, schedule.logsnr_from_sigma(sigma), logsnr_lo=low, logsnr_hi=high)
    np.testing.assert_array_equal(limited, (sigma > sigma_lo) & (sigma <= sigma_hi))


def test_an_infinite_interval_changes_nothing():
    w = np.float32([0, -1, 3])
    for level in jnp.float32([-20, 0, 20]):
        np.testing.assert_array_equal(strength.interval(w, level, logsnr_lo=-np.inf, logsnr_hi=np.inf), w)
        np.testing.assert_array_equal(Cfg(interval=(-20, None)).strength_at(w, level, **LIMITS), w)


@pytest.mark.parametrize('kind', [strength.linear, strength.cosine])
def test_schedules_grow_from_0_to_twice_w_and_have_mean_w(kind):
    @jax.jit
    def scheduled(level):
        return kind(1.5, level, **LIMITS)

    np.testing.assert_allclose(scheduled(jnp.float32(-20)), 0, atol=1e-6)
    np.testing.assert_allclose(scheduled(jnp.float32(20)), 3, rtol=1e-6)
    np.testing.assert_allclose(scheduled(jnp.float32(0)), 1.5, rtol=1e-5)  # u = 1/2
    assert (np.diff(scheduled(np.linspace(-15, 15, 61, dtype=np.float32))) > 0).all()
    # The mean over u, by Simpson's rule on 2001 points.
    u = np.linspace(0, 1, 2001)
    of_u = np.float64(scheduled(schedule.logsnr_from_u(jnp.float32(u), **LIMITS)))
    assert scipy.integrate.simpson(of_u, x=u) == pytest.approx(1.5, abs=1e-4)
    named = Cfg(schedule=kind.__name__).strength_at(1.5, jnp.float32(2), **LIMITS)
    np.testing.assert_allclose(named, scheduled(jnp.float32(2)), rtol=1e-6)


def test_schedules_at_a_quarter_of_the_time():
    level = schedule.logsnr_from_u(0.25, **LIMITS)
    np.testing.assert_allclose(strength.linear(1.0, level, **LIMITS), 1.5, rtol=1e-5)
    np.testing.assert_allclose(strength.cosine(1.0, level, **LIMITS), 1 + np.sqrt(0.5), rtol=1e-5)


def test_an_interval_goes_around_a_schedule_with_one_w_an_example():
    w = np.float32([0, 1, 2])
    rule = Cfg(schedule='linear', interval=(-1, 1))
    np.testing.assert_allclose(rule.strength_at(w, jnp.float32(0), **LIMITS), w, rtol=1e-5)
    np.testing.assert_array_equal(rule.strength_at(w, jnp.float32(2), **LIMITS), [0, 0, 0])
    # One level an example as well.
    np.testing.assert_allclose(rule.strength_at(w, np.float32([0, 2, 0]), **LIMITS), [0, 0, 2], rtol=1e-5)


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

    network, second = (Denoiser(recording(name), NULL) for name in ('first', 'second'))
    grid = schedule.uniform_grid(8, logsnr_min=-6.0, logsnr_max=6.0)
    labels = np.arange(3, dtype=np.int32)
    keys = jax.random.split(jax.random.key(0), 3)

    def drawn(rule, models, w):
        sampler = Sampler(rule=rule, grid=Uniform(logsnr_min=-6.0, logsnr_max=6.0), num_steps=8, clip_x=False)
        return jax.jit(lambda: sampler.sample(models, keys, labels, w, shape=(2,)))()

    actual = drawn(Cfg(interval=(-2, 2)), Models(network, uncond=second if models == 2 else None), 1.5)
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

    expected = drawn(Temperature(), Models(Denoiser(by_hand, NULL)), 0.0)
    np.testing.assert_allclose(actual, expected, atol=2e-5)
