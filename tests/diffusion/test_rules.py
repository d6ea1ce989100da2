"""Guidance rules: Eq. 6 against float64, what rules reduce to, how they read networks, and whole samples."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis.extra import numpy as hnp

from cfg.diffusion import process, schedule, solvers
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Apg, Autoguidance, Cfg, CfgPlusPlus, Classifier, Rescale, ScaledScore, Temperature
from cfg.diffusion.rules.pairs import classifier_free
from cfg.diffusion.sampler import Sampler
from tests.diffusion.toys import (
    CLASSES,
    COUNT,
    MODELS,
    NULL,
    SHAPE,
    keys,
    labels,
    normal,
    scales,
    toy_eps,
    unguided,
    worse_eps,
)

pytestmark = pytest.mark.usefixtures('eager')
LOGSNRS = schedule.uniform_grid(4, logsnr_min=-5.0, logsnr_max=6.0)
SOLVERS = {
    'ancestral': solvers.Ancestral(),
    'ddim': solvers.Ddim(),
    '2m': solvers.DpmSolver2M(),
    '2m_sde': solvers.DpmSolver2M(stochastic=True),
    'heun': solvers.Heun(s_churn=2.0),
}
TWO = MODELS._replace(uncond=MODELS.weaker)
PROJECTED = Apg(eta=0.2, norm_threshold=0.5, momentum=-0.5)
STRENGTHS = np.float32([0, -1, 0.3, 1, 2, 4])


def uncond_eps(z, logsnr, labels, np_=jnp):
    return toy_eps(z, logsnr, np_.full_like(labels, NULL), np_=np_)


def eq_6(w, uncond_eps=uncond_eps):
    """Eq. 6 written out, with w [] or [N], or of the level."""

    def eps_fn(z, logsnr, labels, np_=jnp):
        now = np_.reshape(w(logsnr) if callable(w) else w, (-1, 1, 1))
        return (1 + now) * toy_eps(z, logsnr, labels, np_=np_) - now * uncond_eps(z, logsnr, labels, np_=np_)

    return eps_fn


def inputs(seed=1, count=COUNT):
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def predict(rule, z, level, w, *, models=MODELS, times=1, clip_x=False):
    """The prediction of the last of some evaluations at one point."""
    guided = Sampler(rule=rule, clip_x=clip_x).guided(models, labels(len(z)), jnp.float32(w))
    state = guided.init(keys(len(z)), z)
    for _ in range(times):
        prediction, state = guided.predict(z, jnp.float32(level), state)
    return prediction


def samples(solver, rule, w, *, models=MODELS, clip_x=False, rows=slice(None)):
    guided = Sampler(rule=rule, clip_x=clip_x).guided(models, labels()[rows], jnp.float32(w))
    return np.asarray(SOLVERS[solver].sample(guided, keys()[rows], LOGSNRS, shape=SHAPE))


def samples_of(solver, eps_fn, *, clip_x=False):
    return np.asarray(SOLVERS[solver].sample(unguided(eps_fn, clip_x=clip_x), keys(), LOGSNRS, shape=SHAPE))


# --- Eq. 6 ---

images = hnp.arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=32, allow_subnormal=False))
strengths = st.floats(-2, 8, width=32, allow_subnormal=False)


@hypothesis.given(images, images, strengths)
def test_combination_matches_float64(eps_cond, eps_uncond, w):
    expected = (1 + np.float64(w)) * eps_cond - np.float64(w) * eps_uncond
    bound = 4 * 2.0**-24 * ((1 + abs(w)) * np.abs(eps_cond) + abs(w) * np.abs(eps_uncond))
    actual = np.float64(classifier_free(eps_cond, eps_uncond, np.float32(w)))
    assert (np.abs(actual - expected) <= bound + 1e-30).all()  # subnormal products may be flushed to 0


@hypothesis.given(images, images)
def test_the_two_ends_are_the_two_models_bit_for_bit(eps_cond, eps_uncond):
    np.testing.assert_array_equal(classifier_free(eps_cond, eps_uncond, np.float32(0)), eps_cond)
    np.testing.assert_array_equal(classifier_free(eps_cond, eps_uncond, np.float32(-1)), eps_uncond)


@hypothesis.given(images, images, strengths, strengths)
def test_combination_is_affine_in_w(eps_cond, eps_uncond, one, other):
    # The midpoint of two strengths gives the midpoint of the two results.
    def combine(w):
        return np.float64(classifier_free(eps_cond, eps_uncond, np.float32(w)))

    middle = (np.float64(one) + np.float64(other)) / 2
    size = (1 + abs(one) + abs(other)) * (np.abs(eps_cond) + np.abs(eps_uncond))
    assert (np.abs(combine(middle) - (combine(one) + combine(other)) / 2) <= 8 * 2.0**-24 * size + 1e-30).all()


def test_equal_predictions_are_not_changed_by_guidance():
    eps = inputs()
    np.testing.assert_allclose(classifier_free(eps, eps, np.float32(3)), eps, rtol=2e-6, atol=0)


def test_each_example_has_its_own_strength():
    eps_cond, eps_uncond = inputs(1), inputs(2)
    together = classifier_free(eps_cond, eps_uncond, STRENGTHS)
    z, predicted = inputs(), predict(Cfg(), inputs(), 0.5, STRENGTHS).eps
    for i, w in enumerate(STRENGTHS):
        alone = classifier_free(eps_cond[i : i + 1], eps_uncond[i : i + 1], w)
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(predicted[i], predict(Cfg(), z, 0.5, w).eps[i], rtol=1e-5, atol=1e-5)


def test_the_rule_is_eq_6_bit_for_bit():
    z, level = inputs(), np.float32(0.5)
    cond, uncond = MODELS.model.both(z, level, labels(), np.full_like(labels(), NULL))
    for w in (STRENGTHS, np.float32(1.5)):
        prediction = predict(Cfg(), z, level, w)
        np.testing.assert_array_equal(prediction.eps, classifier_free(cond, uncond, w))
        np.testing.assert_array_equal(prediction.x, process.x_from_eps(z, prediction.eps, level))


def test_a_strength_may_be_a_function_of_the_level():
    z, limits = inputs(), {'logsnr_min': -20.0, 'logsnr_max': 20.0}
    for level in np.float32([-3, 0, 2]):
        now = 2.0 * (1.0 - schedule.u_from_logsnr(level, **limits)) * 1.5
        actual = predict(Cfg(schedule='linear'), z, level, 1.5)
        np.testing.assert_allclose(actual.eps, predict(Cfg(), z, level, now).eps, rtol=1e-6)


# --- what rules reduce to ---

# Rules that are the conditional model, one of each kind and each pair, and rules that are Eq. 6 at w = 1.5.
NEUTRAL = {
    'classifier_free': (Cfg(), 0.0, TWO),
    'rescaled': (Rescale(prediction='x'), 0.0, MODELS),
    'projected': (dataclasses.replace(PROJECTED, against='random'), 0.0, MODELS),
    'interval': (Autoguidance(interval=(-4, 5)), 2.0, MODELS),
    'classifier': (Classifier(), 0.0, MODELS),
    'scaled_score': (ScaledScore(), 0.0, MODELS),
    'temperature': (Temperature(), 2.0, MODELS),
}
EQ_6 = {
    'classifier_free': (Cfg(), 1.5, MODELS),
    'rescaled': (Rescale(phi=0.0, prediction='x'), 1.5, MODELS),
    'projected': (Apg(eta=1.0), 1.5, MODELS),
    'interval': (Cfg(interval=(-5, None)), 1.5, MODELS),
    'autoguidance': (Autoguidance(), 1.5, MODELS._replace(weaker=Denoiser(uncond_eps, CLASSES))),
}


@pytest.mark.parametrize(
    ('made', 'expected', 'levels'),
    [(NEUTRAL, toy_eps, [-5, 5, 6]), (EQ_6, eq_6(1.5), [-5, 0, 6])],
    ids=['conditional', 'eq_6'],
)
def test_predictions_that_reduce_to_others(made, expected, levels):
    for name, (rule, w, models) in made.items():
        for level in np.float32(levels):
            z = inputs()
            actual, eps = predict(rule, z, level, w, models=models, times=2), expected(z, level, labels())
            x = process.x_from_eps(z, eps, level)
            np.testing.assert_allclose(actual.eps, eps, rtol=0, atol=2e-5, err_msg=name)
            np.testing.assert_allclose(actual.x, x, rtol=1e-5, atol=5e-5, err_msg=name)


@pytest.mark.parametrize('turn', range(5))
def test_samples_that_reduce_to_others(turn):
    """Each solver with one of the rules that are Eq. 6."""
    solver, (rule, w, models) = list(SOLVERS)[turn], list(EQ_6.values())[(turn + 2) % 5]
    actual = samples(solver, rule, w, models=models)
    np.testing.assert_allclose(actual, samples_of(solver, eq_6(1.5)), rtol=0, atol=1e-4)


@pytest.mark.parametrize('rule', [Cfg(), Rescale(), PROJECTED], ids=lambda rule: rule.name)
def test_x_and_eps_agree_for_every_rule_that_does_not_renoise(rule):
    z, level = inputs(), np.float32(0.5)
    for made, clip_x in ((rule, False), (rule, True), (dataclasses.replace(rule, threshold=0.9), False)):
        assert not made.renoises
        prediction = predict(made, z, level, STRENGTHS, times=2, clip_x=clip_x)
        np.testing.assert_allclose(process.diffuse(prediction.x, prediction.eps, level), z, atol=3e-6)


def test_what_the_conditional_prediction_is_compared_with():
    """Eq. 6 with the second eps written out; the random label is tested below."""
    z, level = inputs(), np.float32(0.5)
    null = np.full_like(labels(), NULL)
    for rule, models, other in (
        (Cfg(), MODELS, uncond_eps(z, level, labels())),
        (Cfg(), TWO, worse_eps(z, level, null)),
        (Autoguidance(), MODELS, worse_eps(z, level, labels())),
        # A second model takes the place of the null label alone.
        (Autoguidance(), MODELS._replace(uncond=MODELS.model), worse_eps(z, level, labels())),
    ):
        w = STRENGTHS[:, None, None]
        expected = (1 + w) * toy_eps(z, level, labels()) - w * other
        actual = predict(rule, z, level, STRENGTHS, models=models).eps
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# --- networks that predict x or v ---


def network_of(prediction, x_fn):
    """A network whose estimate of x is `x_fn(labels)` at every z."""

    def fn(z, logsnr, labels):
        x = jnp.broadcast_to(x_fn(labels)[:, None, None], z.shape)
        return process.target(x, process.eps_from_x(z, x, logsnr), logsnr, prediction=prediction)

    return Denoiser(fn, CLASSES, prediction)


def x_of(labels):
    return 0.1 * labels - 0.3


def other_x_of(labels):
    return 0.4 - 0.05 * labels


# Rules at a strength at which the estimate of x is that of one label: its own, or the null label.
ONE_LABEL = [
    (Cfg(), 0.0, False),
    (Cfg(), -1.0, True),
    (Cfg(against='random'), 0.0, False),
    (CfgPlusPlus(), 0.0, False),
    (CfgPlusPlus(), -1.0, True),
    *((Rescale(prediction=prediction), 0.0, False) for prediction in process.PREDICTIONS),
    (PROJECTED, 0.0, False),
    (Autoguidance(), 0.0, False),
    (Classifier(), 0.0, False),
    (Classifier(model='unconditional'), -1.0, True),
    (ScaledScore(), 0.0, False),
    (Temperature(), 3.0, False),
]


@pytest.mark.parametrize('prediction', ['x', 'v'])
@pytest.mark.parametrize(('rule', 'w', 'null'), ONE_LABEL, ids=str)
def test_networks_of_x_and_v_are_read_without_a_detour(rule, w, null, prediction):
    """At logsnr -20 a detour through eps multiplies rounding by e^10, and misses by 4.5e-3."""
    z, x = inputs(), x_of(np.full_like(labels(), NULL) if null else labels())
    models = MODELS._replace(model=network_of(prediction, x_of), weaker=network_of('v', other_x_of))
    actual = predict(rule, z, -20.0, w, models=models)
    np.testing.assert_allclose(actual.x, np.broadcast_to(x[:, None, None], z.shape), rtol=0, atol=1e-6)
    np.testing.assert_allclose(actual.eps, z, rtol=0, atol=1e-4)  # almost all of z is noise


@pytest.mark.parametrize(('first', 'second'), [('x', 'x'), ('x', 'v'), ('v', 'x')])
@pytest.mark.parametrize(('rule', 'field'), [(Cfg(), 'uncond'), (Autoguidance(), 'weaker')], ids=['cfg', 'weaker'])
def test_a_second_network_may_predict_something_else(rule, field, first, second):
    """Eq. 6 holds for x as it does for eps."""
    z = inputs()
    models = Models(network_of(first, x_of))._replace(**{field: network_of(second, other_x_of)})
    of_other = np.full_like(labels(), NULL) if field == 'uncond' else labels()
    for w in (-1.0, 0.0, 1.5):
        expected = ((1 + w) * x_of(labels()) - w * other_x_of(of_other))[:, None, None]
        actual = predict(rule, z, -20.0, w, models=models)
        np.testing.assert_allclose(actual.x, np.broadcast_to(expected, z.shape), rtol=0, atol=1e-6)


def test_rules_do_the_same_whatever_the_network_predicts():
    """The same model told in x, v and eps: the same predictions, where no precision is at stake."""

    def told_in(eps_fn, prediction):
        def fn(z, logsnr, labels):
            eps = eps_fn(z, logsnr, labels)
            return process.target(process.x_from_eps(z, eps, logsnr), eps, logsnr, prediction=prediction)

        return Denoiser(fn, CLASSES, prediction)

    z, level = inputs(), np.float32(0.5)
    for rule in (Cfg(), CfgPlusPlus(), Rescale(), Rescale(prediction='eps'), PROJECTED, Autoguidance(), ScaledScore()):
        expected = predict(rule, z, level, STRENGTHS)
        for prediction in ('x', 'v'):
            models = Models(told_in(toy_eps, prediction), weaker=told_in(worse_eps, 'x'))
            actual = predict(rule, z, level, STRENGTHS, models=models)
            for one, other in zip(actual, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-5, err_msg=f'{rule.text} {prediction}')


# --- a random label in the place of the null label ---


def test_random_labels_are_uniform_new_at_each_evaluation_and_of_the_key_alone():
    """A network that returns the label that it is asked for shows at w = 1 which label was drawn: 2 c - c'."""
    count = 3000
    rule, models = Cfg(against='random'), Models(Denoiser(lambda z, _, labels: labels[:, None] + z, CLASSES))

    @jax.jit
    def evaluate(rows):
        z, w, own = jnp.zeros((len(rows), 1)), jnp.ones(len(rows)), jnp.asarray(labels(count))[rows]
        state, drawn = rule.init(keys(count)[rows], z), []
        for _ in range(2):
            prediction, state = rule.predict(models, z, jnp.float32(0), own, w, state)
            drawn.append(2 * own - prediction.eps[:, 0].astype(jnp.int32))
        return jnp.stack(drawn)

    with jax.disable_jit(False):
        drawn, rows = np.asarray(evaluate(np.arange(count))), np.array([2000, 3, 77])
        np.testing.assert_array_equal(evaluate(rows), drawn[:, rows])
    for draws in drawn:
        assert scipy.stats.chisquare(np.bincount(draws, minlength=CLASSES)).pvalue > 1e-3
    for other in (drawn[1], labels(count)):  # of the next evaluation, and the label itself
        table = np.zeros((CLASSES, other.max() + 1))
        np.add.at(table, (drawn[0], other), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize('rule', [Cfg(against='random'), PROJECTED], ids=lambda rule: rule.name)
@pytest.mark.parametrize('solver', ['ancestral', 'heun'])
def test_a_sample_does_not_depend_on_its_batch(solver, rule):
    """With a rule that draws and one that remembers; w = 0 beside others must not change what they do."""
    w, rows = np.float32([0, 1, 2, 0.5, 0, 3]), np.array([4, 1, 1, 4, 4, 1])
    part = samples(solver, rule, w[rows], rows=rows)
    np.testing.assert_allclose(part, samples(solver, rule, w)[rows], rtol=0, atol=2e-5)


# --- CFG++ ---


@pytest.mark.parametrize('clip_x', [False, True])
@pytest.mark.parametrize('solver', ['ancestral', 'ddim', '2m', '2m_sde'])
def test_cfg_plus_plus_at_minus_1_is_the_unconditional_model(solver, clip_x):
    """Clipped too, where the unguided estimate has to be clipped like the guided one."""
    ours = samples(solver, CfgPlusPlus(), -1.0, clip_x=clip_x)
    np.testing.assert_allclose(ours, samples_of(solver, uncond_eps, clip_x=clip_x), rtol=0, atol=2e-5)


def test_cfg_plus_plus_in_ddim_is_eq_6_with_a_strength_that_grows_with_the_step_count():
    w = np.float32([-0.7, -1, 0, 0.5, -0.3, 0.2])
    following = jnp.append(LOGSNRS[1:], jnp.inf)

    def effective(logsnr):
        step = following[jnp.searchsorted(LOGSNRS, logsnr)] - logsnr
        return (1 + w) / -jnp.expm1(-0.5 * step) - 1

    actual = samples('ddim', CfgPlusPlus(), w)
    np.testing.assert_allclose(actual, samples_of('ddim', eq_6(effective)), rtol=0, atol=1e-4)
    plain = samples_of('ddim', eq_6(w))
    assert (np.abs(actual - plain).max(axis=(1, 2)) > 0.05).tolist() == (w != -1).tolist()


def eps_pair(z, level):
    return (of(z, level, labels(), np_=np) for of in (toy_eps, uncond_eps))


@pytest.mark.parametrize('clip_x', [False, True])
def test_cfg_plus_plus_matches_float64(clip_x):
    """DDIM by the paper: x from the guided eps, then alpha x + sigma eps_uncond; DPM-Solver++ 2M as released."""
    w = 0.4
    levels = np.float64(LOGSNRS)
    lam = levels / 2
    z_ddim = z_2m = normal(0)
    before = None
    for i, level in enumerate(levels):
        alpha, sigma = scales(level)

        def estimate(z, level=level, alpha=alpha, sigma=sigma):
            cond, uncond = eps_pair(z, level)
            x = (z - sigma * (uncond + (1 + w) * (cond - uncond))) / alpha
            x_uncond = (z - sigma * uncond) / alpha
            if not clip_x:
                return x, uncond, x_uncond
            x, x_uncond = np.clip(x, -1, 1), np.clip(x_uncond, -1, 1)
            return x, (z - alpha * x_uncond) / sigma, x_uncond

        x_ddim, uncond, _ = estimate(z_ddim)
        x_2m, _, x_uncond = estimate(z_2m)
        if i + 1 == len(levels):
            break
        next_alpha, next_sigma = scales(levels[i + 1])
        z_ddim = next_alpha * x_ddim + next_sigma * uncond
        # In y = z / alpha: y <- x + e^-h (y - x_uncond) - (e^-h - 1) (x - x_uncond before) h / 2h'.
        h = lam[i + 1] - lam[i]
        y = x_2m + np.exp(-h) * (z_2m / alpha - x_uncond)
        if before is not None:
            y = y - np.expm1(-h) * (x_2m - before) * h / (2 * (lam[i] - lam[i - 1]))
        z_2m, before = next_alpha * y, x_uncond
    np.testing.assert_allclose(samples('ddim', CfgPlusPlus(), w, clip_x=clip_x), x_ddim, rtol=0, atol=1e-4)
    np.testing.assert_allclose(samples('2m', CfgPlusPlus(), w, clip_x=clip_x), x_2m, rtol=0, atol=1e-4)


def test_cfg_plus_plus_steps_from_the_renoised_point():
    """Alg. 2 with v = 0 is DDIM with eta = 1 for it too; and one step of Heun's method by hand, in y = z / alpha."""
    guided = Sampler(rule=CfgPlusPlus(), clip_x=False).guided(MODELS, labels(), 0.4)
    drawn = (
        solver.sample(guided, keys(), LOGSNRS, shape=SHAPE)
        for solver in (solvers.Ancestral(logvar_interp=0.0), solvers.Ddim(eta=1.0))
    )
    np.testing.assert_allclose(*drawn, rtol=0, atol=1e-4)

    levels = np.float32([-1, 1])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(levels[0]), scales(levels[1])
    z = normal(0)
    cond, uncond = eps_pair(z, levels[0])
    x = (z - sigma_t * (uncond + 1.4 * (cond - uncond))) / alpha_t
    _, second = eps_pair(alpha_s * x + sigma_s * uncond, levels[1])
    y = x + sigma_t / alpha_t * uncond + (sigma_s / alpha_s - sigma_t / alpha_t) * (uncond + second) / 2
    cond, uncond = eps_pair(alpha_s * y, levels[1])
    expected = y - sigma_s / alpha_s * (uncond + 1.4 * (cond - uncond))
    actual = solvers.Heun().sample(guided, keys(), jnp.asarray(levels), shape=SHAPE)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(('threshold', 'clip_x'), [(None, True), (0.5, False)])
def test_thresholds_change_the_eps_that_renoises_with_its_own_estimate(threshold, clip_x):
    z, level = inputs(), np.float32(-3)
    rule = CfgPlusPlus(threshold=threshold)
    guided = Sampler(rule=rule, clip_x=clip_x).guided(MODELS, labels(), 2.0)
    prediction, _ = guided.predict(z, level, guided.init(keys(), z))
    assert guided.renoises
    # At w = -1 Eq. 6 is the unconditional model.
    alone = predict(Cfg(threshold=threshold), z, level, -1.0, clip_x=clip_x)
    np.testing.assert_allclose(prediction.eps, alone.eps, rtol=1e-5, atol=1e-6)
    assert np.abs(prediction.x).max() <= 1
    alpha, sigma = scales(level)
    expected = alpha * prediction.x + sigma * prediction.eps
    np.testing.assert_allclose(guided.origin(z, prediction, level), expected, rtol=1e-5, atol=1e-6)


# --- the other rules ---


def projected(cond, uncond, memory, *, w, eta, threshold, momentum):
    """Adaptive projected guidance of one step in float64: the guided x and the memory."""
    memory = cond - uncond + momentum * memory
    axes = (1, 2)
    norm = np.sqrt((memory**2).sum(axis=axes, keepdims=True))
    update = memory * np.minimum(1, threshold / norm)
    parallel = (update * cond).sum(axis=axes, keepdims=True) / (cond**2).sum(axis=axes, keepdims=True) * cond
    return cond + w * (update - parallel + eta * parallel), memory


def test_projected_guidance_carries_its_memory_along_the_steps():
    w, settings = np.float64([0.5, 1, 2, 3, 4, 0.1]), {'eta': 0.2, 'momentum': -0.5}
    for threshold in (0.5, None):
        z, memory, r = normal(0), 0.0, np.inf if threshold is None else threshold
        for i, level in enumerate(np.float64(LOGSNRS)):
            alpha, sigma = scales(level)
            estimates = ((z - sigma * eps) / alpha for eps in eps_pair(z, level))
            x, memory = projected(*estimates, memory, w=w[:, None, None], threshold=r, **settings)
            if i + 1 < len(LOGSNRS):
                next_alpha, next_sigma = scales(LOGSNRS[i + 1])
                z = next_alpha * x + next_sigma * (z - alpha * x) / sigma
        # At logsnr -5 the rounding of x is e^2.5 times that of eps, and w multiplies it.
        drawn = samples('ddim', Apg(norm_threshold=threshold, **settings), w)
        np.testing.assert_allclose(drawn, x, rtol=0, atol=5e-4)


def test_a_step_without_guidance_leaves_the_memory():
    rule, z, w = Apg(momentum=0.5), inputs(), jnp.float32([0, 1, 0, 1, 0, 1])
    _, state = rule.predict(MODELS, z, jnp.float32(0), labels(), w, rule.init(keys(), z))
    changed = np.abs(state.memory).max(axis=(1, 2)) > 0
    np.testing.assert_array_equal(changed, [False, True] * 3)


@pytest.mark.parametrize('prediction', process.PREDICTIONS)
def test_rescaling_matches_the_deviation_of_the_named_output(prediction):
    z, level = inputs(), np.float32(-1)
    guided = predict(Rescale(phi=1.0, prediction=prediction), z, level, 3.0)
    cond = predict(Temperature(), z, level, 0.0)
    stds = (
        np.float64(process.target(p.x, p.eps, level, prediction=prediction)).std(axis=(1, 2)) for p in (guided, cond)
    )
    np.testing.assert_allclose(*stds, rtol=1e-5)
    assert np.abs(guided.eps - predict(Cfg(), z, level, 3.0).eps).max() > 0.1


def test_rescaling_of_eps_is_a_scaled_score():
    z, level = inputs(), np.float32(-1)
    guided, plain = (predict(rule, z, level, 3.0) for rule in (Rescale(prediction='eps'), Cfg()))
    ratio = np.asarray(guided.eps / plain.eps)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-5)


@pytest.mark.parametrize('factor', [1.0, 0.7, 1.4, np.float32([0, 1, 2, 1, 1, 3])])
def test_scaling_eps_scales_the_score(factor):
    z, level = inputs(), np.float32(0.5)
    eps, factor = toy_eps(z, level, jnp.asarray(labels())), np.float32(factor)
    actual = predict(ScaledScore(), z, level, factor - np.float32(1)).eps
    _, sigma = schedule.alpha_sigma(level)
    each = np.broadcast_to(factor.reshape(-1, 1, 1), eps.shape)
    np.testing.assert_allclose(-actual / sigma, each * (-eps / sigma), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(actual)[each == 1], np.asarray(eps)[each == 1])


def test_clipping_and_thresholds_bound_the_samples():
    clipped = samples('heun', Cfg(), 3.0, clip_x=True)
    # Quantile 0 is clipping unless all of an image is outside [-1, 1].
    dynamic = samples('heun', Cfg(threshold=0.8), 3.0)
    assert np.abs(clipped).max() <= 1
    assert np.abs(dynamic).max() <= 1
    assert np.abs(dynamic - clipped).max() > 0.01
