"""Recipes: what a text means, what it is refused for, what it builds, and how many evaluations that takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfg.diffusion import guidance, mixture, pairs, recipes, rules, sampling, schedule, solvers, strength
from cfg.runtime.errors import UserError

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
    'autoguidance',
    'classifier',
    "classifier(model='unconditional')",
    'scaled_score',
    'temperature',
)
SAMPLERS = ('ancestral', 'ddim', 'ddim(eta=1.0)', 'dpm_solver_2m', 'dpm_solver_2m(stochastic=True)', 'heun')


@pytest.mark.parametrize(
    ('text', 'canonical'),
    [
        (' cfg ', 'cfg'),
        ('cfg()', 'cfg'),
        ('cfg(interval=None, schedule="constant")', 'cfg'),
        ('cfg(interval=(None, None))', 'cfg'),
        ('cfg(interval=[-3, 5])', 'cfg(interval=(-3.0, 5.0))'),
        ('cfg(interval=(None, 5))', 'cfg(interval=(None, 5.0))'),
        ('apg(momentum=-0.5,eta=1)', 'apg(eta=1.0, momentum=-0.5)'),
        ('rescale(phi=0.7)', 'rescale'),
        ('autoguidance(workdir="runs/small", step=300)', 'autoguidance(step=300)'),
        ('cfg(w=(0.5, 1))', 'cfg'),
    ],
)
def test_texts_that_mean_the_same_are_one(text, canonical):
    assert recipes.parse_guidance(text).text == canonical


def test_a_rule_may_bring_its_own_w():
    assert recipes.parse_guidance('cfg').w is None
    assert recipes.parse_guidance('cfg_plus_plus(w=(-0.5, 0))').w == (-0.5, 0.0)
    assert recipes.parse_guidance('cfg(w=2)').w == (2.0,)


@pytest.mark.parametrize(
    ('parse', 'text', 'expected'),
    [
        (recipes.parse_guidance, 'cgf', 'must be one of cfg, cfg_plus_plus, rescale'),
        (recipes.parse_guidance, 'cfg(phi=0.5)', "an option 'phi' that cfg does not have: it has against, interval"),
        (recipes.parse_guidance, 'cfg_plus_plus(interval=(-3, 3))', "'interval' that cfg_plus_plus does not have"),
        (recipes.parse_guidance, 'cfg_plus_plus(schedule="cosine")', "'schedule' that cfg_plus_plus does not have"),
        (recipes.parse_guidance, 'rescale(phi=1.5)', r'phi must be a number from 0 to 1'),
        (recipes.parse_guidance, 'rescale(phi=True)', r'phi must be a number from 0 to 1'),
        (recipes.parse_guidance, 'rescale(phi="a")', r'phi must be'),
        (recipes.parse_guidance, 'apg(eta=1e999)', 'eta must be a finite number'),
        (recipes.parse_guidance, 'apg(norm_threshold=0)', 'norm_threshold must be a number above 0, or None'),
        (recipes.parse_guidance, 'cfg(interval=(5, -3))', r'interval must be \(lowest, highest\) logsnr'),
        (recipes.parse_guidance, 'cfg(interval=3)', 'interval must be'),
        (recipes.parse_guidance, 'cfg(schedule="sine")', "schedule must be one of 'constant', 'linear', 'cosine'"),
        (recipes.parse_guidance, 'cfg(w="a")', r'w must be a number or several'),
        (recipes.parse_guidance, 'cfg(w=())', r'w must be a number or several'),
        (recipes.parse_guidance, 'cfg(w=1, w=2)', 'each once'),
        (recipes.parse_guidance, 'cfg(3)', 'must be a name with or without options'),
        (recipes.parse_guidance, 'cfg(', 'must be a name with or without options'),
        (recipes.parse_guidance, '', 'must be a name with or without options'),
        (recipes.parse_guidance, '__import__("os")', 'must be a name with or without options'),
        (recipes.parse_guidance, 'cfg(interval=print(1))', 'must be a name with or without options'),
        (recipes.parse_guidance, 'temperature(w=1, a=2)', "'a' that temperature does not have: it has none"),
        (recipes.parse_guidance, 'autoguidance(step=1.5)', 'step must be a step, or -1 for the newest'),
        (recipes.parse_sampler, 'ddim(eta=2)', r'config\.sampling\.sampler=.* eta must be a number from 0 to 1'),
        (recipes.parse_sampler, 'dpm_solver_2m(stochastic=1)', 'stochastic must be one of False, True'),
        (recipes.parse_sampler, 'ddim(w=1)', "an option 'w'"),
        (recipes.parse_sampler, 'ddim(temperature=0.5)', 'temperature changes nothing without eta: give eta, or leave'),
        (recipes.parse_sampler, 'dpm_solver_2m(temperature=0)', 'temperature changes nothing without stochastic=True'),
        (recipes.parse_sampler, 'heun(s_max=9)', 's_max changes nothing without s_churn'),
        (recipes.parse_sampler, 'heun(s_min=1, s_churn=0)', 's_min changes nothing without s_churn'),
        (recipes.parse_sampler, 'heun(s_noise=1.003)', 's_noise changes nothing without s_churn'),
        (
            recipes.parse_sampler,
            'heun(s_churn=3, s_min=2, s_max=1)',
            r's_min must be at most s_max, or s_churn changes',
        ),
        (recipes.parse_grid, 'rho(rho=0.01)', r'config\.sampling\.grid=.* rho must be a number from 0.1 to 1000'),
        (recipes.parse_grid, 'rho(rho=1e300)', 'rho must be a number from 0.1 to 1000'),
        (recipes.parse_guidance, f'cfg(w={10**400})', 'w must be a number or several'),
        (recipes.parse_guidance, 'cfg(w=1e39)', 'w must be a number or several'),
        (recipes.parse_guidance, f'apg(eta={10**400})', 'eta must be a finite number'),
        (recipes.parse_guidance, f'cfg(interval=(0, {10**400}))', 'interval must be'),
        (recipes.parse_grid, 'paper(logsnr_max=25)', 'logsnr_max must be a number from -20 to 20, or None'),
    ],
)
def test_a_text_that_means_nothing_is_refused(parse, text, expected):
    with pytest.raises(UserError, match=expected):
        parse(text)


def test_options_that_would_change_nothing_may_have_their_defaults():
    for text, canonical in (
        ('ddim(eta=0, temperature=1)', 'ddim'),
        ('heun(s_churn=0, s_max=None, s_noise=1.0)', 'heun'),
        ('heun(s_churn=3, s_min=1, s_max=1)', 'heun(s_churn=3.0, s_min=1.0, s_max=1.0)'),
    ):
        assert recipes.parse_sampler(text).text == canonical


@settings(max_examples=50, deadline=None)
@given(rho=st.floats(0.1, 1000.0), num_steps=st.integers(2, 1024))
def test_every_rho_that_is_allowed_gives_a_grid(rho, num_steps):
    levels = np.asarray(recipes.build_grid(recipes.parse_grid(f'rho(rho={rho!r})'), num_steps, **ENDS))
    assert np.isfinite(levels).all()
    assert (np.diff(levels) > 0).all()


def test_a_rule_that_changes_nothing_is_refused():
    temperature = recipes.parse_guidance('temperature')
    for text in ('ddim', 'dpm_solver_2m', 'heun(s_churn=10)', 'ancestral(temperature=0)'):
        with pytest.raises(UserError, match="'temperature' scales the noise"):
            recipes.check_fit(temperature, recipes.parse_sampler(text))
    for text in ('ancestral', 'ddim(eta=0.1)', 'dpm_solver_2m(stochastic=True)'):
        recipes.check_fit(temperature, recipes.parse_sampler(text))


@settings(max_examples=50, deadline=None)
@given(
    phi=st.floats(0, 1),
    interval=st.none() | st.tuples(st.floats(-20, -1), st.floats(1, 20)),
    threshold=st.none() | st.floats(0, 1),
    against=st.sampled_from(['null', 'random']),
)
def test_a_canonical_text_is_its_own(phi, interval, threshold, against):
    text = f'rescale(phi={phi!r}, interval={interval!r}, threshold={threshold!r}, against={against!r})'
    recipe = recipes.parse_guidance(text)
    assert recipes.parse_guidance(recipe.text) == recipe
    assert recipe.options['phi'] == phi
    assert recipe.options['interval'] == interval


@pytest.fixture(scope='module', name='world')
def world_fixture():
    """Exact parts of a mixture of three classes; the weaker model is of a wider one."""
    means, weights = np.array([[0.0, 0.8], [-0.7, -0.4], [0.7, -0.4]]), np.ones(3)
    exact = mixture.gaussian_mixture(means, np.stack([0.09 * np.eye(2)] * 3), weights)
    wide = mixture.gaussian_mixture(means, np.stack([0.25 * np.eye(2)] * 3), weights)
    return exact, recipes.Parts(
        mixture.eps_fn(exact), 3, 3, weaker_eps_fn=mixture.eps_fn(wide), logits_fn=mixture.logits_fn(exact)
    )


def draw(parts, w, *, guidance='cfg', sampler='ddim', grid='paper', num_steps=6, n=6):
    return recipes.sample(
        parts,
        jax.random.split(jax.random.key(0), n),
        jnp.arange(n) % 3,
        jnp.full(n, w),
        guidance_recipe=recipes.parse_guidance(guidance),
        sampler=recipes.parse_sampler(sampler),
        grid=recipes.parse_grid(grid),
        num_steps=num_steps,
        logvar_interp=0.3,
        clip_x=False,
        shape=(2,),
        **ENDS,
    )


def by_hand(model, sampler, grid, n=6, **options):
    keys = jax.random.split(jax.random.key(0), n)
    return sampler(model, keys, jnp.arange(n) % 3, grid, shape=(2,), clip_x=False, **options)


@pytest.fixture(name='eager')
def eager_fixture():
    """Steps run one by one, in Python: nothing is compiled that runs once."""
    with jax.disable_jit():
        yield


def test_recipes_are_the_functions_that_they_name(world, eager):
    """Each against the same made by hand, bit for bit."""
    _, parts = world
    w, paper = jnp.full(6, 1.5), schedule.sampling_grid(6, **ENDS)
    pair = pairs.null_label_pair(parts.eps_fn, null_label=3)
    limited = strength.interval(strength.linear(w, **ENDS), logsnr_lo=-2.0, logsnr_hi=float('inf'))
    projected = rules.projected(pair, w, eta=0.2, norm_threshold=float('inf'), momentum=-0.5)
    ddim = solvers.ddim
    for text, model, temperature in (
        ('cfg', guidance.classifier_free_eps_fn(parts.eps_fn, w, null_label=3), 1.0),
        ("cfg(against='random')", rules.classifier_free(pairs.independent_pair(parts.eps_fn, num_classes=3), w), 1.0),
        ("cfg(schedule='linear', interval=(-2, None))", rules.classifier_free(pair, limited), 1.0),
        ('cfg(threshold=0.5)', rules.thresholded(rules.classifier_free(pair, w), quantile=0.5), 1.0),
        ('cfg_plus_plus', rules.cfg_plus_plus(pair, w), 1.0),
        ("rescale(phi=0.4, prediction='x')", rules.rescaled(pair, w, phi=0.4, prediction='x'), 1.0),
        ('apg(eta=0.2, momentum=-0.5)', projected, 1.0),
        (
            'autoguidance',
            rules.classifier_free(pairs.autoguidance_pair(parts.eps_fn, parts.weaker_eps_fn), w),
            1.0,
        ),
        ('classifier', guidance.classifier_eps_fn(parts.eps_fn, parts.logits_fn, w), 1.0),
        ('scaled_score', guidance.scaled_eps_fn(parts.eps_fn, 1 + w), 1.0),
        ('temperature', parts.eps_fn, 1 / (1 + w)),
    ):
        expected = by_hand(model, ddim, paper, eta=0.5, temperature=temperature)
        found = draw(parts, 1.5, guidance=text, sampler='ddim(eta=0.5)')
        np.testing.assert_array_equal(found, expected, err_msg=text)


def test_a_second_model_gives_the_unconditional_prediction(world, eager):
    _, parts = world
    two = parts._replace(uncond_eps_fn=parts.weaker_eps_fn, uncond_null_label=3)
    pair = pairs.two_model_pair(parts.eps_fn, parts.weaker_eps_fn, null_label=3)
    expected = by_hand(rules.classifier_free(pair, jnp.full(6, 1.5)), solvers.ddim, schedule.sampling_grid(6, **ENDS))
    np.testing.assert_array_equal(draw(two, 1.5), expected)
    # Only where the rule asks for one.
    np.testing.assert_array_equal(draw(two, 1.5, guidance='autoguidance'), draw(parts, 1.5, guidance='autoguidance'))


def test_samplers_and_grids_are_the_functions_that_they_name(world, eager):
    _, parts = world
    model = guidance.classifier_free_eps_fn(parts.eps_fn, jnp.full(6, 0.5), null_label=3)
    uniform = schedule.uniform_grid(6, logsnr_min=-8.0, logsnr_max=12.0)
    for text, sampler, options in (
        ('ancestral', sampling.ancestral, {'logvar_interp': 0.3}),
        ('ancestral(temperature=0.5)', sampling.ancestral, {'logvar_interp': 0.3, 'temperature': 0.5}),
        ('ddim', solvers.ddim, {}),
        ('dpm_solver_2m', solvers.dpm_solver_2m, {'stochastic': False}),
        (
            'dpm_solver_2m(stochastic=True, temperature=0.5)',
            solvers.dpm_solver_2m,
            {'stochastic': True, 'temperature': 0.5},
        ),
        ('heun(s_churn=4, s_max=50.0)', solvers.heun, {'s_churn': 4.0, 's_max': 50.0}),
    ):
        found = draw(parts, 0.5, sampler=text, grid='uniform(logsnr_min=-8, logsnr_max=12)')
        np.testing.assert_array_equal(found, by_hand(model, sampler, uniform, **options), err_msg=text)
    rho = recipes.build_grid(recipes.parse_grid('rho(rho=5)'), 6, **ENDS)
    np.testing.assert_array_equal(rho, schedule.rho_grid(6, rho=5.0, **ENDS))


@pytest.mark.parametrize('text', GUIDANCE)
def test_evaluations_are_counted_as_they_happen(world, text, eager):
    """Every network reports each of its evaluations."""
    _, parts = world
    seen = {'model': 0, 'other': 0, 'classifier': 0}

    def counted(name, fn):
        def wrapped(z, *args):
            seen[name] += z.shape[0]
            return fn(z, *args)

        return wrapped

    temperature = text == 'temperature'
    for uncond, sampler in ((None, 'ancestral'), (None, 'heun'), (parts.eps_fn, 'ancestral')):
        if temperature and sampler == 'heun':
            continue
        watched = parts._replace(
            eps_fn=counted('model', parts.eps_fn),
            weaker_eps_fn=counted('other', parts.weaker_eps_fn),
            logits_fn=counted('classifier', parts.logits_fn),
            uncond_eps_fn=uncond and counted('other', uncond),
            uncond_null_label=3,
        )
        for w in (0.0, 1.5) if temperature else (0.0, -1.0, 1.5):
            seen.update(dict.fromkeys(seen, 0))
            draw(watched, w, guidance=text, sampler=sampler, num_steps=4, n=3)
            passes = recipes.count_passes(
                recipes.parse_guidance(text),
                recipes.parse_sampler(sampler),
                recipes.parse_grid('paper'),
                w,
                num_steps=4,
                second_uncond=uncond is not None,
                **ENDS,
            )
            found = passes.single + 2 * passes.both, passes.second, passes.classifier
            assert tuple(count / 3 for count in seen.values()) == found, (sampler, w)
            assert passes.total == sum(found)


def test_an_interval_spares_evaluations():
    """EDM's sigma in (0.28, 2.9] (Kynkaanniemi et al. 2024): outside of it a step is one evaluation."""
    interval = f'cfg(interval=({-2 * np.log(2.9)}, {-2 * np.log(0.28)}))'
    count = {
        text: recipes.count_passes(
            recipes.parse_guidance(text),
            recipes.parse_sampler('ancestral'),
            recipes.parse_grid('paper'),
            1.0,
            num_steps=256,
            **ENDS,
        )
        for text in ('cfg', interval)
    }
    assert count['cfg'].total == 512
    grid = np.asarray(schedule.sampling_grid(256, **ENDS))
    inside = int(np.sum((grid >= -2 * np.log(2.9)) & (grid < -2 * np.log(0.28))))
    assert count[interval] == (256 - inside, inside, 0, 0)
    assert 0 < inside < 256


def test_churn_is_where_the_network_is_asked(world):
    _, parts = world
    sampler = recipes.parse_sampler('heun(s_churn=2, s_max=10)')
    levels = []

    def watched(z, logsnr, labels):
        jax.debug.callback(lambda value: levels.append(float(value)), logsnr, ordered=True)
        return parts.eps_fn(z, logsnr, labels)

    draw(parts._replace(eps_fn=watched), 0.0, sampler='heun(s_churn=2, s_max=10)')
    jax.effects_barrier()
    grid = np.asarray(schedule.sampling_grid(6, **ENDS))
    np.testing.assert_allclose(levels, recipes.visits(sampler, grid), rtol=1e-6)


@pytest.mark.parametrize(
    ('text', 'sampler', 'options'),
    [
        ('ancestral', sampling.ancestral, {'logvar_interp': 0.3}),
        ('heun', solvers.heun, {}),
    ],
)
def test_w_0_is_the_conditional_model(world, text, sampler, options, eager):
    """At its neutral strength every rule with one is plain conditional sampling, apart from its thresholding."""
    _, parts = world
    thresholded = rules.thresholded(rules.as_rule(parts.eps_fn), quantile=0.2)
    grid = schedule.uniform_grid(6, logsnr_min=-8.0, logsnr_max=8.0)
    plain, cut = (by_hand(model, sampler, grid, n=24, **options) for model in (parts.eps_fn, thresholded))
    assert np.abs(plain - cut).max() > 0.02
    how = {'sampler': text, 'grid': 'uniform(logsnr_min=-8, logsnr_max=8)', 'n': 24}
    seen = 0
    for rule in (text.replace('(threshold=0.9', '(threshold=0.2') for text in GUIDANCE):
        if rule == 'cfg_plus_plus' or not recipes.fits(recipes.parse_guidance(rule), recipes.parse_sampler(text)):
            continue
        expected = cut if '(threshold' in rule else plain
        np.testing.assert_allclose(draw(parts, 0.0, guidance=rule, **how), expected, atol=2e-4, err_msg=rule)
        seen += 1
    # CFG++ has no such strength, and a temperature means nothing where no noise is added.
    assert seen == len(GUIDANCE) - 1 - (text == 'heun')
