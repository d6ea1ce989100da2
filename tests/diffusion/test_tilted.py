"""The samplers that aim at the tilted density: their steps in float64, and what they draw where it is known."""

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.diffusion import process, schedule
from cfg.diffusion.denoiser import Denoiser, Models, Point
from cfg.diffusion.grids import Rho, Uniform
from cfg.diffusion.rules import Cfg
from cfg.diffusion.sampler import Sampler, check_fit, parse_rule, parse_solver
from cfg.diffusion.solvers import DpmSolver2M
from cfg.diffusion.tilted import _PARTICLES, _RESAMPLING, FeynmanKac, Gibbs, Weighted, systematic
from cfg.runtime.errors import UserError
from cfg.settings.sampler import check_texts
from configs import digits
from tests.diffusion.toys import COUNT, NULL, SHAPE, keys, labels, models_of, normal_of, scales, toy_eps

SDE = DpmSolver2M(stochastic=True)


def sampler_of(solver, num_steps=7, grid=None):
    grid = Uniform(logsnr_min=-6.0, logsnr_max=6.0) if grid is None else grid
    return Sampler(solver=solver, grid=grid, num_steps=num_steps, clip_x=False)


def draw(solver, w, *, rows=slice(None), **how):
    made, w = sampler_of(solver, **how), jnp.broadcast_to(jnp.float32(w), COUNT)[rows]
    return np.asarray(made.sample(models_of(toy_eps), keys()[rows], labels()[rows], w, shape=SHAPE))


# --- the weights, in float64 ---


@pytest.mark.parametrize('kind', process.PREDICTIONS)
def test_the_rate_of_a_weight_is_of_eps_whatever_the_network_predicts(kind):
    rng, w = np.random.default_rng(0), np.array([0.0, 0.5, 2.0, -1.0, -0.4, 4.0])
    z, cond, other = rng.normal(size=(3, COUNT, *SHAPE))
    alpha, sigma = scales(1.3)
    outputs = []
    for eps in (cond, other):
        x = (z - sigma * eps) / alpha
        outputs.append(jnp.float32({'eps': eps, 'x': x, 'v': alpha * eps - sigma * x}[kind]))
    at = Point(jnp.float32(z), jnp.float32(1.3), jnp.float32(w), kind)
    prediction, rate = Weighted().combine(at, *outputs, None)
    np.testing.assert_allclose(rate, w * (1 + w) * ((cond - other) ** 2).sum(axis=(1, 2)), rtol=2e-5)
    plain, _ = Cfg().combine(at, *outputs, ())
    jax.tree.map(np.testing.assert_array_equal, prediction, plain)


log_weights = hypothesis.extra.numpy.arrays(
    np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(-8, 8, width=32)
)


@hypothesis.given(log_weights, st.floats(0.0, 1.0, width=32, exclude_max=True))
def test_a_share_of_the_weight_is_a_share_of_the_particles(values, u):
    count = values.shape[1]
    drawn = np.asarray(systematic(jnp.asarray(values), jnp.full(len(values), u, jnp.float32)))
    assert (np.diff(drawn, axis=1) >= 0).all()
    p = np.exp(np.float64(values) - values.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    counts = np.array([np.bincount(of, minlength=count) for of in drawn])
    assert (np.abs(counts - count * p) < 1 + 1e-4 * count).all()
    for values_of, of, ends in zip(values, drawn, np.cumsum(p, axis=1), strict=True):
        points = (np.arange(count) + u) / count
        clear = np.abs(ends[:, None] - points).min(axis=0) > 1e-5  # rounding decides the others
        if (values_of == values_of[0]).all():
            np.testing.assert_array_equal(of, np.arange(count))
        else:
            np.testing.assert_array_equal(of[clear], np.searchsorted(ends, points, side='right')[clear])


def test_every_particle_is_drawn_as_often_as_it_weighs():
    """The mean over u is unbiased."""
    values = np.float32([[0.3, -2.0, 1.1, 0.0, -0.4]])
    u = (np.arange(4000) + 0.5) / 4000
    drawn = systematic(jnp.repeat(jnp.asarray(values), 4000, axis=0), jnp.float32(u))
    p = np.exp(values[0]) / np.exp(values[0]).sum()
    np.testing.assert_allclose(np.bincount(np.ravel(drawn)) / 4000, 5 * p, atol=2e-3)


def by_hand(key, label, w, levels, count):
    """Draws one sample with its particles, in float64."""

    def uniform(number, *index):
        key_of = jax.random.fold_in(key, number)
        return float(jax.random.uniform(jax.random.fold_in(key_of, *index)))

    chosen = int(jax.random.randint(jax.random.fold_in(key, _PARTICLES), (), 0, count))
    own = [key if k == chosen else jax.random.fold_in(key, _PARTICLES + (k - chosen) % count) for k in range(count)]

    def normal(i):
        return np.float64([jax.random.normal(jax.random.fold_in(one, i), SHAPE) for one in own])

    z, before, ancestors = normal(0), None, []
    for i, t in enumerate(levels, start=1):
        alpha, sigma = scales(t)
        cond, other = (toy_eps(z, t, np.full(count, of), np_=np) for of in (label, NULL))
        x = (z - sigma * ((1 + w) * cond - w * other)) / alpha
        if i == len(levels):
            return x[chosen], ancestors
        s = levels[i]
        (alpha_s, sigma_s), h = scales(s), (s - t) / 2
        ahead = x if before is None else x + h / (t - levels[i - 2]) * (x - before)
        noise = sigma_s * np.sqrt(1 - np.exp(-2 * h)) * normal(i)
        z = sigma_s / sigma * np.exp(-h) * z + alpha_s * (1 - np.exp(-2 * h)) * ahead + noise
        weights = np.exp(w * (1 + w) * ((cond - other) ** 2).sum(axis=(1, 2)) * h)
        points = (np.arange(count) + uniform(_RESAMPLING, i)) / count
        drawn = np.searchsorted(np.cumsum(weights) / weights.sum(), points, side='right')
        z, before = z[drawn], x[drawn]
        ancestors.append(tuple(drawn))


def test_particles_in_float64():
    w, levels = [0.3, 1.0, 2.0, 0.7, -0.5, 4.0], np.float64(Uniform().between(7, logsnr_min=-6.0, logsnr_max=6.0))
    found = draw(FeynmanKac(particles=4), w)
    seen = set()
    for i, key in enumerate(keys()):
        expected, ancestors = by_hand(key, labels()[i], w[i], levels, 4)
        np.testing.assert_allclose(found[i], expected, rtol=0, atol=2e-3)
        seen |= set(ancestors)
    assert len(seen) > 5  # and particles were replaced


# --- going back and forth, in float64 ---


def gibbs_by_hand(w, runs, levels):
    """Draws by deterministic 2M in each run, without guidance in the first; `levels` are those of all runs."""
    z, i = np.float64(normal_of(keys(), 0, SHAPE)), 0
    for number, run in enumerate(np.split(np.float64(levels), np.cumsum(runs)[:-1])):
        before, strength = None, (w if number else 0.0)
        for place, t in enumerate(run):
            i += 1
            alpha, sigma = scales(t)
            cond, other = (toy_eps(z, t, of, np_=np) for of in (labels(), np.full(COUNT, NULL)))
            x = (z - sigma * ((1 + strength) * cond - strength * other)) / alpha
            if place + 1 < len(run):
                (alpha_s, sigma_s), h = scales(run[place + 1]), (run[place + 1] - t) / 2
                ahead = x if before is None else x + h / (t - run[place - 1]) * (x - before)
                z, before = sigma_s / sigma * z - alpha_s * np.expm1(-h) * ahead, x
        if i < len(levels):
            alpha, sigma = scales(levels[i])
            z = alpha * x + sigma * np.float64(normal_of(keys(), i, SHAPE))
    return x


@pytest.mark.parametrize('grid', [Uniform(logsnr_min=-5.0, logsnr_max=4.0), Rho(logsnr_min=-5.0, logsnr_max=6.0)])
def test_runs_in_float64(grid):
    solver, ends = (
        Gibbs(solver='dpm_solver_2m', logsnr=-0.5, repeats=3, first=0.3),
        grid.ends(logsnr_min=0, logsnr_max=0),
    )
    assert [solver.takes(num_steps, grid) for num_steps in (7, 8, 9)] == [False, True, True]
    assert solver.runs(14) == (5, 3)  # what is left over goes to the first run
    levels = np.asarray(solver.levels(grid, 14, **ends))
    again = grid.between(3, logsnr_min=-0.5, logsnr_max=ends['logsnr_max'])
    np.testing.assert_array_equal(levels, [*grid.between(5, **ends), *again, *again, *again])
    expected = gibbs_by_hand(1.5, (5, 3, 3, 3), levels)
    np.testing.assert_allclose(draw(solver, 1.5, num_steps=14, grid=grid), expected, rtol=0, atol=1e-4)


def test_the_defaults_are_those_released():
    """12 of 32 steps without guidance, then two runs from EDM's sigma = 1, by Heun's method."""
    assert Gibbs().runs(32) == (12, 10)
    assert (schedule.sigma_from_logsnr(Gibbs().logsnr), Gibbs().solver) == (1.0, 'heun')


# --- identities ---


@pytest.mark.parametrize('w', [0.0, -1.0])
def test_where_nothing_weighs_particles_are_plain_sampling(w):
    """The particle that becomes the sample has the sample's noise."""
    np.testing.assert_array_equal(draw(FeynmanKac(particles=5), w), draw(SDE, w))


def test_one_particle_is_plain_sampling():
    np.testing.assert_array_equal(draw(FeynmanKac(particles=1), 1.5), draw(SDE, 1.5))
    assert np.abs(draw(FeynmanKac(particles=5), 1.5) - draw(SDE, 1.5)).max() > 0.01


@pytest.mark.parametrize('solver', [FeynmanKac(particles=3), Gibbs()])
def test_a_sample_does_not_depend_on_its_batch(solver):
    w = np.float32([0.0, 1.0, 2.0, 0.5, -0.5, 4.0])
    whole = draw(solver, w)
    for rows in (np.arange(2), np.array([3]), np.array([5, 1, 2])):
        np.testing.assert_array_equal(draw(solver, w, rows=rows), whole[rows])


# --- what is drawn where it is known: Gaussians of the label and of the null label ---

MEANS, VARIANCES = (0.5, 0.0), (0.25, 1.0)


def of_gaussians(means=MEANS):
    def eps_fn(z, logsnr, labels):
        alpha, sigma = schedule.alpha_sigma(process.expand(logsnr, z))
        null = labels[:, None] == 1
        mean, variance = jnp.where(null, means[1], means[0]), jnp.where(null, VARIANCES[1], VARIANCES[0])
        return sigma * (z - alpha * mean) / (alpha**2 * variance + sigma**2)

    return Models(Denoiser(eps_fn, 1))


def moments(solver, w, *, num_steps, count, means=MEANS):
    """(mean, variance, their standard errors for Gaussian samples) of what is drawn, two components alike."""
    made = sampler_of(solver, num_steps=num_steps, grid=Uniform(logsnr_min=-12.0, logsnr_max=9.0))
    run = jax.jit(lambda: made.sample(of_gaussians(means), keys(count), jnp.zeros(count, int), w, shape=(2,)))
    x = np.float64(run())
    return x.mean(), x.var(), x.std() / x.size**0.5, x.var() * (2 / x.size) ** 0.5


@pytest.mark.parametrize('w', [2.0, -0.5])
def test_particles_have_the_tilted_density(w):
    """N(m, 1 / p) with p = (1 + w) / v - w / v', m = ((1 + w) m_c / v - w m' / v') / p; Eq. 6 alone has it not."""
    p = (1 + w) / VARIANCES[0] - w / VARIANCES[1]
    m = ((1 + w) * MEANS[0] / VARIANCES[0] - w * MEANS[1] / VARIANCES[1]) / p
    mean, variance, mean_se, variance_se = moments(FeynmanKac(particles=64), w, num_steps=48, count=1500)
    assert abs(mean - m) < 4 * mean_se
    assert abs(variance - 1 / p) < 4 * variance_se
    _, alone, _, alone_se = moments(SDE, w, num_steps=48, count=1500)
    assert abs(alone - 1 / p) > 4.5 * alone_se
    if w == 2.0:
        _, few, _, _ = moments(FeynmanKac(particles=4), w, num_steps=48, count=1500)
        assert abs(variance - 1 / p) < abs(few - 1 / p) < abs(alone - 1 / p)


def contraction(star, w):
    """The factor A of z / alpha that the flow of Eq. 6 has from EDM's sigma = star to 0, for means of 0.

    d y / d sigma = sigma sum_i s_i / (v_i + sigma^2) y with s = 1 + w and -w.
    """
    v, vn = VARIANCES
    return (v / (v + star**2)) ** ((1 + w) / 2) * (vn / (vn + star**2)) ** (-w / 2)


def test_the_contraction_is_the_flow():
    for star, w in ((1.0, 2.0), (0.3, 0.5)):
        sigma = np.linspace(0, star, 20_001)
        slopes = [s * sigma / (v + sigma**2) for s, v in zip((1 + w, -w), VARIANCES, strict=True)]
        np.testing.assert_allclose(np.exp(-np.trapezoid(sum(slopes), sigma)), contraction(star, w), rtol=1e-7)


@pytest.mark.parametrize('logsnr', [0.0, 2.0])
def test_runs_lead_to_their_stationary_variance(logsnr):
    """V <- A^2 (V + sigma*^2) for each run, from the variance of p(z | c); it is not that of the tilted density."""
    w, star = 2.0, np.exp(-logsnr / 2)
    gain = contraction(star, w) ** 2
    expected = VARIANCES[0]
    for _ in range(6):
        expected = gain * (expected + star**2)
    solver = Gibbs(logsnr=logsnr, repeats=6, first=0.25)
    mean, variance, mean_se, variance_se = moments(solver, w, num_steps=256, count=4000, means=(0.0, 0.0))
    assert abs(mean) < 4 * mean_se
    assert abs(variance - expected) < 4 * variance_se
    stationary = gain * star**2 / (1 - gain)
    np.testing.assert_allclose(expected, stationary, rtol=0.05)
    tilted = 1 / ((1 + w) / VARIANCES[0] - w / VARIANCES[1])
    assert tilted - variance > 8 * variance_se


def test_little_noise_leads_to_the_tilted_density():
    """The stationary variance as sigma* goes to 0, of first order in sigma*^2."""
    for w in (0.5, 2.0, 4.0):
        tilted = 1 / ((1 + w) / VARIANCES[0] - w / VARIANCES[1])
        gaps = []
        for square in (0.02, 0.01, 0.005):
            gain = contraction(square**0.5, w) ** 2
            gaps.append(tilted - gain * square / (1 - gain))
        np.testing.assert_allclose(gaps[0] / gaps[1], 2, rtol=0.2)
        np.testing.assert_allclose(gaps[1] / gaps[2], 2, rtol=0.1)


# --- what fits ---


@pytest.mark.parametrize('solver', ['feynman_kac', 'gibbs'])
def test_other_guidance_is_refused(solver):
    for text in ('cfg(interval=(-2, 3))', "cfg(schedule='cosine')", "cfg(against='random')", 'cfg(threshold=0.9)'):
        with pytest.raises(UserError, match=r"aims at .* which the guidance .* does not: use 'cfg' without options"):
            check_fit(parse_rule(text), parse_solver(solver))
    for text in ('apg', 'cfg_plus_plus', 'temperature', 'autoguidance'):
        with pytest.raises(UserError, match=text):
            check_fit(parse_rule(text), parse_solver(solver))
    check_fit(parse_rule('cfg(w=(0.5, 1.0))'), parse_solver(solver))


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'sampler': 'feynman_kac', 'w': (0.0, -1.5)}, r"sampling\.w.* at least -1 for the sampler 'feynman_kac'"),
        ({'sampler': 'gibbs', 'guidance': 'cfg(w=-2)'}, r"at least -1 for the sampler 'gibbs'"),
        ({'sampler': 'gibbs', 'num_steps': 5}, r'sampling\.num_steps=5 .* at least 2 in each run'),
        ({'sampler': 'gibbs(logsnr=8)', 'grid': 'uniform(logsnr_max=7)'}, r'sampling\.sampler.* between .* -20 and 7'),
        ({'sampler': 'feynman_kac(particles=0)'}, 'particles must be a whole number, 1 or more'),
        ({'sampler': "gibbs(solver='ancestral')"}, 'solver must be one of'),
        ({'sampler': 'gibbs(first=0)'}, r'first must be a number from 0\.01 to 0\.99'),
    ],
)
def test_what_would_be_wrong_is_refused_before_any_work(changes, expected):
    config = digits.get_config()
    config.sampling.update({'sampler': 'gibbs', **changes})
    with pytest.raises(UserError, match=expected):
        check_texts(config)


def test_a_config_that_fits():
    config = digits.get_config()
    config.sampling.update({'sampler': 'gibbs', 'num_steps': 7, 'w': (-1.0, 0.0, 4.0)})
    config.eval.sampler = ('feynman_kac(particles=4)', 'gibbs')
    check_texts(config)
