"""Distances to guided densities against closed forms of Gaussians."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from cfg.diffusion import mixture
from cfg.mixture import distances

EXTENT = 2.5
STD = 0.5


def densities(means):
    gaussians = mixture.gaussian_mixture(
        np.array(means), np.tile(STD**2 * np.eye(2), (len(means), 1, 1)), [1] * len(means)
    )
    return distances.GuidedDensities(gaussians, logsnr=20.0, extent=EXTENT)


@pytest.fixture(scope='module')
def one():
    """A single class, for which every guided density is the Gaussian itself."""
    return densities([[0.3, -0.2]])


@pytest.fixture(scope='module')
def two():
    return densities([[-0.6, 0.0], [0.6, 0.0]])


def normal_points(count, mean, std):
    """As like a Gaussian as points in the plane can be: the quantiles of a lattice."""
    place = np.arange(count) + 0.5
    # The golden ratio's lattice fills the square evenly.
    u = np.stack([place / count, np.mod(place * (np.sqrt(5.0) - 1.0) / 2.0, 1.0)], axis=1)
    return mean + std * scipy.stats.norm.ppf(u)


def test_wasserstein_of_two_gaussians_on_the_line():
    """W_2^2 = (difference of means)^2 + (difference of deviations)^2."""
    edges = np.linspace(-8.0, 8.0, 4001)
    values = 0.7 + 1.5 * scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    found = distances.wasserstein_2(np.random.default_rng(0).permutation(values), edges, scipy.stats.norm.cdf(edges))
    assert found == pytest.approx(np.hypot(0.7, 0.5), rel=1e-3)


@pytest.mark.parametrize(('shift', 'std'), [((0.0, 0.0), 0.8), ((0.4, 0.3), 0.5), ((-0.5, 0.2), 0.2)])
def test_sliced_wasserstein_of_two_gaussians_in_the_plane(one, shift, std):
    """Over all directions (theta . shift)^2 is |shift|^2 / 2 on average."""
    x = normal_points(20_000, np.array([0.3, -0.2]) + shift, std)
    expected = np.sqrt(0.5 * np.square(shift).sum() + (std - STD) ** 2)
    assert one.target(0, w=2.0).distances(x)['sliced_w2'] == pytest.approx(expected, rel=5e-3)


def test_kl_of_two_gaussians():
    """KL(N(m, s^2) || N(0, 1)) = (s^2 + m^2 - 1) / 2 - log s, approached from below as cells get smaller."""
    centres = np.linspace(-9.0, 9.0, 1800)
    drawn, exact = (scipy.stats.norm.pdf(centres, mean, std) / 100.0 for mean, std in ((0.5, 1.3), (0.0, 1.0)))
    expected = 0.5 * (1.3**2 + 0.5**2 - 1.0) - np.log(1.3)
    found = distances.kl_divergence(drawn / drawn.sum(), np.log(exact / exact.sum()))
    assert found == pytest.approx(expected, rel=1e-3)
    coarse = [masses.reshape(-1, 100).sum(axis=1) for masses in (drawn, exact)]
    assert distances.kl_divergence(coarse[0], np.log(coarse[1])) < found


def test_kl_of_samples_in_the_plane(one):
    """The cells of the panel are fine enough for the closed form."""
    x = normal_points(200_000, np.array([0.5, -0.2]), STD)
    found = one.target(0, w=0.0).distances(x)['kl']
    assert found == pytest.approx(0.5 * (0.2 / STD) ** 2, rel=0.05)


def test_cells_hold_the_exact_masses(two):
    """Masses of p(z | c) p(c | z)^w in the cells, where both classes have the same weight, against float64."""
    w = 3.0
    size = 800
    centres = (np.arange(size) + 0.5) * 4.0 * EXTENT / size - 2.0 * EXTENT
    along, across = np.meshgrid(centres, centres)
    log_density = -((along - 0.6) ** 2 + across**2) / (2.0 * STD**2)
    log_posterior = scipy.special.log_expit(2.0 * 0.6 * along / STD**2)
    masses = scipy.special.softmax(log_density + w * log_posterior)
    panel = masses[size // 4 : -size // 4, size // 4 : -size // 4].reshape(40, 10, 40, 10).sum(axis=(1, 3))
    found = np.exp(two.target(1, w).log_cells)
    assert found.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(found[:-1].reshape(40, 40), panel, rtol=0.02, atol=1e-6)
    assert found[-1] == pytest.approx(1.0 - panel.sum(), rel=1e-2)


@pytest.mark.parametrize('w', [-0.5, 0.0, 4.0])
def test_floors_are_those_of_exact_draws(two, w):
    """Each cell's count is binomial, so the means of the distances over cells are sums over the counts."""
    rng = np.random.default_rng(0)
    target, count = two.target(0, w), 1000
    few, many = (
        {name: np.mean([floor[name] for floor in target.floor(m, rng)]) for name in distances.METRICS}
        for m in (count, 16 * count)
    )
    masses = np.exp(target.log_cells)[:, None]
    k = np.arange(1, 100)
    probability = scipy.stats.binom.pmf(k, count, masses)
    assert few['kl'] == pytest.approx(np.sum(probability * k / count * np.log(k / (count * masses))), rel=0.06)
    absent = (1.0 - masses[:, 0]) ** count * masses[:, 0]
    deviation = np.sum(probability * np.abs(k / count - masses)) + absent.sum()
    assert few['total_variation'] == pytest.approx(0.5 * deviation, rel=0.06)
    assert many['sliced_w2'] == pytest.approx(few['sliced_w2'] / 4.0, rel=0.3)


def test_a_target_far_from_the_samples_is_finite(two):
    distances = two.target(0, w=50.0).distances(np.full((100, 2), 6.0))
    assert all(np.isfinite(list(distances.values())))
    assert distances['total_variation'] == 1.0


@pytest.mark.parametrize('count', [300, 20_000])
def test_nearest_finds_the_density_that_was_drawn_from(two, count):
    rng = np.random.default_rng(1)
    tables = np.stack([two.quantiles(w) for w in (-0.9, 0.0, 1.0, 3.0, 9.0)])
    for place, w in ((1, 0.0), (3, 3.0)):
        x = np.stack([two.target(label, w).draw(count, rng) for label in range(2)])
        assert distances.nearest(x, tables) == place
