"""The samplers against the papers' formulas in float64, exact solutions, and the schedulers of diffusers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from cfg.diffusion import sampling, schedule, solvers

SHAPE = (2, 3)
GRIDS = {'paper': schedule.sampling_grid, 'uniform': schedule.uniform_grid, 'rho': schedule.rho_grid}
SAMPLERS = {
    'ancestral': functools.partial(sampling.ancestral, logvar_interp=0.3),
    'ddim': solvers.ddim,
    'ddim_half': functools.partial(solvers.ddim, eta=0.5),
    'ddim_stochastic': functools.partial(solvers.ddim, eta=1.0),
    '2m': functools.partial(solvers.dpm_solver_2m, stochastic=False),
    '2m_sde': functools.partial(solvers.dpm_solver_2m, stochastic=True),
    'heun': solvers.heun,
    'heun_churn': functools.partial(solvers.heun, s_churn=3.0, s_min=0.3, s_max=20.0, s_noise=1.003),
}
# With other s_noise more steps do not lead to the exact distribution.
HEUN_CHURN_PLAIN = functools.partial(SAMPLERS['heun_churn'], s_noise=1.0)


def _scales(logsnr):
    logsnr = np.float64(logsnr)
    return np.sqrt(scipy.special.expit(logsnr)), np.sqrt(scipy.special.expit(-logsnr))


def _keys(count=6):
    return jax.random.split(jax.random.key(7), count)


def _labels(count=6):
    return np.arange(count, dtype=np.int32) % 3


@functools.partial(jax.jit, static_argnums=2)
def _normal(keys, index, shape):
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


def _toy_eps(z, logsnr, labels, np_=jnp):
    level = np_.reshape(logsnr, (-1, 1, 1))
    return np_.tanh(z + 0.3 * labels[:, None, None]) * (1 + 0.1 * np_.sin(level)) + 0.1 * np_.cos(3 * z)


# --- the papers' formulas, in their own variables and in float64 ---


def _reference(name, eps_fn, levels, *, clip_x, labels=None, noise=None, temperature=1.0):
    labels = _labels() if labels is None else labels
    noise = (lambda i: np.float64(_normal(_keys(), i, SHAPE))) if noise is None else noise

    def predict(z, level):
        alpha, sigma = _scales(level)
        eps = eps_fn(z, level, labels, np_=np)
        x = (z - sigma * eps) / alpha
        if clip_x:
            x = np.clip(x, -1, 1)
            eps = (z - alpha * x) / sigma
        return x, eps

    levels = np.float64(levels)
    if name.startswith('ddim'):
        return _ddim(predict, levels, noise, {'ddim': 0.0, 'ddim_half': 0.5, 'ddim_stochastic': 1.0}[name], temperature)
    if name.startswith('2m'):
        return _two_m(predict, levels, noise, name == '2m_sde', temperature)
    churn = {'s_churn': 3.0, 's_min': 0.3, 's_max': 20.0, 's_noise': 1.003} if name == 'heun_churn' else {}
    return _edm(predict, levels, noise, **churn)


def _ddim(predict, levels, noise, eta, temperature):
    """Eq. 12 and 16 of Song et al. 2020, in their alpha, which is alpha^2 here."""
    z = noise(0)
    for i, (t, s) in enumerate(itertools.pairwise(levels), start=1):
        x, eps = predict(z, t)
        a_t, a_s = scipy.special.expit(t), scipy.special.expit(s)
        std = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
        z = np.sqrt(a_s) * x + np.sqrt(1 - a_s - std**2) * eps + temperature * std * noise(i)
    return predict(z, levels[-1])[0]


def _two_m(predict, levels, noise, stochastic, temperature):
    """Algorithm 2 of Lu et al. 2022, and its SDE form, in their lambda, which is half the logsnr."""
    z, before, r = noise(0), None, None
    lam = levels / 2
    for i in range(1, len(levels)):
        x, _ = predict(z, levels[i - 1])
        (_, sigma_t), (alpha_s, sigma_s) = _scales(levels[i - 1]), _scales(levels[i])
        h = lam[i] - lam[i - 1]
        if before is None:
            d = x
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * before
        if stochastic:
            z = sigma_s / sigma_t * np.exp(-h) * z + alpha_s * (1 - np.exp(-2 * h)) * d
            z = z + temperature * sigma_s * np.sqrt(1 - np.exp(-2 * h)) * noise(i)
        else:
            z = sigma_s / sigma_t * z - alpha_s * (np.exp(-h) - 1) * d
        before = x
    return predict(z, levels[-1])[0]


def _edm(predict, levels, noise, s_churn=0.0, s_min=0.0, s_max=np.inf, s_noise=1.0):
    """Algorithm 2 of Karras et al. 2022, in y = x + sigma eps and their sigma, down to sigma = 0."""

    def denoise(y, sigma):
        # The variance preserving z of the same point: y / sqrt(1 + sigma^2).
        return predict(y / np.sqrt(1 + sigma**2), -2 * np.log(sigma))[0]

    sigmas = np.exp(-levels / 2)
    # Our start is z = noise at the first level.
    y = noise(0) * np.sqrt(1 + sigmas[0] ** 2)
    for i, (sigma, following) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True), start=1):
        gamma = min(s_churn / len(sigmas), np.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
        raised = sigma * (1 + gamma)
        if s_churn:
            y = y + np.sqrt(raised**2 - sigma**2) * s_noise * noise(i)
        slope = (y - denoise(y, raised)) / raised
        euler = y + (following - raised) * slope
        if following > 0:
            second = (euler - denoise(euler, following)) / following
            euler = y + (following - raised) * (slope + second) / 2
        y = euler
    return y


@functools.cache
def _compiled(name, clip_x):
    return jax.jit(
        lambda keys, labels, logsnrs: SAMPLERS[name](_toy_eps, keys, labels, logsnrs, shape=SHAPE, clip_x=clip_x)
    )


@pytest.mark.parametrize('clip_x', [False, True], ids=['free', 'clipped'])
@pytest.mark.parametrize('name', [name for name in SAMPLERS if name != 'ancestral'])
def test_samples_match_the_papers_in_float64(name, clip_x):
    for make in GRIDS.values():
        logsnrs = make(9, logsnr_min=-6.0, logsnr_max=6.0)
        actual = _compiled(name, clip_x)(_keys(), _labels(), logsnrs)
        assert actual.shape == (6, *SHAPE)
        assert actual.dtype == jnp.float32
        expected = _reference(name, _toy_eps, logsnrs, clip_x=clip_x)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
        if clip_x:
            # At every step and not only at the end.
            free = _compiled(name, False)(_keys(), _labels(), logsnrs)
            assert np.abs(actual).max() <= 1
            assert np.abs(actual - np.clip(free, -1, 1)).max() > 0.01


@pytest.mark.parametrize('name', ['ddim_stochastic', '2m_sde', 'heun_churn'])
def test_a_sample_depends_only_on_its_key_and_label(name):
    keys, labels, logsnrs = _keys(), _labels(), GRIDS['paper'](9, logsnr_min=-6.0, logsnr_max=6.0)
    whole = np.asarray(_compiled(name, True)(keys, labels, logsnrs))
    rows = np.array([4, 1])
    np.testing.assert_allclose(_compiled(name, True)(keys[rows], labels[rows], logsnrs), whole[rows], atol=1e-5)
    changed = _compiled(name, True)(keys.at[3].set(jax.random.key(99)), labels, logsnrs)
    moved = np.abs(np.asarray(changed) - whole).max(axis=(1, 2)) > 1e-3
    np.testing.assert_array_equal(moved, np.arange(6) == 3)


@pytest.mark.parametrize('name', ['ancestral', 'ddim', '2m_sde', 'heun', 'heun_churn'])
def test_the_number_of_evaluations_and_their_levels(name):
    seen = []

    def eps_fn(z, logsnr, labels):
        jax.debug.callback(lambda level: seen.append(float(level)), logsnr, ordered=True)
        return _toy_eps(z, logsnr, labels)

    levels = np.float32([-3, -1, 0.5, 1, 3])
    SAMPLERS[name](eps_fn, _keys(), _labels(), levels, shape=SHAPE, clip_x=False)
    jax.effects_barrier()
    if not name.startswith('heun'):
        np.testing.assert_array_equal(seen, levels)
        return
    sigma = np.exp(-np.float64(levels) / 2)
    gamma = min(3 / 5, np.sqrt(2) - 1) * ((sigma >= 0.3) & (sigma <= 20)) if name == 'heun_churn' else np.zeros(5)
    raised = levels - 2 * np.log(1 + gamma)
    expected = [level for pair in zip(raised, levels[1:], strict=False) for level in pair] + [raised[-1]]
    assert len(seen) == 2 * 5 - 1
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-6)


def test_samplers_that_are_the_same():
    logsnrs = GRIDS['uniform'](12, logsnr_min=-6.0, logsnr_max=6.0)
    settings = {'shape': SHAPE, 'clip_x': True}
    alg_2 = sampling.ancestral(_toy_eps, _keys(), _labels(), logsnrs, logvar_interp=0.0, **settings)
    stochastic = _compiled('ddim_stochastic', True)(_keys(), _labels(), logsnrs)
    np.testing.assert_allclose(stochastic, alg_2, rtol=0, atol=2e-5)
    # Two levels: only the first step, which has nothing to extrapolate from.
    for one, other in (('2m', 'ddim'), ('2m_sde', 'ddim_stochastic')):
        pair = (_compiled(name, True)(_keys(), _labels(), logsnrs[4:6]) for name in (one, other))
        np.testing.assert_allclose(*pair, rtol=0, atol=2e-5)


@pytest.mark.parametrize('temperature', [0.0, 0.5])
@pytest.mark.parametrize('name', ['ddim_half', 'ddim_stochastic', '2m_sde'])
def test_temperature_scales_the_added_noise_only(name, temperature):
    logsnrs = GRIDS['uniform'](9, logsnr_min=-6.0, logsnr_max=6.0)
    actual = SAMPLERS[name](
        _toy_eps, _keys(), _labels(), logsnrs, shape=SHAPE, clip_x=False, temperature=np.full(6, temperature)
    )
    expected = _reference(name, _toy_eps, logsnrs, clip_x=False, temperature=temperature)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_temperature_of_alg_2():
    logsnrs = GRIDS['uniform'](9, logsnr_min=-6.0, logsnr_max=6.0)
    settings = {'shape': SHAPE, 'clip_x': False}
    alg_2 = functools.partial(sampling.ancestral, _toy_eps, _keys(), _labels(), logsnrs, logvar_interp=0.0, **settings)
    for temperature in (0.0, 0.5):
        expected = _reference('ddim_stochastic', _toy_eps, logsnrs, clip_x=False, temperature=temperature)
        np.testing.assert_allclose(alg_2(temperature=temperature), expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(alg_2(temperature=1.0), alg_2())


# --- diffusers ---


def _levels_for_diffusers(count=12):
    return np.linspace(-5, 6, count)


def _torch_eps(z, level):
    eps = _toy_eps(z.numpy().astype(np.float64), level, _labels(), np_=np)
    return torch.tensor(eps, dtype=torch.float32)


def _torch_noise(index):
    return torch.tensor(np.asarray(_normal(_keys(), index, SHAPE)))


@pytest.mark.parametrize('name', ['ddim', 'ddim_half', 'ddim_stochastic'])
def test_ddim_is_that_of_diffusers(name):
    levels = _levels_for_diffusers()
    scheduler = DDIMScheduler(num_train_timesteps=len(levels), clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(len(levels))
    scheduler.alphas_cumprod = torch.tensor(scipy.special.expit(levels[::-1]).copy(), dtype=torch.float64)
    z = _torch_noise(0)
    eta = {'ddim': 0.0, 'ddim_half': 0.5, 'ddim_stochastic': 1.0}[name]
    for i, t in enumerate(scheduler.timesteps):
        last = i + 1 == len(levels)
        z = scheduler.step(
            _torch_eps(z.float(), levels[i]), t, z, eta=0.0 if last else eta, variance_noise=_torch_noise(i + 1)
        ).prev_sample
    actual = _compiled(name, False)(_keys(), _labels(), jnp.float32(levels))
    np.testing.assert_allclose(actual, z, rtol=0, atol=1e-4)


# A scheduler of torch hands its tensors to numpy in the old way.
@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
@pytest.mark.parametrize('thresholding', [False, True])
@pytest.mark.parametrize('name', ['2m', '2m_sde'])
def test_dpm_solver_2m_is_that_of_diffusers(name, thresholding):
    """With the final sigma 0; thresholds up to 1 are clipping."""
    levels = _levels_for_diffusers()
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type='dpmsolver++' if name == '2m' else 'sde-dpmsolver++',
        solver_order=2,
        solver_type='midpoint',
        thresholding=thresholding,
        sample_max_value=1.0,
        final_sigmas_type='zero',
    )
    scheduler.set_timesteps(len(levels))
    scheduler.sigmas = torch.tensor([*np.exp(-levels / 2), 0.0], dtype=torch.float64)
    z = _torch_noise(0)
    for i, t in enumerate(scheduler.timesteps):
        z = scheduler.step(_torch_eps(z, levels[i]), t, z, variance_noise=_torch_noise(i + 1)).prev_sample
    actual = _compiled(name, thresholding)(_keys(), _labels(), jnp.float32(levels))
    np.testing.assert_allclose(actual, z, rtol=0, atol=1e-4)


# --- exact solutions ---

MEAN, STD = 0.4, 0.3  # of Gaussian data


def _gaussian_eps(z, logsnr, labels, np_=jnp):
    alpha, sigma = _scales(logsnr) if np_ is np else schedule.alpha_sigma(logsnr)
    return sigma * (z - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def _posterior_mean(z, level):
    alpha, sigma = _scales(level)
    return MEAN + alpha * STD**2 * (z - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def _exact_flow(z, start, end):
    """The probability flow ODE of Gaussian data moves a point along its quantile."""
    (a, s), (b, t) = _scales(start), _scales(end)
    return b * MEAN + (z - a * MEAN) * np.sqrt((b**2 * STD**2 + t**2) / (a**2 * STD**2 + s**2))


def _slope(steps, errors):
    return -np.polyfit(np.log(np.array(steps) - 1), np.log(errors), 1)[0]


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize(('name', 'order'), [('ddim', 1), ('2m', 2), ('heun', 2)])
def test_order_of_convergence_to_the_exact_flow_of_a_gaussian(name, order, grid):
    steps, errors = (24, 48, 96), []
    for count in steps:
        logsnrs = GRIDS[grid](count, logsnr_min=-5.0, logsnr_max=5.0)
        x = SAMPLERS[name](_gaussian_eps, _keys(), _labels(), logsnrs, shape=SHAPE, clip_x=False)
        expected = _posterior_mean(_exact_flow(np.float64(_normal(_keys(), 0, SHAPE)), -5.0, 5.0), 5.0)
        errors.append(np.abs(x - expected).max())
    assert errors[-1] > 1e-5  # or rounding would be part of it
    assert _slope(steps, errors) == pytest.approx(order, abs=0.2)


MEANS, WEIGHTS = np.array([-0.7, 0.5]), np.array([0.3, 0.7])


def _mixture_eps(z, logsnr, labels=None, np_=jnp):
    alpha, sigma = np_.sqrt(1 / (1 + np_.exp(-logsnr))), np_.sqrt(1 / (1 + np_.exp(logsnr)))
    var = alpha**2 * STD**2 + sigma**2
    each = [np_.log(w) - (z - alpha * m) ** 2 / (2 * var) for m, w in zip(MEANS, WEIGHTS, strict=True)]
    share = 1 / (1 + np_.exp(each[0] - each[1]))  # of the second
    mean = alpha * (MEANS[0] * (1 - share) + MEANS[1] * share)
    return sigma * (z - mean) / var


@functools.cache
def _mixture_flow():
    """x at the end of the flow, by an adaptive solver of order 8 in EDM's y, for which dy / dsigma = eps."""
    z = np.float64(_normal(_keys(), 0, SHAPE)).ravel()

    def slope(log_sigma, y):
        sigma = np.exp(log_sigma)
        return sigma * _mixture_eps(y / np.sqrt(1 + sigma**2), -2 * log_sigma, np_=np)

    y = z / _scales(-5.0)[0]
    solution = scipy.integrate.solve_ivp(slope, (2.5, -2.5), y, method='DOP853', rtol=1e-11, atol=1e-12)
    alpha, sigma = _scales(5.0)
    end = alpha * solution.y[:, -1]
    return ((end - sigma * _mixture_eps(end, np.float64(5.0), np_=np)) / alpha).reshape(6, *SHAPE)


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize(('name', 'order'), [('ddim', 1), ('2m', 2), ('heun', 2)])
def test_order_of_convergence_to_the_flow_of_a_mixture(name, order, grid):
    steps, errors = (32, 64, 128), []
    for count in steps:
        logsnrs = GRIDS[grid](count, logsnr_min=-5.0, logsnr_max=5.0)
        x = SAMPLERS[name](_mixture_eps, _keys(), _labels(), logsnrs, shape=SHAPE, clip_x=False)
        errors.append(np.sqrt(np.mean((x - _mixture_flow()) ** 2)))
    assert errors[-1] > 1e-5
    assert _slope(steps, errors) == pytest.approx(order, abs=0.25)


@functools.cache
def _impulses(name):
    """How far each noise moves the sample, for Gaussian data: samplers are linear there, so this gives the variance.

    In place of noise number i, example i is given 1 and the others 0; the last example is given none.
    """

    def impulse(keys, index, shape):
        return (jnp.arange(len(keys)) == index).astype(jnp.float32)[:, None]

    @jax.jit
    def run(keys, logsnrs):
        with pytest.MonkeyPatch.context() as patch:
            for module in (sampling, solvers):
                patch.setattr(module, 'noise', impulse)
            labels = jnp.zeros(len(keys), jnp.int32)
            sampler = HEUN_CHURN_PLAIN if name == 'heun_churn_plain' else SAMPLERS[name]
            return sampler(_gaussian_eps, keys, labels, logsnrs, shape=(1,), clip_x=False)[:, 0]

    return run


def _moments(name, logsnrs):
    """Mean and variance of the samples, in closed form but for the rounding of the sampler."""
    x = np.float64(_impulses(name)(_keys(len(logsnrs) + 2), logsnrs))
    return x[-1], np.square(x[:-1] - x[-1]).sum()


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize(
    ('name', 'order'),
    [('ancestral', 1), ('ddim_half', 1), ('ddim_stochastic', 1), ('2m_sde', 2), ('heun_churn_plain', 2)],
)
def test_weak_order_of_the_stochastic_samplers(name, order, grid):
    """The variance of the samples tends to that of the posterior mean at the last level."""
    alpha, sigma = _scales(5.0)
    exact = (alpha * STD**2) ** 2 / (alpha**2 * STD**2 + sigma**2)
    steps, errors = (64, 128, 256), []
    for count in steps:
        _, variance = _moments(name, GRIDS[grid](count, logsnr_min=-9.0, logsnr_max=5.0))
        errors.append(abs(variance - exact))
    assert errors[-1] > 3e-6  # or rounding would be part of it
    assert _slope(steps, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize('name', SAMPLERS)
def test_samplers_draw_the_gaussian_over_the_whole_range(name):
    """From logsnr -20 to 20 with T = 256; the variance within what the order allows on the least suitable grid."""
    second_order = name.startswith(('2m', 'heun'))
    for grid in GRIDS.values():
        mean, variance = _moments(name, grid(256, logsnr_min=-20.0, logsnr_max=20.0))
        assert mean == pytest.approx(MEAN, abs=2e-4)
        assert variance == pytest.approx(STD**2, rel=0.04 if second_order else 0.14)


@pytest.mark.parametrize('name', ['ddim', '2m', '2m_sde', 'heun_churn'])
def test_samples_match_the_papers_over_the_whole_range(name):
    sampler = jax.jit(
        lambda logsnrs: SAMPLERS[name](_gaussian_eps, _keys(), _labels(), logsnrs, shape=SHAPE, clip_x=False)
    )
    for grid, make in GRIDS.items():
        if grid == 'paper' and name.startswith('heun'):
            continue  # its first step multiplies the rounding of the second eps by sigma = e^10 / 2
        logsnrs = make(9, logsnr_min=-20.0, logsnr_max=20.0)
        expected = _reference(name, _gaussian_eps, logsnrs, clip_x=False)
        # At logsnr = -20 the rounding of eps reaches x multiplied by e^10.
        np.testing.assert_allclose(sampler(logsnrs), expected, rtol=0, atol=2e-3)
