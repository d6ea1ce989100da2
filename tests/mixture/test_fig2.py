"""Fig. 2: masses, distances and their floor against independent float64 values, and the files written."""

import dataclasses
import json

import matplotlib.image
import numpy as np
import pytest
import scipy.stats

from cfg.diffusion import mixture
from cfg.diffusion.sampler import parse_solver
from cfg.mixture import distances, fig2
from tests.mixture.test_study import THREE

MEANS = [[0.0, 0.8], [-0.7, -0.4], [0.7, -0.4]]
STD = 0.5
EXTENT = 2.6


def small_figure(out_dir, sampler='ancestral', **changes):
    fixed = {'means': MEANS, 'extent': EXTENT, 'w': (0.0, 1.0, 4.0), 'num_samples': 2000, 'grid': 'paper'}
    settings = dataclasses.replace(THREE, **fixed | changes)
    return fig2.write_figure(out_dir, settings, parse_solver(sampler), num_steps=64)


@pytest.mark.parametrize('w', [0.0, 1.0, 4.0])
def test_masses_are_the_guided_density(w):
    size = distances.NUM_BINS * distances.SUBCELLS
    gaussians = mixture.gaussian_mixture(np.array(MEANS), np.tile(STD**2 * np.eye(2), (3, 1, 1)), np.ones(3))
    exact = distances.GuidedDensities(gaussians, logsnr=20.0, extent=EXTENT)
    centres = (np.arange(size) + 0.5) * 2.0 * EXTENT / size - EXTENT
    first, second = np.meshgrid(centres, centres, indexing='ij')
    densities = [
        scipy.stats.multivariate_normal(mean, STD**2 * np.eye(2)).pdf(np.stack([first, second], axis=-1))
        for mean in MEANS
    ]
    for label in range(3):
        mass = np.exp(exact.target(label, w).log_fine)
        assert mass.shape == (size, size)
        guided = densities[label] * (densities[label] / sum(densities)) ** w
        np.testing.assert_allclose(mass.T / mass.sum(), guided / guided.sum(), rtol=1e-3, atol=1e-10)


def test_histogram_has_rows_along_the_second_coordinate():
    cell = 2.0 * EXTENT / distances.NUM_BINS
    x = np.array([[-EXTENT + 3.5 * cell, -EXTENT + 7.5 * cell]] * 3 + [[10.0, 0.0]])
    fractions = distances.histogram(x, extent=EXTENT)
    assert fractions[7, 3] == 0.75
    assert fractions.sum() == 0.75


def test_total_variation_of_known_masses():
    exact = np.array([[0.5, 0.5], [0.0, 0.0]])
    assert distances.total_variation(exact, exact) == 0.0
    assert distances.total_variation(np.array([[0.25, 0.5], [0.25, 0.0]]), exact) == 0.25
    assert distances.total_variation(np.array([[0.0, 0.0], [0.5, 0.5]]), exact) == 1.0
    # A quarter of the samples outside.
    assert distances.total_variation(np.array([[0.25, 0.5], [0.0, 0.0]]), exact) == 0.25


def test_floor_is_the_mean_deviation_of_multinomial_counts():
    """With M draws each cell deviates by sqrt(2 p (1 - p) / (pi M)) on average, for counts that are not small."""
    exact = np.full((4, 4), 1.0 / 16.0)
    expected = 0.5 * 16.0 * np.sqrt(2.0 / np.pi * (1.0 / 16.0) * (15.0 / 16.0) / 10_000)
    floor = fig2.sampling_floor(exact, 10_000, np.random.default_rng(0))
    assert floor == pytest.approx(expected, rel=0.2)


def test_figure_and_numbers(tmp_path):
    path = small_figure(tmp_path / 'new' / 'folder')
    assert path == tmp_path / 'new' / 'folder' / 'fig2.png'
    image = matplotlib.image.imread(path)
    assert image.shape[1] > image.shape[0] > 500
    assert image[..., :3].std() > 0.05
    written = json.loads(path.with_suffix('.json').read_text())
    assert written['settings']['num_samples'] == 2000
    unguided, weak, strong = written['columns']
    assert [column['w'] for column in written['columns']] == [0.0, 1.0, 4.0]
    for column in written['columns']:
        assert len(column['total_variation_by_class']) == 3
        assert column['total_variation'] == pytest.approx(np.mean(column['total_variation_by_class']))
        assert 0.0 <= column['outside'] < 0.01
    # Alg. 2 samples p(x | c) itself, but not the guided density, and is further from it the larger w is.
    assert unguided['total_variation'] < 1.1 * unguided['floor']
    assert weak['total_variation'] > weak['floor'] + 0.02
    assert strong['total_variation'] > weak['total_variation'] + 0.1


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    texts = [
        small_figure(tmp_path / str(run), w=(0.5,), seed=seed).with_suffix('.json').read_text()
        for run, seed in enumerate((3, 3, 4))
    ]
    assert texts[0] == texts[1]
    assert json.loads(texts[0])['columns'] != json.loads(texts[2])['columns']
