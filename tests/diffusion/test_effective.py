"""The effective strength of rules: of Eq. 6 itself, against float64, and of rules whose remainder is known."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.diffusion import effective, mixture, options, process, stepping
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.grids import Uniform
from cfg.diffusion.rules import Apg, Cfg, CfgPlusPlus, Rescale, Temperature
from cfg.diffusion.rules.pairs import Labelled, Pair
from cfg.diffusion.sampler import Sampler, parse_rule, parse_solver
from cfg.diffusion.strength import Given
from cfg.runtime.errors import UserError
from tests.diffusion.toys import CLASSES, MODELS, SHAPE, keys, labels, normal, scales, toy_eps

ENDS = {'logsnr_min': -6.0, 'logsnr_max': 6.0}


def sampler_of(rule, solver='ddim', *, num_steps=5, clip_x=False):
    return Sampler(rule=rule, solver=parse_solver(solver), grid=Uniform(), num_steps=num_steps, clip_x=clip_x, **ENDS)


def strength_of(sampler, w, models=MODELS):
    sums = jax.jit(lambda w: effective.measure(sampler, models, keys(), labels(), w, shape=SHAPE))(w)
    return effective.strength_of(sampler, np.asarray(sums))


@pytest.mark.parametrize('solver', ['ancestral', 'ddim', 'dpm_solver_2m(stochastic=True)', 'heun'])
@pytest.mark.parametrize('clip_x', [False, True])
def test_of_eq_6_it_is_w_at_every_level(solver, clip_x):
    found = strength_of(sampler_of(Cfg(), solver, clip_x=clip_x), 1.7)
    np.testing.assert_allclose(found.levels, [-6, -3, 0, 3, 6])
    np.testing.assert_allclose(found.w, 1.7, rtol=1e-5)
    np.testing.assert_allclose(found.share, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    'rule', ['cfg(interval=(-4, 2))', "cfg(schedule='cosine')", 'power(alpha=0.0, interval=(-4, 2))', 'apg(eta=1.0)']
)
def test_of_an_interval_or_a_schedule_it_is_that(rule):
    """Also of other rules at the options that make them Eq. 6; what is known without measuring is what is measured."""
    rule = parse_rule(rule)
    sampler = sampler_of(rule)
    found = strength_of(sampler, 1.5)
    expected = rule.strength_at(1.5, found.levels, **ENDS)
    np.testing.assert_allclose(found.w, np.broadcast_to(expected, 5), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.share, 0.0, atol=1e-5)
    known = effective.exact(sampler, 1.5)
    assert (known is None) is (rule.name != 'cfg')
    if known:
        np.testing.assert_allclose(known.w, found.w, rtol=1e-5, atol=1e-6)


def slope(eps, cond, d):
    """The least squares slope over the batch and the share of the remainder, by numpy."""
    (w,), residual, *_ = np.linalg.lstsq(d.reshape(-1, 1), (eps - cond).ravel(), rcond=None)
    return w, residual[0] / np.sum((eps - cond) ** 2)


@pytest.mark.parametrize('kind', ['eps', 'x', 'v'])
def test_of_rescaling_and_apg_against_float64(kind):
    """At the first level, where z is the noise; for networks that predict eps, x or v."""
    level = -6.0
    alpha, sigma = scales(level)
    z = normal(0)
    cond, null = (toy_eps(z, np.full(1, level), of, np_=np) for of in (labels(), np.full(len(z), CLASSES)))
    d = cond - null
    eps = cond + 2.0 * d
    factor = cond.std(axis=(1, 2), keepdims=True) / eps.std(axis=(1, 2), keepdims=True)
    rescaled = eps * (0.3 + 0.7 * factor)
    x, update = (z - sigma * cond) / alpha, -sigma / alpha * d
    unit = x / np.linalg.norm(x, axis=(1, 2), keepdims=True)
    orthogonal = update - np.sum(update * unit, axis=(1, 2), keepdims=True) * unit
    apg = (z - alpha * (x + 2.0 * orthogonal)) / sigma

    def network(z, logsnr, labels):
        eps = toy_eps(z, logsnr, labels)
        return process.target(process.x_from_eps(z, eps, logsnr), eps, logsnr, prediction=kind)

    model = dataclasses.replace(MODELS.model, fn=network, prediction=kind)
    for rule, by_hand in ((Rescale(prediction='eps'), rescaled), (Apg(), apg)):
        found = strength_of(sampler_of(rule), 2.0, MODELS._replace(model=model))
        w, share = slope(by_hand, cond, d)
        assert found.w[0] == pytest.approx(w, rel=1e-3)
        assert found.share[0] == pytest.approx(share, rel=1e-3)
        assert share > 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turned(Labelled, Pair):
    """Adds `along` w d and, orthogonal to d in every pair of components, a vector of 3/4 w |d|."""

    name: ClassVar[str] = 'turned'
    along: float = options.number(1.0, 0.0)

    def combine(self, at, cond, other, memory):
        d = (cond - other).reshape(len(cond), -1, 2)
        turned = jnp.stack([-d[..., 1], d[..., 0]], axis=-1)
        added = process.expand(at.w, d) * (self.along * d + 0.75 * turned)
        return at.read(cond + added.reshape(cond.shape)), memory

    @property
    def compares_with_null(self):
        return True


def test_the_remainder_of_a_rule_that_is_known():
    found = strength_of(sampler_of(Turned(), 'heun', clip_x=True), 0.8)
    np.testing.assert_allclose(found.w, 0.8, rtol=1e-4)
    np.testing.assert_allclose(found.share, 0.75**2 / (1 + 0.75**2), rtol=1e-4)
    alone = strength_of(sampler_of(Turned(along=0.0)), 0.8)
    np.testing.assert_allclose(alone.w, 0.0, atol=1e-5)
    np.testing.assert_allclose(alone.share, 1.0, atol=1e-5)


def eps_of_mixture(z, level, means, stddev):
    """The exact eps of equal Gaussians of one deviation, float64: sigma (z - alpha mean) / variance, by Bayes' rule."""
    alpha, sigma = scales(level)
    variance = (alpha * stddev) ** 2 + sigma**2
    each = (z[:, None] - alpha * means) / variance  # [N, K, 2]
    logits = -0.5 * variance * np.sum(each**2, axis=2)
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return sigma * each, sigma * np.sum(share[..., None] * each, axis=1)


def test_on_a_mixture_it_is_what_float64_finds_at_every_level():
    """Power-law guidance with exact scores along DDIM: a slope that weights each sample by its |d|^2."""
    means, stddev, w, alpha_of_rule = np.array([[0.0, 0.8], [-0.7, -0.4], [0.7, -0.4]]), 0.5, 1.5, 0.6
    gaussians = mixture.gaussian_mixture(means, np.stack([stddev**2 * np.eye(2)] * 3), np.ones(3))
    models = Models(Denoiser(mixture.eps_fn(gaussians), gaussians.null_label))
    of = np.arange(32) % 3
    sampler = sampler_of(parse_rule(f'power(alpha={alpha_of_rule})'), num_steps=6)
    noise_keys = jax.random.split(jax.random.key(0), len(of))
    sums = effective.measure(sampler, models, noise_keys, jnp.asarray(of), jnp.full(len(of), w), shape=(2,))
    found = effective.strength_of(sampler, np.asarray(sums))
    z = np.float64(stepping.noise(noise_keys, 0, (2,)))
    for place, level in enumerate(np.float64(found.levels)):
        alpha, sigma = scales(level)
        each, null = eps_of_mixture(z, level, means, stddev)
        d = each[np.arange(len(z)), of] - null
        square = np.sum(d**2, axis=1)
        factor = w * (np.sqrt(square) / sigma) ** alpha_of_rule
        assert found.w[place] == pytest.approx(np.sum(factor * square) / np.sum(square), rel=2e-3)
        share = 1 - np.sum(factor * square) ** 2 / np.sum(square) / np.sum(factor**2 * square)
        assert found.share[place] == pytest.approx(share, abs=2e-3)
        if place + 1 < len(found.levels):
            eps = each[np.arange(len(z)), of] + factor[:, None] * d
            next_alpha, next_sigma = scales(np.float64(found.levels[place + 1]))
            z = next_alpha * (z - sigma * eps) / alpha + next_sigma * eps


def draw(sampler, w, models=MODELS):
    return np.asarray(jax.jit(lambda w: sampler.sample(models, keys(), labels(), w, shape=SHAPE))(w))


@pytest.mark.parametrize('solver', ['ancestral', 'heun'])
def test_the_twin_of_eq_6_is_eq_6(solver):
    sampler = sampler_of(Cfg(), solver)
    twin = dataclasses.replace(sampler, rule=strength_of(sampler, 1.7).twin)
    np.testing.assert_allclose(draw(twin, 1.0), draw(sampler, 1.7), atol=1e-4)
    assert twin.passes(1.0) == sampler.passes(1.7)
    assert parse_rule(twin.rule.text) == twin.rule


def test_the_twin_of_cfg_plus_plus_takes_the_same_ddim_steps():
    """A DDIM step with it is one of Eq. 6 with 1 + w' = (1 + w) / (1 - e^((logsnr_t - logsnr_s) / 2))."""
    sampler = sampler_of(CfgPlusPlus())
    found = strength_of(sampler, -0.4)
    expected = np.append(np.full(4, 0.6 / -np.expm1(-1.5)), 0.6) - 1.0
    np.testing.assert_allclose(found.w, expected, rtol=1e-4)
    np.testing.assert_allclose(found.share, 0.0, atol=1e-5)
    twin = dataclasses.replace(sampler, rule=found.twin)
    np.testing.assert_allclose(draw(twin, 1.0), draw(sampler, -0.4), atol=1e-3)


def test_a_threshold_is_the_rules_and_less_noise_is_no_strength():
    assert effective.exact(sampler_of(Cfg(threshold=0.5)), 2.0) is None
    found = strength_of(sampler_of(Cfg(threshold=0.5), 'ancestral'), 2.0)
    assert np.abs(found.w - 2.0).max() > 0.1
    assert np.abs(strength_of(sampler_of(Temperature(), 'ancestral'), 2.0).w).max() < 1e-6


def test_a_second_model_is_the_one_to_compare_with():
    second = dataclasses.replace(MODELS.weaker)
    found = strength_of(sampler_of(Cfg()), 1.2, MODELS._replace(uncond=second))
    np.testing.assert_allclose(found.w, 1.2, rtol=1e-4)
    alone = strength_of(sampler_of(parse_rule("cfg(against='random')")), 1.2)
    assert np.abs(alone.w - 1.2).max() > 0.01


def test_a_given_strength_is_a_schedule_whose_numbers_are_traced():
    pairs = ((-6.0, 0.5), (-1.0, 2.0), (4.0, 0.0))
    rule = Cfg(schedule=pairs)
    np.testing.assert_allclose(rule.strength_at(2.0, np.float32([-7, -6, -3.5, 4, 5]), **ENDS), [1, 1, 2.5, 0, 0])
    levels, factors = np.float32(pairs).T
    traced = jax.jit(lambda given: sampler_of(Cfg()).sample(MODELS, keys(), labels(), given, shape=SHAPE))(
        Given(levels, factors, jnp.full(len(labels()), 2.0))
    )
    np.testing.assert_allclose(traced, draw(sampler_of(rule), 2.0), atol=1e-5)
    assert sampler_of(rule).passes(2.0).total == 4 * 2 + 1


def test_a_schedule_of_values_is_ascending_pairs_of_numbers():
    assert parse_rule('cfg(schedule=[(-3, 1), (2, 0.5)])').text == 'cfg(schedule=((-3.0, 1.0), (2.0, 0.5)))'
    for wrong in ("'steep'", '()', '((1, 2), (0, 1))', '((1, 2, 3),)', '(1, 2)', "((0, 'a'),)", 'None'):
        with pytest.raises(UserError, match=r"schedule must be one of 'constant'.* or pairs \(logsnr, factor of w\)"):
            parse_rule(f'cfg(schedule={wrong})')
