"""The rules whose passes are not those of Eq. 6: when adaptive guidance ends, and rectified gradients exactly."""

import jax.numpy as jnp
import numpy as np
import pytest

from cfg.diffusion import mixture, process
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Adaptive, Cfg, RectifiedGradient
from cfg.diffusion.rules.base import Passes
from cfg.diffusion.sampler import Sampler
from tests.diffusion.toys import CLASSES, MODELS, NULL, SHAPE, keys, labels, scales, toy_eps, worse_eps

pytestmark = pytest.mark.usefixtures('eager')
LEVELS = np.float32([-1.0, 0.0, 1.0, 2.0])
STRENGTHS = np.float32([0, -1, 0.3, 1, 2, 4])
COUNT = len(STRENGTHS)


def inputs(seed=1, count=COUNT):
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def along(rule, models, w, rows=slice(None), levels=LEVELS):
    """The eps of a rule's evaluations at one z and several levels."""
    guided = Sampler(rule=rule, clip_x=False).guided(models, labels()[rows], jnp.float32(w))
    state, found = guided.init(keys()[rows], inputs()[rows]), []
    for level in levels:
        prediction, state = guided.predict(inputs()[rows], level, state)
        found.append(np.asarray(prediction.eps))
    return np.stack(found)


# --- adaptive guidance ---


def cosines(prediction):
    """Of the two predictions of the toy in float64: [levels, N]."""
    z, found = np.float64(inputs()), []
    for level in np.float64(LEVELS):
        alpha, sigma = scales(level)
        of = [toy_eps(z, level, each, np_=np) for each in (labels(), np.full_like(labels(), NULL))]
        if prediction == 'x':
            of = [(z - sigma * eps) / alpha for eps in of]
        one, two = (each.reshape(COUNT, -1) for each in of)
        found.append(np.sum(one * two, 1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1))
    return np.stack(found)


@pytest.mark.parametrize('prediction', ['x', 'eps'])
def test_a_sample_is_guided_until_its_predictions_agree(prediction):
    """Each on its own, the evaluation that shows it included; what w = 0 does not compare changes nothing."""
    found = cosines(prediction)
    end = float(np.median(found[0]))
    agreed = np.cumsum((found > end) & (STRENGTHS != 0), axis=0) > 0
    guided = np.concatenate([np.ones((1, COUNT), bool), ~agreed[:-1]])
    assert 0 < guided[1:].mean() < 1
    actual = along(Adaptive(cosine=end, prediction=prediction), MODELS, STRENGTHS)
    full, plain = along(Cfg(), MODELS, STRENGTHS), along(Cfg(), MODELS, 0.0)
    expected = np.where(guided[..., None, None], full, plain)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    # Nor does it depend on its batch.
    rows = np.array([4, 1, 5])
    part = along(Adaptive(cosine=end, prediction=prediction), MODELS, STRENGTHS[rows], rows)
    np.testing.assert_allclose(part, actual[:, rows], rtol=0, atol=1e-5)


def test_no_cosine_is_above_1():
    same = Models(Denoiser(lambda z, logsnr, labels: jnp.tanh(z), CLASSES))
    w = STRENGTHS
    for models in (MODELS, same):
        np.testing.assert_array_equal(along(Adaptive(cosine=1.0), models, w), along(Cfg(), models, w))


def test_the_other_pass_ends_with_the_last_sample_that_asks_for_it():
    """What is counted is a bound; an interval that ends at the same level is counted exactly."""
    asked = []

    def fn(z, logsnr, labels):
        asked.append(len(z) // COUNT)
        return toy_eps(z, logsnr, labels)

    models = Models(Denoiser(fn, CLASSES))
    along(Adaptive(cosine=-1.0), models, 1.0)
    assert asked == [2, 1, 1, 1]
    w = np.ones(4)
    assert Adaptive(cosine=-1.0).passes(w, second_uncond=False) == Passes(both=4)
    assert Adaptive().passes(0 * w, second_uncond=False) == Passes(single=4)


# --- rectified gradients ---


@pytest.mark.parametrize('kind', process.PREDICTIONS)
@pytest.mark.parametrize('level', [-2.0, 3.0])
def test_rectified_gradients_match_float64(level, kind):
    """The toy acts on each component alone, so that the gradient of its sum is its derivative."""

    def told(eps_fn):
        def fn(z, logsnr, labels):
            eps = eps_fn(z, logsnr, labels)
            return process.target(process.x_from_eps(z, eps, logsnr), eps, logsnr, prediction=kind)

        return Denoiser(fn, CLASSES, kind)

    z, w = np.float64(inputs()), np.float64(STRENGTHS)[:, None, None]
    _, sigma = scales(level)
    cond = toy_eps(z, level, labels(), np_=np)
    moved = z + 0.3 * labels()[:, None, None]
    slope = (1 - np.tanh(moved) ** 2) * (1 + 0.1 * np.sin(level)) - 0.3 * np.sin(3 * z)
    null = np.full_like(labels(), NULL)
    for models, other in (
        (Models(told(toy_eps)), toy_eps(z, level, null, np_=np)),
        (Models(told(toy_eps), uncond=Denoiser(worse_eps, CLASSES)), worse_eps(z, level, null, np_=np)),
    ):
        expected = cond + w * (1 - sigma * slope) * (cond - other)
        actual = along(RectifiedGradient(), models, STRENGTHS, levels=np.float32([level]))[0]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5)


def test_rectified_gradients_of_a_gaussian():
    """eps of N(m, s^2) is sigma (z - alpha m) / v with v = alpha^2 s^2 + sigma^2; 1 - sigma g is alpha^2 s^2 / v."""
    means, deviation, level, w = np.array([-1.0, 1.0]), 0.5, -0.5, 2.0
    data = mixture.gaussian_mixture(means[:, None], np.full((2, 1, 1), deviation**2), np.ones(2))
    models = Models(Denoiser(mixture.eps_fn(data), 2))
    z = np.linspace(-2, 2, COUNT, dtype=np.float32)[:, None]
    of = jnp.zeros(COUNT, jnp.int32)
    guided = Sampler(rule=RectifiedGradient(), clip_x=False).guided(models, of, jnp.float32(w))
    actual = guided.predict(z, jnp.float32(level), guided.init(keys(), z))[0].eps
    alpha, sigma = scales(level)
    variance = alpha**2 * deviation**2 + sigma**2
    cond = sigma * (z - alpha * means[0]) / variance
    # The mean of the two eps by the classes' posterior.
    log_odds = 2 * alpha * means[1] * z / variance
    other = cond - sigma * alpha * (means[1] - means[0]) / variance / (1 + np.exp(-log_odds))
    expected = cond + w * alpha**2 * deviation**2 / variance * (cond - other)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_a_pass_back_is_counted_where_it_runs():
    w = np.array([0.0, 1.0, -1.0])
    rule = RectifiedGradient()
    assert rule.passes(w, second_uncond=False) == Passes(single=5, back=2)
    assert rule.passes(w, second_uncond=True) == Passes(single=3, second=2, back=2)
