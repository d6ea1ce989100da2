"""The solvers against the papers' formulas in float64, and against the schedulers of diffusers."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from cfg.diffusion import schedule
from cfg.diffusion.rules import Cfg
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.solvers import Ancestral, Ddim, DpmSolver2M, ForthAndBack, Heun
from tests.diffusion.toys import (
    COUNT,
    NULL,
    SHAPE,
    keys,
    labels,
    models_of,
    normal,
    normal_of,
    scales,
    toy_eps,
    unguided,
)

pytestmark = pytest.mark.usefixtures('eager')
GRIDS = (schedule.uniform_grid, schedule.rho_grid, schedule.sampling_grid)
SOLVERS = {
    'ancestral': Ancestral(),
    'ancestral_low': Ancestral(logvar_interp=0.0),
    'ancestral_high': Ancestral(logvar_interp=1.0),
    'ddim': Ddim(),
    'ddim_half': Ddim(eta=0.5),
    'ddim_stochastic': Ddim(eta=1.0),
    'forth_and_back': ForthAndBack(),
    '2m': DpmSolver2M(),
    '2m_sde': DpmSolver2M(stochastic=True),
    'heun': Heun(),
    'heun_churn': Heun(s_churn=3.0, s_min=0.3, s_max=20.0, s_noise=1.003),
}


def draw(solver, eps_fn, logsnrs, *, clip_x=False, w=0.0, rows=slice(None), of=None, keys_of=None):
    """Samples without guidance, whose steps add 1 / (1 + w) of their noise."""
    of, keys_of = labels() if of is None else of, keys() if keys_of is None else keys_of
    guided = unguided(eps_fn, of=of[rows], clip_x=clip_x, w=w)
    return np.asarray(solver.sample(guided, keys_of[rows], jnp.asarray(logsnrs), shape=SHAPE))


# --- the papers' formulas, in their own variables and in float64 ---


def reference(solver, eps_fn, levels, *, clip_x, temperature=1.0):
    """Samples by the paper of a solver."""

    def predict(z, level):
        alpha, sigma = scales(level)
        eps = eps_fn(z, level, labels(), np_=np)
        x = (z - sigma * eps) / alpha
        if clip_x:
            x = np.clip(x, -1, 1)
            eps = (z - alpha * x) / sigma
        return x, eps

    levels = np.float64(levels)
    if isinstance(solver, Ancestral):
        return alg_2(predict, levels, solver.logvar_interp, temperature)
    if isinstance(solver, Ddim):
        return ddim(predict, levels, solver.eta, temperature)
    if isinstance(solver, ForthAndBack):
        return forth_and_back(predict, levels, temperature)
    if isinstance(solver, DpmSolver2M):
        return two_m(predict, levels, solver.stochastic, temperature)
    s_max = np.inf if solver.s_max is None else solver.s_max
    return edm(predict, levels, solver.s_churn, solver.s_min, s_max, solver.s_noise)


def alg_2(predict, levels, logvar_interp, temperature):
    """Alg. 2 as the paper has it."""
    z = normal(0)
    for i, (t, s) in enumerate(itertools.pairwise(levels), start=1):
        x, _ = predict(z, t)
        (alpha, sigma), (next_alpha, next_sigma) = scales(t), scales(s)
        shrink = 1 - np.exp(t - s)
        mean = np.exp(t - s) * next_alpha / alpha * z + shrink * next_alpha * x
        variance = (shrink * next_sigma**2) ** (1 - logvar_interp) * (shrink * sigma**2) ** logvar_interp
        z = mean + temperature * np.sqrt(variance) * normal(i)
    return predict(z, levels[-1])[0]


def ddim(predict, levels, eta, temperature):
    """Eq. 12 and 16 of Song et al. 2020, in their alpha, which is alpha^2 here."""
    z = normal(0)
    for i, (t, s) in enumerate(itertools.pairwise(levels), start=1):
        x, eps = predict(z, t)
        a_t, a_s = scipy.special.expit(t), scipy.special.expit(s)
        std = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
        z = np.sqrt(a_s) * x + np.sqrt(1 - a_s - std**2) * eps + temperature * std * normal(i)
    return predict(z, levels[-1])[0]


def forth_and_back(predict, levels, temperature):
    """Section 3.3 of Meng et al. 2022: a step of DDIM over two levels, and the forward process over one back."""
    z, ends = normal(0), [*levels, np.inf]
    for i, (t, s) in enumerate(itertools.pairwise(levels), start=1):
        (alpha, sigma), (alpha_s, sigma_s), (alpha_k, sigma_k) = scales(t), scales(s), scales(ends[i + 1])
        x, _ = predict(z, t)
        two_on = alpha_k * x + sigma_k / sigma * (z - alpha * x)
        forward = np.sqrt(sigma_s**2 - (alpha_s / alpha_k) ** 2 * sigma_k**2)
        z = alpha_s / alpha_k * two_on + temperature * forward * normal(i)
    return predict(z, levels[-1])[0]


def two_m(predict, levels, stochastic, temperature):
    """Algorithm 2 of Lu et al. 2022, and its SDE form, in their lambda, which is half the logsnr."""
    z, before, r = normal(0), None, None
    lam = levels / 2
    for i in range(1, len(levels)):
        x, _ = predict(z, levels[i - 1])
        (_, sigma_t), (alpha_s, sigma_s) = scales(levels[i - 1]), scales(levels[i])
        h = lam[i] - lam[i - 1]
        if before is None:
            d = x
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * before
        if stochastic:
            z = sigma_s / sigma_t * np.exp(-h) * z + alpha_s * (1 - np.exp(-2 * h)) * d
            z = z + temperature * sigma_s * np.sqrt(1 - np.exp(-2 * h)) * normal(i)
        else:
            z = sigma_s / sigma_t * z - alpha_s * (np.exp(-h) - 1) * d
        before = x
    return predict(z, levels[-1])[0]


def edm(predict, levels, s_churn, s_min, s_max, s_noise):
    """Algorithm 2 of Karras et al. 2022, in y = x + sigma eps and their sigma, down to sigma = 0."""

    def denoise(y, sigma):
        # The variance preserving z of the same point: y / sqrt(1 + sigma^2).
        return predict(y / np.sqrt(1 + sigma**2), -2 * np.log(sigma))[0]

    sigmas = np.exp(-levels / 2)
    # Our start is z = noise at the first level.
    y = normal(0) * np.sqrt(1 + sigmas[0] ** 2)
    for i, (sigma, following) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True), start=1):
        gamma = min(s_churn / len(sigmas), np.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
        raised = sigma * (1 + gamma)
        if s_churn:
            y = y + np.sqrt(raised**2 - sigma**2) * s_noise * normal(i)
        slope = (y - denoise(y, raised)) / raised
        euler = y + (following - raised) * slope
        if following > 0:
            second = (euler - denoise(euler, following)) / following
            euler = y + (following - raised) * (slope + second) / 2
        y = euler
    return y


@pytest.mark.parametrize('name', SOLVERS)
def test_samples_match_the_papers_in_float64(name):
    solver, atol = SOLVERS[name], 2e-5 if name.startswith('ancestral') else 1e-4
    for make in GRIDS:
        logsnrs = make(5, logsnr_min=-6.0, logsnr_max=6.0)
        free = draw(solver, toy_eps, logsnrs)
        assert free.shape == (COUNT, *SHAPE)
        assert free.dtype == jnp.float32
        np.testing.assert_allclose(free, reference(solver, toy_eps, logsnrs, clip_x=False), rtol=0, atol=atol)
    clipped = draw(solver, toy_eps, logsnrs, clip_x=True)
    np.testing.assert_allclose(clipped, reference(solver, toy_eps, logsnrs, clip_x=True), rtol=0, atol=atol)
    # At every step and not only at the end.
    assert np.abs(clipped).max() <= 1 < np.abs(free).max()
    assert np.abs(clipped - np.clip(free, -1, 1)).max() > 0.01


def test_guided_samples_match_alg_2_in_float64():
    """Eq. 6 inside Alg. 2, with one strength a sample."""
    w, logsnrs = np.float32([0, 0.1, 0.3, 1, 4, -1]), schedule.sampling_grid(5, logsnr_min=-6.0, logsnr_max=6.0)
    guided = Sampler(rule=Cfg()).guided(models_of(toy_eps), labels(), w)
    actual = Ancestral().sample(guided, keys(), logsnrs, shape=SHAPE)

    def by_hand(z, logsnr, labels, np_):
        strength = np.float64(w)[:, None, None]
        cond = toy_eps(z, logsnr, labels, np_=np_)
        return (1 + strength) * cond - strength * toy_eps(z, logsnr, np.full_like(labels, NULL), np_=np_)

    expected = reference(Ancestral(), by_hand, logsnrs, clip_x=True)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('name', ['2m_sde', 'heun_churn'])
def test_samples_are_the_same_compiled(name):
    logsnrs = schedule.sampling_grid(5, logsnr_min=-6.0, logsnr_max=6.0)
    eager = draw(SOLVERS[name], toy_eps, logsnrs, clip_x=True)
    guided = unguided(toy_eps, clip_x=True)
    with jax.disable_jit(False):
        compiled = jax.jit(lambda logsnrs: SOLVERS[name].sample(guided, keys(), logsnrs, shape=SHAPE))(logsnrs)
    np.testing.assert_allclose(compiled, eager, rtol=0, atol=1e-5)


def test_alg_2_over_the_whole_range():
    # At logsnr = -20 an error of eps reaches x multiplied by e^10, which clipping bounds.
    logsnrs = schedule.sampling_grid(5, logsnr_min=-20.0, logsnr_max=20.0)
    actual = draw(Ancestral(), toy_eps, logsnrs, clip_x=True)
    np.testing.assert_allclose(actual, reference(Ancestral(), toy_eps, logsnrs, clip_x=True), rtol=0, atol=5e-3)
    assert np.isfinite(draw(Ancestral(), toy_eps, logsnrs)).all()


def gaussian_eps(z, logsnr, labels, np_=jnp):
    """Exact for data of mean 0.4 and deviation 0.3."""
    alpha, sigma = scales(logsnr) if np_ is np else schedule.alpha_sigma(logsnr)
    return sigma * (z - alpha * 0.4) / (alpha**2 * 0.3**2 + sigma**2)


@pytest.mark.parametrize('name', ['ddim', '2m', '2m_sde', 'heun_churn'])
def test_samples_match_the_papers_over_the_whole_range(name):
    for make in GRIDS:
        if make is schedule.sampling_grid and name.startswith('heun'):
            continue  # its first step multiplies the rounding of the second eps by sigma = e^10 / 2
        logsnrs = make(9, logsnr_min=-20.0, logsnr_max=20.0)
        expected = reference(SOLVERS[name], gaussian_eps, logsnrs, clip_x=False)
        # At logsnr = -20 the rounding of eps reaches x multiplied by e^10.
        np.testing.assert_allclose(draw(SOLVERS[name], gaussian_eps, logsnrs), expected, rtol=0, atol=2e-3)


def test_two_levels_by_hand():
    # eps = 0.25 everywhere. At logsnr = 0, alpha = sigma = sqrt(1/2); at log 3, alpha^2 = 3/4 and sigma^2 = 1/4.
    logsnrs = jnp.log(jnp.float32([1, 3]))
    actual = draw(SOLVERS['ancestral_low'], lambda z, logsnr, labels: jnp.full_like(z, 0.25), logsnrs)
    x = np.sqrt(2) * normal(0) - 0.25
    # e^(logsnr_t - logsnr_s) = 1/3, so Eq. 3 has mean sqrt(3/2) z / 3 + (2/3) sqrt(3/4) x and variance (2/3) / 4.
    z = np.sqrt(3 / 2) / 3 * normal(0) + 2 / 3 * np.sqrt(3 / 4) * x + np.sqrt(1 / 6) * normal(1)
    np.testing.assert_allclose(actual, (z - 0.5 * 0.25) / np.sqrt(3 / 4), rtol=0, atol=5e-6)


@pytest.mark.parametrize('name', ['ancestral_high', 'ddim_stochastic', '2m_sde'])
def test_the_last_step_adds_no_noise(name):
    # A network that always says x = 0.5 leaves no noise in the sample, whatever the steps before added.
    def says_half(z, logsnr, labels):
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
        return (z - alpha * 0.5) / sigma

    result = draw(SOLVERS[name], says_half, schedule.sampling_grid(5, logsnr_min=-4.0, logsnr_max=1.0))
    np.testing.assert_allclose(result, 0.5, rtol=0, atol=5e-6)


@pytest.mark.parametrize('name', ['ancestral', 'ddim', '2m_sde', 'heun', 'heun_churn'])
def test_the_network_is_asked_at_the_levels_in_order(name):
    """Once at each, from noise number 0; Heun's method asks again at the level where a step goes."""
    seen = []

    def eps_fn(z, logsnr, labels):
        seen.append((float(logsnr), np.array(z), np.array(labels)))
        return toy_eps(z, logsnr, labels)

    levels = np.float32([-3, -1, 0.5, 1, 3])
    draw(SOLVERS[name], eps_fn, levels)
    for _, _, asked in seen:
        np.testing.assert_array_equal(asked, labels())
    found = [level for level, _, _ in seen]
    np.testing.assert_allclose(found, SOLVERS[name].visits(levels), rtol=0, atol=1e-6)
    if not name.startswith('heun'):
        np.testing.assert_array_equal(found, levels)
        np.testing.assert_allclose(seen[0][1], normal(0), rtol=1e-6, atol=1e-6)
        return
    sigma = np.exp(-np.float64(levels) / 2)
    gamma = min(3 / 5, np.sqrt(2) - 1) * ((sigma >= 0.3) & (sigma <= 20)) if name == 'heun_churn' else np.zeros(5)
    raised = levels - 2 * np.log(1 + gamma)
    expected = [level for pair in zip(raised, levels[1:], strict=False) for level in pair] + [raised[-1]]
    assert len(found) == 2 * 5 - 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', ['ancestral', 'ddim_stochastic', '2m_sde', 'heun_churn'])
def test_a_sample_depends_only_on_its_key_and_label(name):
    logsnrs = schedule.sampling_grid(5, logsnr_min=-6.0, logsnr_max=6.0)
    run = functools.partial(draw, SOLVERS[name], toy_eps, logsnrs, clip_x=True)
    whole = run()
    for rows in (np.array([4, 1, 1, 4, 4, 1]), np.random.default_rng(0).permutation(COUNT)):
        np.testing.assert_allclose(run(rows=rows), whole[rows], rtol=1e-5, atol=1e-5)
    # Another label or another key gives another sample, and only there.
    third = np.arange(COUNT) == 3
    for changed in (run(keys_of=keys().at[3].set(jax.random.key(99))), run(of=np.where(third, 9, labels()))):
        np.testing.assert_array_equal(np.abs(changed - whole).max(axis=(1, 2)) > 1e-3, third)


def test_noise_is_standard_normal_and_new_at_every_step():
    # With eps = z / sigma the estimate of x is 0 and a step from a very noisy level is almost only its noise.
    count, seen = 3000, []

    def says_zero(z, logsnr, labels):
        jax.debug.callback(lambda value: seen.append(np.array(value)), z, ordered=True)
        return z / jnp.sqrt(jax.nn.sigmoid(-logsnr))

    logsnrs = jnp.float32([-20, -8, 4])
    with jax.disable_jit(False):
        draw(SOLVERS['ancestral_low'], says_zero, logsnrs, keys_of=keys(count), of=np.zeros(count, np.int32))
        jax.effects_barrier()
    values = np.column_stack([z.ravel() for z in seen])
    # x = 0 throughout, so each z has the law of q(z | x = 0) = N(0, sigma^2): the ancestral chain keeps it.
    _, sigma = scales(logsnrs)
    count = values.shape[0]
    assert (np.abs(values.mean(axis=0) / sigma) < 4.5 / np.sqrt(count)).all()
    assert (np.abs((values / sigma).var(axis=0) - 1) < 4.5 * np.sqrt(2 / count)).all()
    correlation = np.corrcoef(values, rowvar=False)
    # Neighbours are correlated by r sigma_s / sigma_t = e^((logsnr_t - logsnr_s) / 2) = e^-6, and no more.
    assert np.abs(correlation - np.eye(3)).max() < np.exp(-6) + 4.5 / np.sqrt(count)


def test_solvers_that_are_the_same():
    logsnrs = schedule.uniform_grid(5, logsnr_min=-6.0, logsnr_max=6.0)
    # Two levels: only the first step, which has nothing to extrapolate from.
    for one, other, levels in (
        ('ancestral_low', 'ddim_stochastic', logsnrs),
        ('2m', 'ddim', logsnrs[1:3]),
        ('2m_sde', 'ddim_stochastic', logsnrs[1:3]),
    ):
        pair = (draw(SOLVERS[name], toy_eps, levels, clip_x=True) for name in (one, other))
        np.testing.assert_allclose(*pair, rtol=0, atol=2e-5)


@pytest.mark.parametrize('name', ['ancestral', 'ddim_half', 'ddim_stochastic', '2m_sde'])
def test_temperature_scales_the_added_noise_only(name):
    """The solver's own, and that of the rule."""
    logsnrs = schedule.uniform_grid(5, logsnr_min=-6.0, logsnr_max=6.0)
    for own, w in ((0.0, 0.0), (0.5, 0.0), (1.0, np.ones(COUNT)), (0.5, 1.0)):
        solver = dataclasses.replace(SOLVERS[name], temperature=own)
        expected = reference(solver, toy_eps, logsnrs, clip_x=False, temperature=own / (1 + np.mean(w)))
        np.testing.assert_allclose(draw(solver, toy_eps, logsnrs, w=w), expected, rtol=0, atol=1e-4)
    plain = draw(SOLVERS[name], toy_eps, logsnrs)
    np.testing.assert_array_equal(draw(SOLVERS[name], toy_eps, logsnrs, w=np.zeros(COUNT)), plain)


# --- diffusers ---


def _levels_for_diffusers(count=6):
    return np.linspace(-5, 6, count)


def _torch_eps(z, level):
    eps = toy_eps(z.numpy().astype(np.float64), level, labels(), np_=np)
    return torch.tensor(eps, dtype=torch.float32)


def _torch_noise(index):
    return torch.tensor(np.asarray(normal_of(keys(), index, SHAPE)))


@pytest.mark.parametrize('name', ['ddim', 'ddim_half', 'ddim_stochastic'])
def test_ddim_is_that_of_diffusers(name):
    levels = _levels_for_diffusers()
    scheduler = DDIMScheduler(num_train_timesteps=len(levels), clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(len(levels))
    scheduler.alphas_cumprod = torch.tensor(scipy.special.expit(levels[::-1]).copy(), dtype=torch.float64)
    z = _torch_noise(0)
    eta = SOLVERS[name].eta
    for i, t in enumerate(scheduler.timesteps):
        last = i + 1 == len(levels)
        z = scheduler.step(
            _torch_eps(z.float(), levels[i]), t, z, eta=0.0 if last else eta, variance_noise=_torch_noise(i + 1)
        ).prev_sample
    actual = draw(SOLVERS[name], toy_eps, jnp.float32(levels))
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
    actual = draw(SOLVERS[name], toy_eps, jnp.float32(levels), clip_x=thresholding)
    np.testing.assert_allclose(actual, z, rtol=0, atol=1e-4)
