"""Draws Fig. 2: guidance on three 2-D Gaussians, as exact densities and as what Alg. 2 samples with exact scores.

Any sampler may take the place of Alg. 2.

Guidance of strength w aims at p(z | c) p(c | z)^w, and at each noise level Eq. 6 is its exact score. Yet the
densities of the levels are not one density under the diffusion process, so for w > 0 the sampler does not
draw from the one at the data end. The figure shows both and prints their total variation distance, beside
the distance that as many exact draws would show.
"""

import json
from pathlib import Path

import numpy as np

from cfg.diffusion.rules import Cfg
from cfg.diffusion.solvers import Ancestral
from cfg.diffusion.stepping import Solver
from cfg.mixture import plots
from cfg.mixture.distances import NUM_BINS, total_variation
from cfg.mixture.settings import Settings
from cfg.mixture.study import draw

FLOOR_DRAWS = 16


def write_figure(out_dir: str | Path, settings: Settings, solver: Solver, *, num_steps: int) -> Path:
    """Writes fig2.png and, with the distances in it, fig2.json.

    Samples outside the panels count as error in the distance, as the exact density is normalised inside. The same noise
    is used at every w. x is not clipped.

    Args:
      solver: what draws; the paper's is Alg. 2, on the grid 'paper'.
      num_steps: T.

    Returns:
      The path of fig2.png.
    """
    densities = settings.densities()
    sampler = settings.sampler_of(Cfg(), solver, num_steps)
    rng = np.random.default_rng(settings.seed)
    columns = []
    for w in settings.w:
        targets = densities.targets(w)
        cells = [target.panel / target.panel.sum() for target in targets]
        drawn = plots.histograms(draw(settings, sampler, w, seed=settings.seed), extent=settings.extent)
        distances = [total_variation(found, exact) for found, exact in zip(drawn, cells, strict=True)]
        floors = [sampling_floor(exact, settings.num_samples, rng) for exact in cells]
        row = {
            'w': float(w),
            'total_variation': float(np.mean(distances)),
            'floor': float(np.mean(floors)),
            'total_variation_by_class': distances,
            'floor_by_class': floors,
            'outside': float(1.0 - drawn.sum() / len(drawn)),
        }
        fine = np.exp([target.log_fine for target in targets])
        columns.append((row, fine / fine.sum(axis=(1, 2), keepdims=True), drawn))

    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    kept = ('means', 'logvar_interp', 'logsnr_min', 'logsnr_max', 'grid', 'extent', 'num_samples', 'seed')
    written = {name: getattr(settings, name) for name in kept}
    written |= {'std': settings.stddev, 'sampler': solver.text, 'num_steps': num_steps, 'num_bins': NUM_BINS}
    content = {'settings': written, 'columns': [row for row, *_ in columns]}
    (out_dir / 'fig2.json').write_text(json.dumps(content, indent=2) + '\n')
    path = out_dir / 'fig2.png'
    drawn_by = 'Alg. 2' if solver.name == Ancestral.name else solver.text
    plots.fig2(columns, drawn_by, extent=settings.extent).savefig(path, dpi=200)
    return path


def sampling_floor(exact: np.ndarray, num_samples: int, rng: np.random.Generator) -> float:
    """Estimates the mean total variation between the masses `exact` and histograms of as many draws from them."""
    counts = rng.multinomial(num_samples, exact.ravel() / exact.sum(), size=FLOOR_DRAWS)
    return float(0.5 * np.abs(counts / num_samples - exact.ravel()).sum(axis=1).mean())
