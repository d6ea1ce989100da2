"""What solvers converge to, and how fast: exact solutions for Gaussian data and for a mixture of two Gaussians.

Each solver is compiled once, as one step over [COUNT, 1]; `test_solvers` has its scans over whole grids.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from cfg.diffusion import schedule
from cfg.diffusion.solvers import Ancestral, Ddim, DpmSolver2M, Heun
from cfg.diffusion.stepping import Step, steps
from tests.diffusion.toys import keys, normal_of, scales, unguided

GRIDS = {'paper': schedule.sampling_grid, 'uniform': schedule.uniform_grid, 'rho': schedule.rho_grid}
CHURN = {'s_churn': 3.0, 's_min': 0.3, 's_max': 20.0}
SOLVERS = {
    'ancestral': Ancestral(),
    'ddim': Ddim(),
    'ddim_half': Ddim(eta=0.5),
    'ddim_stochastic': Ddim(eta=1.0),
    '2m': DpmSolver2M(),
    '2m_sde': DpmSolver2M(stochastic=True),
    'heun': Heun(),
    # With other s_noise more steps do not lead to the exact distribution.
    'heun_churn': Heun(**CHURN),
    'heun_churn_noisier': Heun(**CHURN, s_noise=1.003),
}
COUNT = 258  # the noises of T = 256, and one example without
MEAN, STD = 0.4, 0.3  # of Gaussian data, label 0
MEANS, WEIGHTS = np.array([-0.7, 0.5]), np.array([0.3, 0.7])  # of the mixture, label 1


def exact_eps(z, logsnr, labels, np_=jnp):
    """The eps of perfect networks of both."""
    alpha, sigma = scales(logsnr) if np_ is np else schedule.alpha_sigma(logsnr)
    var = alpha**2 * STD**2 + sigma**2
    each = [np_.log(w) - (z - alpha * m) ** 2 / (2 * var) for m, w in zip(MEANS, WEIGHTS, strict=True)]
    share = 1 / (1 + np_.exp(each[0] - each[1]))  # of the second
    mean = np_.where(labels[:, None] == 1, MEANS[0] * (1 - share) + MEANS[1] * share, MEAN)
    return sigma * (z - alpha * mean) / var


@functools.partial(jax.jit, static_argnames='solver')
def one_step(solver, at, z, memory, noise, labels):
    z, _, memory = solver.step(unguided(exact_eps, of=labels), at, z, (), memory, lambda: noise)
    return z, memory


def walk(solver, logsnrs, noise, labels):
    """Samples [COUNT, 1], where `noise` gives noise number i, [COUNT, 1]."""
    z = jnp.asarray(noise(0))
    memory, all_steps = solver.memory(z, len(logsnrs)), jax.tree.map(np.asarray, steps(jnp.asarray(logsnrs)))
    for i in range(len(logsnrs)):
        z, memory = one_step(solver, Step(*(values[i] for values in all_steps)), z, memory, noise(i + 1), labels)
    return np.float64(z)


def slope(counts, errors):
    return -np.polyfit(np.log(np.array(counts) - 1), np.log(errors), 1)[0]


# --- the deterministic solvers: the flow of each point ---


@functools.cache
def start():
    return np.asarray(normal_of(keys(COUNT), 0, (1,)))


def gaussian_flow(z):
    """x at the end: the probability flow ODE of Gaussian data moves a point along its quantile."""
    (a, s), (b, t) = scales(-5.0), scales(5.0)
    end = b * MEAN + (z - a * MEAN) * np.sqrt((b**2 * STD**2 + t**2) / (a**2 * STD**2 + s**2))
    return MEAN + b * STD**2 * (end - b * MEAN) / (b**2 * STD**2 + t**2)


def mixture_flow(z):
    """x at the end, by an adaptive solver of order 8 in EDM's y, for which dy / dsigma = eps."""
    ones = np.ones(len(z), int)

    def derivative(log_sigma, y):
        sigma = np.exp(log_sigma)
        z = y[:, None] / np.sqrt(1 + sigma**2)
        return sigma * exact_eps(z, -2 * log_sigma, ones, np_=np)[:, 0]

    y = z[:, 0] / scales(-5.0)[0]
    solution = scipy.integrate.solve_ivp(derivative, (2.5, -2.5), y, method='DOP853', rtol=1e-11, atol=1e-12)
    alpha, sigma = scales(5.0)
    end = alpha * solution.y[:, -1:]
    return (end - sigma * exact_eps(end, 5.0, ones, np_=np)) / alpha


@functools.cache
def flows():
    """(the labels of both kinds in turn, where their points go)."""
    labels, z = np.arange(COUNT, dtype=np.int32) % 2, np.float64(start())
    ends = np.empty_like(z)
    ends[labels == 0], ends[labels == 1] = gaussian_flow(z[labels == 0]), mixture_flow(z[labels == 1])
    return labels, ends


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize(('name', 'order'), [('ddim', 1), ('2m', 2), ('heun', 2)])
def test_order_of_convergence_to_the_exact_flows(name, order, grid):
    """The largest error of the Gaussian's points, the root of the mean square of the mixture's."""
    counts, of_gaussian, of_mixture = (32, 64, 128), [], []
    labels, ends = flows()
    for count in counts:
        logsnrs = GRIDS[grid](count, logsnr_min=-5.0, logsnr_max=5.0)
        error = walk(SOLVERS[name], logsnrs, lambda _: start(), labels) - ends
        of_gaussian.append(np.abs(error[labels == 0]).max())
        of_mixture.append(np.sqrt(np.mean(error[labels == 1] ** 2)))
    for errors, within in ((of_gaussian, 0.2), (of_mixture, 0.25)):
        assert errors[-1] > 1e-5  # or rounding would be part of it
        assert slope(counts, errors) == pytest.approx(order, abs=within)


# --- all: the distribution ---


def moments(solver, logsnrs):
    """Mean and variance of the samples, in closed form but for the rounding of the solver.

    Solvers are linear for Gaussian data, so it is enough how far each noise moves the sample: in place of noise number
    i, example i is given 1 and the others 0. The last examples are given none.
    """

    def impulse(index):
        return (np.arange(COUNT) == index).astype(np.float32)[:, None]

    x = walk(solver, logsnrs, impulse, np.zeros(COUNT, np.int32))[:, 0]
    return x[-1], np.square(x[:-1] - x[-1]).sum()


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize(
    ('name', 'order'),
    [('ancestral', 1), ('ddim_half', 1), ('ddim_stochastic', 1), ('2m_sde', 2), ('heun_churn', 2)],
)
def test_weak_order_of_the_stochastic_solvers(name, order, grid):
    """The variance of the samples tends to that of the posterior mean at the last level."""
    alpha, sigma = scales(5.0)
    exact = (alpha * STD**2) ** 2 / (alpha**2 * STD**2 + sigma**2)
    counts, errors = (64, 128, 256), []
    for count in counts:
        _, variance = moments(SOLVERS[name], GRIDS[grid](count, logsnr_min=-9.0, logsnr_max=5.0))
        errors.append(abs(variance - exact))
    assert errors[-1] > 3e-6  # or rounding would be part of it
    assert slope(counts, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize('name', SOLVERS)
def test_solvers_draw_the_gaussian_over_the_whole_range(name):
    """From logsnr -20 to 20 with T = 256; the variance within what the order allows on the least suitable grid."""
    second_order = name.startswith(('2m', 'heun'))
    for grid in GRIDS.values():
        mean, variance = moments(SOLVERS[name], grid(256, logsnr_min=-20.0, logsnr_max=20.0))
        assert mean == pytest.approx(MEAN, abs=2e-4)
        assert variance == pytest.approx(STD**2, rel=0.04 if second_order else 0.14)
