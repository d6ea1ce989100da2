"""Feedback guidance: against the source's loop in EDM's variables and float64, and what it reduces to."""

import jax.numpy as jnp
import numpy as np
import pytest

from cfg.diffusion import schedule, solvers
from cfg.diffusion.rules import Cfg, Feedback
from cfg.diffusion.sampler import Sampler
from tests.diffusion.toys import COUNT, MODELS, NULL, SHAPE, keys, labels, models_of, normal, scales, toy_eps

pytestmark = pytest.mark.usefixtures('eager')
LEVELS = schedule.uniform_grid(6, logsnr_min=-4.0, logsnr_max=6.0)
OPTIONS = {'pi': 0.8, 'tau': 0.05, 'delta': -0.3, 'limit': 4.0}
RULE = Feedback(**OPTIONS)


def draw(rule, w=0.0, *, solver=solvers.Ancestral(logvar_interp=0.0), rows=slice(None), models=MODELS):  # noqa: B008
    """Samples, and the rule's state at the end."""
    guided, seen = Sampler(rule=rule, clip_x=False).guided(models, labels()[rows], jnp.float32(w)), []

    def predict(z, logsnr, state):
        prediction, state = guided.predict(z, logsnr, state)
        seen.append(state.memory)
        return prediction, state

    x = solver.sample(guided._replace(predict=predict), keys()[rows], LEVELS, shape=SHAPE)
    return np.asarray(x), seen


def estimates(y, sigma):
    """The conditional and the unconditional estimate of the toy, at a point y = x + sigma eps of EDM's process."""
    level = -2 * np.log(sigma)
    alpha, _ = scales(level)
    return (y - sigma * toy_eps(alpha * y, level, of, np_=np) for of in (labels(), np.full_like(labels(), NULL)))


def feedback(kind, *, constant=1.0, inside=lambda sigma: True, pi=0.8, tau=0.05, delta=-0.3, limit=4.0):
    """The source's loop in its own variables, in float64; the scale of the hybrids is `constant`, 1 for the rule."""
    sigmas = np.exp(-0.5 * np.float64(LEVELS))
    y = normal(0) / scales(LEVELS[0])[0]
    log_p, scales_seen = np.zeros(COUNT), []
    for i, sigma in enumerate(sigmas):
        # A cap on the sum of both, on the interval as outside it.
        own = limit - (constant - 1 if inside(sigma) else 0)
        if i:
            log_p = np.clip(log_p, np.log((1 - pi) * own / (own - 1)), 3)
        scale = np.exp(log_p) / (np.exp(log_p) - (1 - pi)) + (constant - 1 if inside(sigma) else 0)
        scales_seen.append(scale)
        cond, other = estimates(y, sigma)
        guided = other + scale[:, None, None] * (cond - other)
        if i + 1 == len(sigmas):
            return guided, np.array(scales_seen)
        t2, s2 = sigma**2, sigmas[i + 1] ** 2
        before, variance = y, (t2 - s2) * s2 / t2
        if kind == 'ancestral':
            y = s2 / t2 * y + (t2 - s2) / t2 * guided + np.sqrt(variance) * normal(i + 1)
        else:
            y = y + (np.sqrt(s2) - sigma) * (y - guided) / sigma
        means = (s2 / t2 * before + (t2 - s2) / t2 * x for x in (cond, other))
        one, two = (np.sum((y - mean) ** 2, axis=(1, 2)) for mean in means)
        log_p = log_p - tau / (2 * variance) * (one - two) + delta


@pytest.mark.parametrize(('w', 'interval'), [(0.0, None), (1.5, None), (1.5, (-1.0, 3.0))])
@pytest.mark.parametrize('kind', ['ancestral', 'ddim'])
def test_it_is_the_loop_of_the_source(kind, w, interval):
    """Alone, and with a constant strength everywhere or on an interval, as the source's hybrids."""
    solver = {'ancestral': solvers.Ancestral(logvar_interp=0.0), 'ddim': solvers.Ddim()}[kind]
    low, high = interval or (-np.inf, np.inf)
    expected, seen = feedback(kind, constant=1 + w, inside=lambda sigma: low <= -2 * np.log(sigma) < high)
    assert np.ptp(seen[-1]) > 0.2  # samples differ
    rule = Feedback(**OPTIONS, interval=interval)
    np.testing.assert_allclose(draw(rule, w, solver=solver)[0], expected, rtol=0, atol=2e-4)


def test_the_scale_is_held_between_its_ends():
    """A large tau meets both: e^3 / (e^3 - (1 - pi)) and `limit`."""
    _, seen = draw(Feedback(pi=0.9, tau=200.0, delta=0.0, limit=4.0))
    log_p = np.stack([each.log_p for each in seen])
    assert log_p.max() == 3.0
    scale = np.exp(log_p) / (np.exp(log_p) - 0.1)
    assert scale.min() > 1.0
    np.testing.assert_allclose(scale.max(), 4.0, rtol=1e-5)
    # Where w is the limit already, nothing is left for lambda - 1.
    _, seen = draw(Feedback(pi=0.9, tau=200.0, delta=-1.0, limit=4.0), 3.5)
    assert (np.stack([each.log_p for each in seen])[1:] == 3.0).all()


def test_without_doubt_it_is_eq_6_to_the_bit():
    for w in (0.0, np.float32([0, 1, 2, 0, 0.5, 3])):
        np.testing.assert_array_equal(draw(Feedback(pi=1.0), w)[0], draw_cfg(w))
    np.testing.assert_array_equal(draw(Feedback(pi=1.0))[0], draw_cfg(0.0, models=models_of(toy_eps)))


def draw_cfg(w, models=MODELS):
    guided = Sampler(rule=Cfg(), clip_x=False).guided(models, labels(), jnp.float32(w))
    return np.asarray(solvers.Ancestral(logvar_interp=0.0).sample(guided, keys(), LEVELS, shape=SHAPE))


def test_two_equal_predictions_leave_delta_alone():
    """p then falls by e^delta a step, down to where lambda is the limit."""
    _, seen = draw(RULE, models=models_of(lambda z, logsnr, labels: jnp.tanh(z)))
    expected = np.maximum(-0.3 * np.arange(6), np.log(0.2 * 4 / 3))
    np.testing.assert_allclose([each.log_p[0] for each in seen], expected, rtol=0, atol=1e-6)


def test_each_sample_has_its_own_way():
    rows, w = np.array([4, 1, 5]), np.float32([0, 1, 2, 0, 0.5, 1])
    whole, part = draw(RULE, w)[0], draw(RULE, w[rows], rows=rows)[0]
    np.testing.assert_allclose(part, whole[rows], rtol=0, atol=2e-5)


def test_an_evaluation_at_the_same_level_changes_nothing():
    """Heun's first one of a step is where the second one of the step before was."""
    _, seen = draw(RULE, solver=solvers.Heun())
    log_p = np.stack([each.log_p for each in seen])
    np.testing.assert_array_equal(log_p[1::2][:-1], log_p[2::2][:-1])
    assert (log_p[1::2] != log_p[::2][: len(log_p[1::2])]).any(axis=1).all()
