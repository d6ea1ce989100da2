"""Pairs of a prediction and a worse one for the same label: a noisier level, and perturbed attention."""

import jax.numpy as jnp
import numpy as np
import pytest

from cfg.diffusion import process, schedule, solvers
from cfg.diffusion.denoiser import Denoiser, Models, Perturbation
from cfg.diffusion.rules import BlurredAttention, Cfg, PerturbedAttention, TimeStep
from cfg.diffusion.rules.base import Passes
from cfg.diffusion.sampler import Sampler
from cfg.runtime.errors import UserError
from tests.diffusion.toys import CLASSES, COUNT, SHAPE, keys, labels, models_of, toy_eps

pytestmark = pytest.mark.usefixtures('eager')
LEVELS = schedule.uniform_grid(4, logsnr_min=-5.0, logsnr_max=6.0)
STRENGTHS = np.float32([0, -1, 0.3, 1, 2, 4])
ENDS = {'logsnr_min': -5.0, 'logsnr_max': 6.0}
RULES = [TimeStep(shift=0.4), PerturbedAttention(), BlurredAttention(sigma=2.0)]


def perturbed_fn(perturbation):
    """A toy's network, worse in a way that tells every perturbation."""
    factor = 0.9 - 0.1 * perturbation.blocks - (0.01 * perturbation.sigma if perturbation.sigma else 0.0)
    return lambda z, logsnr, labels: factor * toy_eps(z, logsnr, labels)


MODELS = Models(Denoiser(toy_eps, CLASSES, perturbed_fn=perturbed_fn))


def inputs(seed=1, count=COUNT):
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def predict(rule, level, w, *, models=MODELS, rows=slice(None)):
    guided = Sampler(rule=rule, clip_x=False, **ENDS).guided(models, labels()[rows], jnp.float32(w))
    return guided.predict(inputs()[rows], jnp.float32(level), guided.init(keys()[rows], inputs()[rows]))[0]


@pytest.mark.parametrize('kind', process.PREDICTIONS)
def test_self_guidance_combines_outputs_of_two_levels(kind):
    """Whatever the network predicts, in float64; what is made of it is read at the level of z."""
    level, w = 0.5, np.float64(STRENGTHS)[:, None, None]
    now, noisier = (toy_eps(np.float64(inputs()), at, labels(), np_=np) for at in (level, level - 0.4))
    expected = process.from_output(now + w * (now - noisier), inputs(), level, prediction=kind)
    actual = predict(TimeStep(shift=0.4), level, STRENGTHS, models=Models(Denoiser(toy_eps, CLASSES, kind)))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    assert np.abs(actual.x[-1] - predict(Cfg(), level, 0.0).x[-1]).max() > 1e-2


def test_nothing_is_told_a_level_that_was_not_trained():
    """So the first levels cost one pass, as the count says."""
    told = []

    def fn(z, logsnr, labels):
        told.append(float(logsnr))
        return toy_eps(z, logsnr, labels)

    rule = TimeStep(shift=0.4)
    for level in (-5.0, -4.7, -4.5):
        predict(rule, level, 2.0, models=models_of(fn))
    np.testing.assert_allclose(told, [-5, -4.7, -4.5, -4.9], rtol=1e-6)
    assert Sampler(rule=rule, num_steps=4, **ENDS).passes(2.0) == Passes(single=7)
    assert Sampler(rule=TimeStep(shift=0.4, interval=(1, None)), num_steps=4, **ENDS).passes(2.0).total < 7


@pytest.mark.parametrize(
    ('rule', 'perturbation'),
    [
        (PerturbedAttention(), Perturbation(4)),
        (PerturbedAttention(blocks=2), Perturbation(2)),
        (BlurredAttention(), Perturbation(1, np.inf)),
        (BlurredAttention(blocks=3, sigma=2.0), Perturbation(3, 2.0)),
    ],
)
def test_a_rule_asks_for_its_perturbation_with_the_same_label(rule, perturbation):
    asked = []

    def perturbed_fn(perturbation):
        asked.append(perturbation)
        return lambda z, logsnr, labels: 0.5 * toy_eps(z, logsnr, labels)

    cond = toy_eps(np.float64(inputs()), 0.5, labels(), np_=np)
    expected = cond + 0.5 * np.float64(STRENGTHS)[:, None, None] * cond
    actual = predict(rule, 0.5, STRENGTHS, models=Models(Denoiser(toy_eps, CLASSES, perturbed_fn=perturbed_fn)))
    np.testing.assert_allclose(actual.eps, expected, rtol=0, atol=1e-5)
    assert asked == [perturbation]


def test_a_function_without_attention_cannot_be_perturbed():
    with pytest.raises(UserError, match='no attention to perturb'):
        predict(PerturbedAttention(), 0.5, 1.0, models=models_of(toy_eps))


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.name)
def test_without_strength_it_is_plain_sampling_to_the_bit(rule):
    """And of several samples each has its own strength, whatever its batch."""
    drawn = {}
    for name, of, w in (('plain', Cfg(), 0.0), ('neutral', rule, 0.0), ('mixed', rule, STRENGTHS)):
        guided = Sampler(rule=of, clip_x=False, **ENDS).guided(MODELS, labels(), jnp.float32(w))
        drawn[name] = np.asarray(solvers.Ddim().sample(guided, keys(), LEVELS, shape=SHAPE))
    np.testing.assert_array_equal(drawn['neutral'], drawn['plain'])
    np.testing.assert_allclose(drawn['mixed'][0], drawn['plain'][0], rtol=0, atol=1e-6)
    assert (np.abs(drawn['mixed'] - drawn['plain']).max(axis=(1, 2)) > 1e-4).tolist() == [False] + [True] * 5
    rows = np.array([4, 0, 2])
    part, whole = predict(rule, 0.5, STRENGTHS[rows], rows=rows), predict(rule, 0.5, STRENGTHS)
    np.testing.assert_allclose(part.x, whole.x[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.name)
def test_two_passes_are_counted_where_both_are_needed(rule):
    w = np.array([0.0, 1.0, -1.0])
    for second_uncond in (False, True):
        assert rule.passes(w, second_uncond=second_uncond) == Passes(single=4)
    # No null label is asked for.
    assert rule.asks_for(1.0) == rule.asks_for(-1.0) == (True, False)
