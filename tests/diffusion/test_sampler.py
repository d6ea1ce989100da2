"""A sampler: its parts put together, the evaluations that it counts, and what fits what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.diffusion import corrections, process, schedule
from cfg.diffusion.denoiser import Models
from cfg.diffusion.rules import Cfg
from cfg.diffusion.rules.base import Passes
from cfg.diffusion.sampler import Sampler, check_fit, fits, parse_grid, parse_rule, parse_solver
from cfg.diffusion.solvers import Ddim
from cfg.runtime.errors import UserError
from tests.diffusion.toys import MODELS, NULL, SHAPE, keys, labels, models_of, toy_eps, unguided, worse_eps

pytestmark = pytest.mark.usefixtures('eager')
ENDS = {'logsnr_min': -20.0, 'logsnr_max': 20.0}
GUIDANCE = (
    'cfg',
    "cfg(against='random')",
    'cfg(interval=(-2, 3))',
    "cfg(schedule='cosine')",
    'cfg(threshold=0.9)',
    'cfg_plus_plus',
    'rescale(phi=0.5)',
    'apg(eta=0.2, norm_threshold=2.0, momentum=-0.5)',
    'power',
    'cfg_zero',
    'tcfg',
    'fdg',
    'adaptive(cosine=1.0)',
    'rectified_gradient',
    'autoguidance',
    'classifier',
    "classifier(model='unconditional')",
    'scaled_score',
    'temperature',
)
SAMPLERS = ('ancestral', 'ddim', 'ddim(eta=1.0)', 'dpm_solver_2m', 'dpm_solver_2m(stochastic=True)', 'heun')


def sampler_of(guidance='cfg', sampler='ddim', grid='paper', num_steps=3, clip_x=False):
    rule, solver = parse_rule(guidance), parse_solver(sampler)
    return Sampler(rule=rule, solver=solver, grid=parse_grid(grid), num_steps=num_steps, clip_x=clip_x)


def draw(models, w, n=6, **how):
    return sampler_of(**how).sample(models, keys(n), labels(n), jnp.full(n, w), shape=SHAPE)


def test_the_parts_of_a_sampler():
    """Eq. 6 with a schedule, an interval and a threshold, by hand; the solver and the grid are those named."""
    made = sampler_of(
        "cfg(schedule='linear', interval=(-2, None), threshold=0.5)", 'ddim(eta=0.5)', 'uniform(logsnr_min=-8)'
    )
    actual = made.sample(models_of(toy_eps), keys(), labels(), 1.5, shape=SHAPE)

    def by_hand(z, logsnr, labels):
        w = 3.0 * (1.0 - schedule.u_from_logsnr(logsnr, **ENDS)) if logsnr >= -2 else 0.0
        eps = (1 + w) * toy_eps(z, logsnr, labels) - w * toy_eps(z, logsnr, np.full_like(labels, NULL))
        x = corrections.dynamic_threshold(process.x_from_eps(z, eps, logsnr), quantile=0.5)
        return process.eps_from_x(z, x, logsnr)

    grid = schedule.uniform_grid(3, logsnr_min=-8.0, logsnr_max=20.0)
    expected = Ddim(eta=0.5).sample(unguided(by_hand), keys(), grid, shape=SHAPE)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(parse_grid('rho(rho=5)').levels(3, **ENDS), schedule.rho_grid(3, rho=5.0, **ENDS))
    np.testing.assert_array_equal(parse_grid('paper').levels(3, **ENDS), schedule.sampling_grid(3, **ENDS))


def test_the_ends_are_those_of_the_model_unless_the_grid_has_its_own():
    """Those of a schedule of w are the model's."""
    made = Sampler(rule=Cfg(schedule='linear'), grid=parse_grid('uniform(logsnr_min=-4)'), num_steps=3, logsnr_max=6.0)
    seen = []

    def eps_fn(z, logsnr, labels):
        seen.append(logsnr)
        return z

    made.sample(models_of(eps_fn), keys(), labels(), 0.0, shape=SHAPE)
    np.testing.assert_allclose(seen, [-4, 1, 6], rtol=1e-6)
    top = made.rule.strength_at(1.5, jnp.float32(6.0), logsnr_min=-20.0, logsnr_max=6.0)
    np.testing.assert_allclose(top, 3.0, rtol=1e-6)


def test_a_temperature_scales_the_noise_that_steps_add():
    grid = parse_grid('uniform(logsnr_min=-6, logsnr_max=6)')
    made = Sampler(rule=parse_rule('temperature'), solver=Ddim(eta=1.0), grid=grid, num_steps=3, clip_x=False)
    mixed = made.sample(models_of(toy_eps), keys(), labels(), np.float32([0, 1, 3, 3, 1, 0]), shape=SHAPE)
    for w, temperature in ((0.0, 1.0), (1.0, 0.5), (3.0, 0.25)):
        actual = made.sample(models_of(toy_eps), keys(), labels(), w, shape=SHAPE)
        cold = dataclasses.replace(made, solver=Ddim(eta=1.0, temperature=temperature))
        expected = cold.sample(models_of(toy_eps), keys(), labels(), 0.0, shape=SHAPE)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
        of = np.float32([0, 1, 3, 3, 1, 0]) == w
        np.testing.assert_allclose(mixed[of], actual[of], rtol=0, atol=1e-5)


def test_a_second_model_gives_the_unconditional_prediction():
    """Only where the rule asks for one; at w = -1 it is the sample."""
    two, how = MODELS._replace(uncond=MODELS.weaker), {'grid': 'uniform(logsnr_min=-6, logsnr_max=6)'}
    alone = models_of(lambda z, logsnr, labels: worse_eps(z, logsnr, jnp.full_like(labels, NULL)))
    np.testing.assert_allclose(draw(two, -1.0, **how), draw(alone, 0.0, **how), rtol=0, atol=1e-5)
    assert np.abs(draw(two, 1.5, **how) - draw(MODELS, 1.5, **how)).max() > 0.01
    for text in ('autoguidance', "cfg(against='random')", "classifier(model='unconditional')"):
        found = (draw(models, 1.5, guidance=text, **how) for models in (two, MODELS))
        np.testing.assert_array_equal(*found)


# --- evaluations ---


def counted(models):
    """(the same networks, how many examples each of them has seen)."""
    seen = {}

    def watched(name, fn):
        def wrapped(z, *args):
            seen[name] = seen.get(name, 0) + z.shape[0]
            return fn(z, *args)

        return wrapped

    def of(name, network):
        return network and dataclasses.replace(network, fn=watched(name, network.fn))

    found = Models(
        of('model', models.model),
        uncond=of('second', models.uncond),
        weaker=of('second', models.weaker),
        classifier=watched('classifier', models.classifier),
    )
    return found, seen


def check_count(models, w, n=6, **how):
    watched, seen = counted(models)
    draw(watched, w, n=n, **how)
    passes = sampler_of(**how).passes(w, second_uncond=models.uncond is not None)
    found = passes.single + 2 * passes.both, passes.second, passes.classifier
    observed = tuple(seen.get(name, 0) / n for name in ('model', 'second', 'classifier'))
    assert observed == found, (how, w)
    assert passes.total == sum(found)


@pytest.mark.parametrize('text', GUIDANCE)
def test_evaluations_are_counted_as_they_happen(text):
    """Every network reports each of its evaluations."""
    rule = parse_rule(text)
    strengths = (0.0, 1.5) if text == 'temperature' else (0.0, -1.0, 1.5)
    for w in strengths:
        check_count(MODELS, w, guidance=text, sampler='ancestral')
    if fits(rule, parse_solver('heun')):
        check_count(MODELS, 1.5, guidance=text, sampler='heun')
    if rule.compares_with_null:
        for w in strengths:
            check_count(MODELS._replace(uncond=MODELS.model), w, guidance=text, sampler='ancestral')


@pytest.mark.parametrize('text', [*SAMPLERS, 'heun(s_churn=2, s_max=10)'])
def test_evaluations_of_every_solver_are_counted_as_they_happen(text):
    for grid in ('uniform(logsnr_min=-4, logsnr_max=8)', 'paper'):
        check_count(MODELS, 1.5, guidance='cfg(interval=(-2, 3))', sampler=text, grid=grid)


@pytest.mark.parametrize('text', ['feynman_kac(particles=3)', 'gibbs', "gibbs(solver='ddim', first=0.6, repeats=1)"])
def test_evaluations_of_particles_and_of_runs_are_counted_as_they_happen(text):
    for w in (0.0, -1.0, 1.5):
        check_count(MODELS, w, sampler=text, num_steps=8)
        check_count(MODELS._replace(uncond=MODELS.model), w, sampler=text, num_steps=8)


def test_an_interval_spares_evaluations():
    """EDM's sigma in (0.28, 2.9] (Kynkaanniemi et al. 2024): outside of it a step is one evaluation."""
    low, high = -2 * np.log(2.9), -2 * np.log(0.28)
    assert sampler_of('cfg', 'ancestral', num_steps=256).passes(1.0).total == 512
    grid = np.asarray(schedule.sampling_grid(256, **ENDS))
    inside = int(np.sum((grid >= low) & (grid < high)))
    assert 0 < inside < 256
    found = sampler_of(f'cfg(interval=({low}, {high}))', 'ancestral', num_steps=256).passes(1.0)
    assert found == Passes(single=256 - inside, both=inside)


def test_churn_is_where_the_network_is_asked():
    text, levels = 'heun(s_churn=2, s_max=10)', []

    def watched(z, logsnr, labels):
        levels.append(float(logsnr))
        return MODELS.model(z, logsnr, labels)

    draw(models_of(watched), 0.0, sampler=text)
    grid = np.asarray(schedule.sampling_grid(3, **ENDS))
    np.testing.assert_allclose(levels, parse_solver(text).visits(grid), rtol=1e-6)


def test_one_compilation_serves_every_strength():
    traces = []

    def eps_fn(z, logsnr, labels):
        traces.append(z.shape)
        return toy_eps(z, logsnr, labels)

    made = sampler_of('cfg', 'ddim', 'uniform(logsnr_min=-5, logsnr_max=6)', num_steps=3)
    run = jax.jit(lambda w: made.sample(models_of(eps_fn), keys(), labels(), w, shape=SHAPE))
    with jax.disable_jit(False):
        run(jnp.float32(1.0))
        before = list(traces)
        drawn = {w: run(jnp.float32(w)) for w in (0.0, 1.5, -1.0)}
        assert traces == before
    for w, x in drawn.items():
        expected = made.sample(models_of(toy_eps), keys(), labels(), w, shape=SHAPE)
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-5)


# --- what fits, and the two ends of w ---


def test_a_rule_that_changes_nothing_is_refused():
    temperature = parse_rule('temperature')
    for text in ('ddim', 'dpm_solver_2m', 'heun(s_churn=10)', 'ancestral(temperature=0)'):
        with pytest.raises(UserError, match="'temperature' scales the noise"):
            check_fit(temperature, parse_solver(text))
    for text in ('ancestral', 'ddim(eta=0.1)', 'dpm_solver_2m(stochastic=True)'):
        check_fit(temperature, parse_solver(text))
    check_fit(parse_rule('cfg'), parse_solver('ddim'))


@pytest.mark.parametrize('text', ['ancestral', 'heun'])
def test_w_0_is_the_conditional_model(text):
    """At its neutral strength every rule with one is plain conditional sampling, apart from its thresholding.

    That of an unconditional model with a classifier takes an exact one, see `test_classifier_guidance`.
    """
    how = {'sampler': text, 'grid': 'uniform(logsnr_min=-8, logsnr_max=8)'}
    model = models_of(toy_eps)
    # The scaled score with factor 1 is the network's own eps.
    plain, cut = (draw(model, 0.0, guidance=f'scaled_score{of}', **how) for of in ('', '(threshold=0.2)'))
    assert np.abs(plain - cut).max() > 0.02
    seen = 0
    for rule in (one.replace('(threshold=0.9', '(threshold=0.2') for one in GUIDANCE):
        if rule in ('cfg_plus_plus', "classifier(model='unconditional')") or not fits(
            parse_rule(rule), parse_solver(text)
        ):
            continue
        expected = cut if '(threshold' in rule else plain
        np.testing.assert_allclose(draw(MODELS, 0.0, guidance=rule, **how), expected, atol=2e-4, err_msg=rule)
        seen += 1
    # CFG++ has no such strength, and a temperature means nothing where no noise is added.
    assert seen == len(GUIDANCE) - 2 - (text == 'heun')
