"""Guidance rules: what they reduce to, what they cost, and whole samples against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from cfg.diffusion import guidance, pairs, process, rules, sampling, schedule, solvers, strength

SHAPE = (2, 3)
NULL, CLASSES = 5, 5
LOGSNRS = schedule.uniform_grid(7, logsnr_min=-5.0, logsnr_max=6.0)
SAMPLERS = {
    'ancestral': functools.partial(sampling.ancestral, logvar_interp=0.3),
    'ddim': solvers.ddim,
    '2m': functools.partial(solvers.dpm_solver_2m, stochastic=False),
    '2m_sde': functools.partial(solvers.dpm_solver_2m, stochastic=True),
    'heun': functools.partial(solvers.heun, s_churn=2.0),
}


def _scales(logsnr):
    logsnr = np.float64(logsnr)
    return np.sqrt(scipy.special.expit(logsnr)), np.sqrt(scipy.special.expit(-logsnr))


def _keys(count=6):
    return jax.random.split(jax.random.key(7), count)


def _labels(count=6):
    return np.arange(count, dtype=np.int32) % 3


def _toy_eps(z, logsnr, labels, np_=jnp):
    level = np_.reshape(logsnr, (-1, 1, 1))
    return np_.tanh(z + 0.3 * labels[:, None, None]) * (1 + 0.1 * np_.sin(level)) + 0.1 * np_.cos(3 * z)


def _worse_eps(z, logsnr, labels):
    return 0.8 * _toy_eps(z, logsnr, labels) + 0.1


def _uncond_eps(z, logsnr, labels):
    return _toy_eps(z, logsnr, jnp.full_like(labels, NULL))


NULL_PAIR = pairs.null_label_pair(_toy_eps, null_label=NULL)
PAIRS = {
    'null_label': NULL_PAIR,
    'two_model': pairs.two_model_pair(_toy_eps, _worse_eps, null_label=NULL),
    'autoguidance': pairs.autoguidance_pair(_toy_eps, _worse_eps),
    'independent': pairs.independent_pair(_toy_eps, num_classes=CLASSES),
}
CONSTRUCTORS = {
    'classifier_free': rules.classifier_free,
    'rescaled': functools.partial(rules.rescaled, phi=0.7, prediction='v'),
    'projected': functools.partial(rules.projected, eta=0.2, norm_threshold=0.5, momentum=-0.5),
}


def _samples(sampler, model, *, keys=None, labels=None, clip_x=False):
    keys, labels = _keys() if keys is None else keys, _labels() if labels is None else labels
    run = jax.jit(lambda keys, labels: SAMPLERS[sampler](model, keys, labels, LOGSNRS, shape=SHAPE, clip_x=clip_x))
    return np.asarray(run(keys, labels))


@functools.cache
def _eq_6(sampler, w):
    return _samples(sampler, guidance.classifier_free_eps_fn(_toy_eps, w, null_label=NULL))


def _predict(rule, z, logsnr, labels, times=1):
    state = rule.init(_keys(len(z)), z)
    for _ in range(times):
        prediction, state = rule.predict(z, logsnr, labels, state)
    return prediction


def _inputs(seed=1, count=6):
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


# --- what rules reduce to ---


# Rules that are the conditional model, one of each kind and each pair, and rules that are Eq. 6 at w = 1.5.
NEUTRAL = {
    'classifier_free': rules.classifier_free(PAIRS['two_model'], 0.0),
    'rescaled': rules.rescaled(NULL_PAIR, 0.0, phi=0.7, prediction='x'),
    'projected': CONSTRUCTORS['projected'](PAIRS['independent'], 0.0),
    'interval': rules.classifier_free(PAIRS['autoguidance'], strength.interval(2.0, logsnr_lo=3.0, logsnr_hi=3.0)),
    'scaled': guidance.scaled_eps_fn(_toy_eps, 1.0),
}
EQ_6 = {
    'classifier_free': rules.classifier_free(NULL_PAIR, 1.5),
    'rescaled': rules.rescaled(NULL_PAIR, 1.5, phi=0.0, prediction='x'),
    'projected': rules.projected(NULL_PAIR, 1.5, eta=1.0, norm_threshold=np.inf, momentum=0.0),
    'interval': rules.classifier_free(NULL_PAIR, strength.interval(1.5, logsnr_lo=-np.inf, logsnr_hi=np.inf)),
    'autoguidance': rules.classifier_free(pairs.autoguidance_pair(_toy_eps, _uncond_eps), 1.5),
}
reductions = pytest.mark.parametrize(
    ('made', 'expected'),
    [(NEUTRAL, _toy_eps), (EQ_6, guidance.classifier_free_eps_fn(_toy_eps, 1.5, null_label=NULL))],
    ids=['conditional', 'eq_6'],
)


@reductions
def test_predictions_that_reduce_to_others(made, expected):
    for name, rule in made.items():
        as_rule = rules.as_rule(rule)
        run = jax.jit(lambda z, level, rule=as_rule: _predict(rule, z, level, _labels(), times=2))
        for level in np.float32([-5, 0, 6]):
            z = _inputs()
            actual, wanted = run(z, level), _predict(rules.as_rule(expected), z, level, _labels())
            np.testing.assert_allclose(actual.eps, wanted.eps, rtol=0, atol=2e-5, err_msg=name)
            np.testing.assert_allclose(actual.x, wanted.x, rtol=1e-5, atol=5e-5, err_msg=name)


@pytest.mark.parametrize('turn', range(5))
def test_samples_that_reduce_to_others(turn):
    """Each sampler with one of the rules that are Eq. 6."""
    sampler, name = list(SAMPLERS)[turn], list(EQ_6)[(turn + 2) % 5]
    np.testing.assert_allclose(_samples(sampler, EQ_6[name]), _eq_6(sampler, 1.5), rtol=0, atol=1e-4)


def test_eq_6_as_a_rule_has_the_same_predictions_bit_for_bit():
    z, w = _inputs(), np.float32([0, -1, 0.3, 1, 2, 4])
    for now in (w, w[:2].repeat(3), np.float32(1.5)):
        prediction = _predict(rules.classifier_free(NULL_PAIR, now), z, np.float32(0.5), _labels())
        eps = guidance.classifier_free_eps_fn(_toy_eps, now, null_label=NULL)(z, np.float32(0.5), _labels())
        np.testing.assert_array_equal(prediction.eps, eps)
        np.testing.assert_array_equal(prediction.x, process.x_from_eps(z, eps, np.float32(0.5)))


@pytest.mark.parametrize('name', CONSTRUCTORS)
def test_x_and_eps_agree_for_every_rule_that_does_not_renoise(name):
    z, level = _inputs(), np.float32(0.5)
    plain = CONSTRUCTORS[name](NULL_PAIR, np.float32([0, -1, 0.3, 1, 2, 4]))
    made = (plain, rules.clipped(plain), rules.thresholded(plain, quantile=0.9))
    assert not any(rule.renoises for rule in made)
    for prediction in jax.jit(lambda z: [_predict(rule, z, level, _labels(), times=2) for rule in made])(z):
        np.testing.assert_allclose(process.diffuse(prediction.x, prediction.eps, level), z, atol=3e-6)


def test_predictions_of_the_pairs():
    """Eq. 6 with the second eps written out; the independent label is tested below."""
    z, w, level, labels = _inputs(), np.float32([0, -1, 0.3, 1, 2, 4]), np.float32(0.5), _labels()
    cond = _toy_eps(z, level, labels)
    others = {
        'null_label': _uncond_eps(z, level, labels),
        'two_model': _worse_eps(z, level, np.full_like(labels, NULL)),
        'autoguidance': _worse_eps(z, level, labels),
    }
    for name, other in others.items():
        actual = _predict(rules.classifier_free(PAIRS[name], w), z, level, labels).eps
        strengths = w[:, None, None]
        np.testing.assert_allclose(actual, (1 + strengths) * cond - strengths * other, rtol=1e-5, atol=1e-5)


# --- cost ---


class _Recorder:
    def __init__(self, log, name, eps_fn=_toy_eps):
        self.log, self.name, self.eps_fn = log, name, eps_fn

    def __call__(self, z, logsnr, labels):
        jax.debug.callback(lambda labels: self.log.append((self.name, np.array(labels).tolist())), labels)
        return self.eps_fn(z, logsnr, labels)


@pytest.mark.parametrize(
    ('name', 'w', 'passes'),
    [
        ('classifier_free', [0, 0], ['cond']),
        ('classifier_free', [-1, -1], ['other']),
        ('classifier_free', [0, 1], ['cond', 'other']),
        ('rescaled', [0, 0], ['cond']),
        ('rescaled', [-1, -1], ['cond', 'other']),
        ('projected', [0, 0], ['cond']),
        ('projected', [0, 2], ['cond', 'other']),
        ('cfg_plus_plus', [-1, -1], ['other']),
        ('cfg_plus_plus', [0, 0], ['cond', 'other']),
    ],
)
def test_only_the_passes_that_are_needed_run(name, w, passes):
    constructor = {**CONSTRUCTORS, 'cfg_plus_plus': rules.cfg_plus_plus}[name]
    z, labels, log = _inputs(count=2), np.array([3, 1], np.int32), []
    _predict(
        constructor(pairs.null_label_pair(_Recorder(log, 'network'), null_label=NULL), np.float32(w)), z, 0.5, labels
    )
    jax.effects_barrier()
    asked = {'cond': [3, 1], 'other': [NULL, NULL]}
    assert log == [('network', [label for name in passes for label in asked[name]])]

    log.clear()
    two = pairs.autoguidance_pair(_Recorder(log, 'cond'), _Recorder(log, 'other', _worse_eps))
    _predict(constructor(two, np.float32(w)), z, 0.5, labels)
    jax.effects_barrier()
    assert sorted(log) == [(name, [3, 1]) for name in passes]


def test_a_batch_of_both_ends_runs_one_pass_of_one_network():
    z, labels, log = _inputs(count=2), np.array([3, 1], np.int32), []
    pair = pairs.null_label_pair(_Recorder(log, 'network'), null_label=NULL)
    _predict(rules.classifier_free(pair, np.float32([0, -1])), z, 0.5, labels)
    jax.effects_barrier()
    assert log == [('network', [3, NULL])]


@pytest.mark.parametrize('w', [[0, 1], [0, 0], [-1, -1]])
def test_a_cheaper_way_to_both_is_taken_where_both_are_needed(w):
    z, labels, w, log = _inputs(count=2), np.array([3, 1], np.int32), np.float32(w), []

    def both_fn(z, logsnr, labels, other_labels):
        jax.debug.callback(lambda *asked: log.append(('both', *(a.tolist() for a in asked))), labels, other_labels)
        return _toy_eps(z, logsnr, labels), _toy_eps(z, logsnr, other_labels)

    network = _Recorder(log, 'network')
    pair = pairs.null_label_pair(network, null_label=NULL, both_fn=both_fn)
    actual = _predict(rules.classifier_free(pair, w), z, np.float32(0.5), labels)
    jax.effects_barrier()
    asked = [3, 1] if w[0] == 0 else [NULL, NULL]
    assert log == ([('both', [3, 1], [NULL, NULL])] if w[1] == 1 else [('network', asked)])
    expected = _predict(rules.classifier_free(NULL_PAIR, w), z, np.float32(0.5), labels)
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=1e-6)

    cheaper = pairs.independent_pair(network, num_classes=CLASSES, both_fn=both_fn)
    log.clear()
    actual = _predict(rules.classifier_free(cheaper, w), z, np.float32(0.5), labels)
    jax.effects_barrier()
    assert [entry[0] for entry in log] == ['both' if w[1] == 1 else 'network']
    expected = _predict(rules.classifier_free(PAIRS['independent'], w), z, np.float32(0.5), labels)
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=1e-6)


# --- independent condition guidance ---


def test_independent_labels_are_uniform_new_at_each_evaluation_and_of_the_key_alone():
    count, seen = 3000, []

    def eps_fn(z, logsnr, labels):
        jax.debug.callback(lambda labels: seen.append(np.array(labels)), labels)
        return z

    rule = rules.classifier_free(pairs.independent_pair(eps_fn, num_classes=CLASSES), 1.0)
    keys, labels = _keys(count), _labels(count)

    def evaluate(rows):
        seen.clear()
        z = jnp.zeros((len(rows), 1))
        state = rule.init(keys[rows], z)
        for _ in range(2):
            _, state = rule.predict(z, jnp.float32(0), labels[rows], state)
        jax.effects_barrier()
        for run in seen:
            np.testing.assert_array_equal(run[: len(rows)], labels[rows])
        return np.stack([run[len(rows) :] for run in seen])

    drawn = evaluate(np.arange(count))
    assert drawn.shape == (2, count)
    for draws in drawn:
        assert scipy.stats.chisquare(np.bincount(draws, minlength=CLASSES)).pvalue > 1e-3
    for other in (drawn[1], labels):  # of the next evaluation, and the label itself
        table = np.zeros((CLASSES, other.max() + 1))
        np.add.at(table, (drawn[0], other), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3
    rows = np.array([2000, 3, 77])
    np.testing.assert_array_equal(evaluate(rows), drawn[:, rows])


@pytest.mark.parametrize('sampler', ['ancestral', 'heun'])
def test_a_sample_does_not_depend_on_its_batch(sampler):
    """With a rule that draws and one that remembers; w = 0 beside others must not change what they do."""
    w = jnp.float32([0, 1, 2, 0.5, 0, 3])
    keys, labels, rows = _keys(), _labels(), np.array([4, 1])

    for make in (
        lambda w: rules.classifier_free(PAIRS['independent'], w),
        lambda w: rules.projected(NULL_PAIR, w, eta=0.2, norm_threshold=0.5, momentum=-0.5),
    ):
        whole = _samples(sampler, make(w))
        part = _samples(sampler, make(w[rows]), keys=keys[rows], labels=labels[rows])
        np.testing.assert_allclose(part, whole[rows], rtol=0, atol=2e-5)


# --- CFG++ ---


@pytest.mark.parametrize('clip_x', [False, True])
@pytest.mark.parametrize('sampler', ['ancestral', 'ddim', '2m', '2m_sde'])
def test_cfg_plus_plus_at_minus_1_is_the_unconditional_model(sampler, clip_x):
    """Clipped too, where the unguided estimate has to be clipped like the guided one."""
    rule = rules.cfg_plus_plus(NULL_PAIR, -1.0)
    ours, plain = (_samples(sampler, model, clip_x=clip_x) for model in (rule, _uncond_eps))
    np.testing.assert_allclose(ours, plain, rtol=0, atol=2e-5)


def test_cfg_plus_plus_in_ddim_is_eq_6_with_a_strength_that_grows_with_the_step_count():
    w = np.float32([-0.7, -1, 0, 0.5, -0.3, 0.2])
    following = jnp.append(LOGSNRS[1:], jnp.inf)

    def effective(logsnr):
        step = following[jnp.searchsorted(LOGSNRS, logsnr)] - logsnr
        return (1 + w) / -jnp.expm1(-0.5 * step) - 1

    actual = _samples('ddim', rules.cfg_plus_plus(NULL_PAIR, w))
    expected = _samples('ddim', guidance.classifier_free_eps_fn(_toy_eps, effective, null_label=NULL))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    plain = _samples('ddim', guidance.classifier_free_eps_fn(_toy_eps, w, null_label=NULL))
    assert (np.abs(actual - plain).max(axis=(1, 2)) > 0.05).tolist() == (w != -1).tolist()


@functools.cache
def _normal(index):
    draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), SHAPE))
    return np.float64(draw(_keys()))


def _eps_pair(z, level):
    labels = _labels()
    return (_toy_eps(z, level, c, np_=np) for c in (labels, np.full_like(labels, NULL)))


@pytest.mark.parametrize('clip_x', [False, True])
def test_cfg_plus_plus_matches_float64(clip_x):
    """DDIM by the paper: x from the guided eps, then alpha x + sigma eps_uncond; DPM-Solver++ 2M as released."""
    w = 0.4
    levels = np.float64(LOGSNRS)
    lam = levels / 2
    z_ddim = z_2m = _normal(0)
    before = None
    for i, level in enumerate(levels):
        alpha, sigma = _scales(level)

        def estimate(z, level=level, alpha=alpha, sigma=sigma):
            cond, uncond = _eps_pair(z, level)
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
        next_alpha, next_sigma = _scales(levels[i + 1])
        z_ddim = next_alpha * x_ddim + next_sigma * uncond
        # In y = z / alpha: y <- x + e^-h (y - x_uncond) - (e^-h - 1) (x - x_uncond before) h / 2h'.
        h = lam[i + 1] - lam[i]
        y = x_2m + np.exp(-h) * (z_2m / alpha - x_uncond)
        if before is not None:
            y = y - np.expm1(-h) * (x_2m - before) * h / (2 * (lam[i] - lam[i - 1]))
        z_2m, before = next_alpha * y, x_uncond
    rule = rules.cfg_plus_plus(NULL_PAIR, w)
    np.testing.assert_allclose(_samples('ddim', rule, clip_x=clip_x), x_ddim, rtol=0, atol=1e-4)
    np.testing.assert_allclose(_samples('2m', rule, clip_x=clip_x), x_2m, rtol=0, atol=1e-4)


def test_cfg_plus_plus_steps_from_the_renoised_point():
    """Alg. 2 with v = 0 is DDIM with eta = 1 for it too; and one step of Heun's method by hand, in y = z / alpha."""
    rule = rules.cfg_plus_plus(NULL_PAIR, 0.4)
    settings = {'shape': SHAPE, 'clip_x': False}
    np.testing.assert_allclose(
        sampling.ancestral(rule, _keys(), _labels(), LOGSNRS, logvar_interp=0.0, **settings),
        solvers.ddim(rule, _keys(), _labels(), LOGSNRS, eta=1.0, **settings),
        rtol=0,
        atol=1e-4,
    )

    levels = np.float32([-1, 1])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _scales(levels[0]), _scales(levels[1])
    z = _normal(0)
    cond, uncond = _eps_pair(z, levels[0])
    x = (z - sigma_t * (uncond + 1.4 * (cond - uncond))) / alpha_t
    _, second = _eps_pair(alpha_s * x + sigma_s * uncond, levels[1])
    y = x + sigma_t / alpha_t * uncond + (sigma_s / alpha_s - sigma_t / alpha_t) * (uncond + second) / 2
    cond, uncond = _eps_pair(alpha_s * y, levels[1])
    expected = y - sigma_s / alpha_s * (uncond + 1.4 * (cond - uncond))
    actual = solvers.heun(rule, _keys(), _labels(), levels, **settings)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_thresholds_change_the_eps_that_renoises_with_its_own_estimate():
    z, level = _inputs(), np.float32(-3)
    for wrapper in (rules.clipped, functools.partial(rules.thresholded, quantile=0.5)):
        rule = wrapper(rules.cfg_plus_plus(NULL_PAIR, 2.0))
        prediction = _predict(rule, z, level, _labels())
        assert rule.renoises
        unguided = _predict(wrapper(rules.as_rule(_uncond_eps)), z, level, _labels())
        np.testing.assert_allclose(prediction.eps, unguided.eps, rtol=1e-5, atol=1e-6)
        assert np.abs(prediction.x).max() <= 1
        start = rules.origin(rule, z, prediction, level)
        alpha, sigma = _scales(level)
        np.testing.assert_allclose(start, alpha * prediction.x + sigma * prediction.eps, rtol=1e-5, atol=1e-6)


# --- whole samples with the other rules ---


def _projected(cond, uncond, memory, *, w, eta, threshold, momentum):
    """Adaptive projected guidance of one step in float64: the guided x and the memory."""
    memory = cond - uncond + momentum * memory
    axes = (1, 2)
    norm = np.sqrt((memory**2).sum(axis=axes, keepdims=True))
    update = memory * np.minimum(1, threshold / norm)
    parallel = (update * cond).sum(axis=axes, keepdims=True) / (cond**2).sum(axis=axes, keepdims=True) * cond
    return cond + w * (update - parallel + eta * parallel), memory


def test_projected_guidance_carries_its_memory_along_the_steps():
    w, settings = np.float64([0.5, 1, 2, 3, 4, 0.1]), {'eta': 0.2, 'momentum': -0.5}
    for threshold in (0.5, np.inf):
        z, memory = _normal(0), 0.0
        for i, level in enumerate(np.float64(LOGSNRS)):
            alpha, sigma = _scales(level)
            estimates = ((z - sigma * eps) / alpha for eps in _eps_pair(z, level))
            x, memory = _projected(*estimates, memory, w=w[:, None, None], threshold=threshold, **settings)
            if i + 1 < len(LOGSNRS):
                next_alpha, next_sigma = _scales(LOGSNRS[i + 1])
                z = next_alpha * x + next_sigma * (z - alpha * x) / sigma
        rule = rules.projected(NULL_PAIR, np.float32(w), norm_threshold=threshold, **settings)
        # At logsnr -5 the rounding of x is e^2.5 times that of eps, and w multiplies it.
        np.testing.assert_allclose(_samples('ddim', rule), x, rtol=0, atol=5e-4)


def test_a_step_without_guidance_leaves_the_memory():
    rule = rules.projected(NULL_PAIR, np.float32([0, 1, 0, 1, 0, 1]), eta=0.0, norm_threshold=np.inf, momentum=0.5)
    z = _inputs()
    _, state = rule.predict(z, np.float32(0), _labels(), rule.init(_keys(), z))
    changed = np.abs(state.memory).max(axis=(1, 2)) > 0
    np.testing.assert_array_equal(changed, [False, True] * 3)


@pytest.mark.parametrize('prediction', process.PREDICTIONS)
def test_rescaling_matches_the_deviation_of_the_named_output(prediction):
    z, level = _inputs(), np.float32(-1)
    guided = _predict(rules.rescaled(NULL_PAIR, 3.0, phi=1.0, prediction=prediction), z, level, _labels())
    cond = _predict(rules.as_rule(_toy_eps), z, level, _labels())
    stds = (
        np.float64(process.target(p.x, p.eps, level, prediction=prediction)).std(axis=(1, 2)) for p in (guided, cond)
    )
    np.testing.assert_allclose(*stds, rtol=1e-5)
    plain = _predict(rules.classifier_free(NULL_PAIR, 3.0), z, level, _labels())
    assert np.abs(guided.eps - plain.eps).max() > 0.1


def test_rescaling_of_eps_is_a_scaled_score():
    z, level = _inputs(), np.float32(-1)
    guided = _predict(rules.rescaled(NULL_PAIR, 3.0, phi=0.7, prediction='eps'), z, level, _labels())
    plain = _predict(rules.classifier_free(NULL_PAIR, 3.0), z, level, _labels())
    ratio = np.asarray(guided.eps / plain.eps)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-5)


def test_clipping_and_thresholds_bound_the_samples():
    sampler = 'heun'
    guided = rules.classifier_free(NULL_PAIR, 3.0)
    clipped = _samples(sampler, guided, clip_x=True)
    np.testing.assert_allclose(clipped, _samples(sampler, rules.clipped(guided)), rtol=0, atol=1e-6)
    # Quantile 0 is clipping unless all of an image is outside [-1, 1].
    dynamic = _samples(sampler, rules.thresholded(guided, quantile=0.8))
    assert np.abs(clipped).max() <= 1
    assert np.abs(dynamic).max() <= 1
    assert np.abs(dynamic - clipped).max() > 0.01


def test_one_compilation_serves_every_strength():
    traces = []

    def eps_fn(z, logsnr, labels):
        traces.append(z.shape)
        return _toy_eps(z, logsnr, labels)

    @jax.jit
    def run(w):
        rule = rules.classifier_free(pairs.null_label_pair(eps_fn, null_label=NULL), w)
        return solvers.ddim(rule, _keys(), _labels(), LOGSNRS, shape=SHAPE, clip_x=False)

    run(jnp.float32(1.0))
    before = list(traces)
    for w in (0.0, 1.5, -1.0):
        np.testing.assert_allclose(run(jnp.float32(w)), _eq_6('ddim', w), rtol=0, atol=1e-5)
    assert traces == before
