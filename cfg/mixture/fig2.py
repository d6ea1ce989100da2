"""Fig. 2: guidance on three 2-D Gaussians, as exact densities and as what Alg. 2 samples with exact scores.

Guidance of strength w aims at p(z | c) p(c | z)^w, and at each noise level Eq. 6 is its exact score. Yet the
densities of the levels are not one density under the diffusion process, so for w > 0 the sampler does not
draw from the one at the data end. The figure shows both and prints their total variation distance, beside
the distance that as many exact draws would show.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
from matplotlib.figure import Figure

from cfg.diffusion import mixture
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.solvers import Ancestral

# Distances are taken between masses of NUM_BINS x NUM_BINS cells; a density is integrated by the midpoint rule
# over SUBCELLS x SUBCELLS points a cell.
NUM_BINS = 40
SUBCELLS = 5
FLOOR_DRAWS = 16
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
# Below 1, so that the tails, where the classes overlap, are visible.
GAMMA = 0.7


def write_figure(
    out_dir: str | Path,
    *,
    means: Sequence[Sequence[float]],
    std: float,
    w_list: Sequence[float],
    num_samples: int,
    num_steps: int,
    logvar_interp: float,
    logsnr_min: float,
    logsnr_max: float,
    extent: float,
    seed: int,
) -> Path:
    """Writes fig2.png and, with the distances in it, fig2.json.

    Args:
      out_dir: made if it does not exist.
      means: of the classes, [K, 2], K at most 6; classes are equally likely.
      std: of every class, in both directions.
      w_list: guidance strengths, one column each.
      num_samples: of each class, at each w.
      num_steps, logvar_interp, logsnr_min, logsnr_max: of Alg. 2; x is not clipped.
      extent: the panels show [-extent, extent]^2. Samples outside count as error in the distance, as the exact
        density is normalised inside.
      seed: of the samples; the same noise is used at every w.

    Returns:
      The path of fig2.png.

    Raises:
      ValueError: if the means are not 2-D or there are more classes than colours, or w_list is empty.
    """
    means = np.asarray(means, np.float64)
    if means.ndim != 2 or means.shape[1] != 2 or not 1 <= len(means) <= len(COLORS):
        raise ValueError(f'means must have shape [K, 2] with K at most {len(COLORS)}, not {list(means.shape)}')
    if not w_list:
        raise ValueError('w_list must not be empty')
    num_classes = len(means)
    gaussians = mixture.gaussian_mixture(
        means, np.broadcast_to(std**2 * np.eye(2), (num_classes, 2, 2)), np.ones(num_classes)
    )
    sampler = Sampler(
        solver=Ancestral(logvar_interp=logvar_interp),
        num_steps=num_steps,
        clip_x=False,
        logsnr_min=logsnr_min,
        logsnr_max=logsnr_max,
    )
    key = jax.random.key(seed)
    rng = np.random.default_rng(seed)
    columns, rows = [], []
    for w in w_list:
        fine = guided_masses(gaussians, w=w, logsnr=logsnr_max, extent=extent)
        cells = fine.reshape(num_classes, NUM_BINS, SUBCELLS, NUM_BINS, SUBCELLS).sum(axis=(2, 4))
        # One class at a time: the scan is quicker when a step fits the processor's cache.
        drawn = [
            _draw(gaussians, key, w=w, label=label, num_samples=num_samples, sampler=sampler)
            for label in range(num_classes)
        ]
        histograms = np.stack([histogram(np.asarray(x), extent=extent) for x in drawn])
        distances = [total_variation(found, exact) for found, exact in zip(histograms, cells, strict=True)]
        floors = [sampling_floor(exact, num_samples, rng) for exact in cells]
        columns.append((fine, histograms))
        rows.append(
            {
                'w': float(w),
                'total_variation': float(np.mean(distances)),
                'floor': float(np.mean(floors)),
                'total_variation_by_class': distances,
                'floor_by_class': floors,
                'outside': float(1.0 - histograms.sum() / num_classes),
            }
        )

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        'means': means.tolist(),
        'std': std,
        'num_samples': num_samples,
        'num_steps': num_steps,
        'logvar_interp': logvar_interp,
        'logsnr_min': logsnr_min,
        'logsnr_max': logsnr_max,
        'extent': extent,
        'num_bins': NUM_BINS,
        'seed': seed,
    }
    (out_dir / 'fig2.json').write_text(json.dumps({'settings': settings, 'columns': rows}, indent=2) + '\n')
    path = out_dir / 'fig2.png'
    _figure(columns, rows, extent=extent).savefig(path, dpi=200)
    return path


def guided_masses(gaussians: mixture.GaussianMixture, *, w: float, logsnr: float, extent: float) -> np.ndarray:
    """p(z | c) p(c | z)^w of every class on the fine grid over [-extent, extent]^2, normalised to sum 1.

    Returns:
      [K, NUM_BINS * SUBCELLS, NUM_BINS * SUBCELLS], the second axis along z_2 (rows of an image, from below).
    """
    edges = np.linspace(-extent, extent, NUM_BINS * SUBCELLS + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    z = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    masses = []
    for label in range(gaussians.null_label):
        labels = jnp.full(len(z), label)
        log_density = mixture.guided_log_density(gaussians, jnp.asarray(z, jnp.float32), logsnr, labels, w=w)
        log_density = np.asarray(log_density, np.float64)
        mass = np.exp(log_density - log_density.max())
        masses.append((mass / mass.sum()).reshape(len(centres), len(centres)))
    return np.stack(masses)


def histogram(x: np.ndarray, *, extent: float) -> np.ndarray:
    """Fractions of the points x [M, 2] in the cells of [-extent, extent]^2: [NUM_BINS, NUM_BINS], rows along x_2."""
    edges = np.linspace(-extent, extent, NUM_BINS + 1)
    counts, _, _ = np.histogram2d(x[:, 1], x[:, 0], bins=(edges, edges))
    return counts / len(x)


def total_variation(drawn: np.ndarray, exact: np.ndarray) -> float:
    """sum |drawn - exact| / 2 over the cells and the outside, where `exact` (of sum 1) has no mass: in [0, 1]."""
    return float(0.5 * (np.abs(drawn - exact).sum() + (1.0 - drawn.sum())))


def sampling_floor(exact: np.ndarray, num_samples: int, rng: np.random.Generator) -> float:
    """Mean total variation between the masses `exact` and the histogram of num_samples exact draws from them."""
    counts = rng.multinomial(num_samples, exact.ravel() / exact.sum(), size=FLOOR_DRAWS)
    return float(0.5 * np.abs(counts / num_samples - exact.ravel()).sum(axis=1).mean())


@functools.partial(jax.jit, static_argnames=('num_samples', 'sampler'))
def _draw(gaussians, key, *, w, label, num_samples, sampler):
    """Draws samples [num_samples, 2] of one class with exact scores; one compilation for all w and classes."""
    indices = label * num_samples + jnp.arange(num_samples)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
    models = Models(Denoiser(mixture.eps_fn(gaussians), gaussians.null_label))
    return sampler.sample(models, keys, jnp.full(num_samples, label), w, shape=(2,))


def _figure(columns, rows, *, extent):
    width = 2.1 * len(columns) + 0.5
    figure = Figure(figsize=(width, 4.9), layout='constrained')
    axes = figure.subplots(2, len(columns), sharex=True, sharey=True, squeeze=False)
    for (fine, histograms), row, (above, below) in zip(columns, rows, axes.T, strict=True):
        # Both panels of a column on one scale, so that equal colours mean equal densities.
        peaks = fine.max(axis=(1, 2), keepdims=True) * SUBCELLS**2
        above.set_title(f'$w = {row["w"]:g}$')
        show(above, fine * SUBCELLS**2 / peaks, extent)
        show(below, histograms / peaks, extent)
        below.set_xlabel(f'TV distance {row["total_variation"]:.3f}\n(exact draws: {row["floor"]:.3f})')
    axes[0, 0].set_ylabel(r'exact $p(z \mid c)\, p(c \mid z)^w$')
    axes[1, 0].set_ylabel('Alg. 2 with exact scores')
    return figure


def show(axis, intensities, extent):
    """Draws each class in its colour on white; where classes overlap, the colours multiply like inks.

    Args:
      intensities: [K, rows, columns], 1 for the full colour.
    """
    colors = np.array([matplotlib.colors.to_rgb(color) for color in COLORS[: len(intensities)]])
    ink = np.clip(intensities, 0.0, 1.0)[..., None] ** GAMMA * (1.0 - colors[:, None, None])
    axis.imshow(np.prod(1.0 - ink, axis=0), origin='lower', extent=[-extent, extent] * 2, interpolation='nearest')
    axis.set_xticks([])
    axis.set_yticks([])
