"""What each guidance rule and each sampler really draws, on a Gaussian mixture whose scores are exact.

Samples come from `Sampler`, as those of networks do, and are held to the density that guidance of strength w
aims at, p(z | c) p(c | z)^w. Two tables: the rules at every w, with samplers that leave little error, and the samplers
with Eq. 6 at every number of steps.
"""

import csv
import dataclasses
import functools
import io
import json
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import mixture
from cfg.diffusion import sampler as samplers
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Rule
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.solvers import Solver
from cfg.mixture import plots
from cfg.mixture.distances import METRICS, GuidedDensities, Target, nearest
from cfg.mixture.plots import distance_text
from cfg.runtime.files import write_whole
from cfg.settings.sampler import with_logvar_interp

log = logging.getLogger('cfg')

# The smallest 1 + w, and how many strengths, whose densities a row is compared with for the nearest one.
NEAREST_COUNT = 64
NEAREST_LOWEST = 0.05

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the study draws.

    Attributes:
      means: of the classes, which are equally likely, [K, 2].
      stddev: of every class, in both directions.
      weaker_stddev: that of the weaker model of autoguidance, which has the same means.
      w: strengths of the rules that name none themselves.
      guidance: texts of the rules.
      rule_samplers: texts of the samplers of the first table; a rule is drawn with those that it fits.
      num_steps: T of the first table.
      samplers: texts of the samplers of the second table.
      steps: values of T of the second table.
      steps_w: strengths of Eq. 6 in the second table.
      grid: text of the grid.
      logvar_interp, logsnr_min, logsnr_max: of the samplers.
      extent: half the width of the panels; twice of it must contain the densities.
      num_samples: of each class, for each row and seed.
      num_seeds: draws of every row.
      seed: of the first draw; the others follow it.
    """

    means: tuple[tuple[float, float], ...]
    stddev: float
    weaker_stddev: float
    w: tuple[float, ...]
    guidance: tuple[str, ...]
    rule_samplers: tuple[str, ...]
    num_steps: int
    samplers: tuple[str, ...]
    steps: tuple[int, ...]
    steps_w: tuple[float, ...]
    grid: str
    logvar_interp: float
    logsnr_min: float
    logsnr_max: float
    extent: float
    num_samples: int
    num_seeds: int
    seed: int

    def mixture_of(self, stddev: float) -> mixture.GaussianMixture:
        """The mixture with this standard deviation."""
        count = len(self.means)
        return mixture.gaussian_mixture(
            np.array(self.means), np.tile(stddev**2 * np.eye(2), (count, 1, 1)), np.ones(count)
        )

    def sampler_of(self, rule: Rule, solver: Solver, num_steps: int) -> Sampler:
        """Returns the sampler of a row, which clips nothing: the samples are no images."""
        return Sampler(
            rule=dataclasses.replace(rule, w=None),
            solver=with_logvar_interp(solver, self.logvar_interp),
            grid=samplers.parse_grid(self.grid),
            num_steps=num_steps,
            clip_x=False,
            logsnr_min=self.logsnr_min,
            logsnr_max=self.logsnr_max,
        )

    def nearest_w(self) -> np.ndarray:
        """The strengths among which the nearest density of a row is looked for: 1 + w in equal ratios."""
        highest = 4.0 * max(1.0, *self.w, *self.steps_w)
        return np.geomspace(NEAREST_LOWEST, 1.0 + highest, NEAREST_COUNT) - 1.0


def draw(settings: Settings, sampler: Sampler, w: float, *, seed: int) -> np.ndarray:
    """Draws samples of every class by a sampler: [K, num_samples, 2].

    The noise of a sample follows from seed and place alone: it is the same for every rule, solver, w and T.
    """
    mixtures = settings.mixture_of(settings.stddev), settings.mixture_of(settings.weaker_stddev)
    # One class at a time: the scan is quicker when a step fits the processor's cache.
    labels = range(len(settings.means))
    drawn = [_draw(*mixtures, jax.random.key(seed), label, w, settings.num_samples, sampler) for label in labels]
    return np.stack(drawn)


@functools.partial(jax.jit, static_argnames=('num_samples', 'sampler'))
def _draw(gaussians, weaker, key, label, w, num_samples, sampler):
    """Draws samples [num_samples, 2] of one class; one compilation for all w and classes."""
    exact, worse = (Denoiser(mixture.eps_fn(one), one.null_label) for one in (gaussians, weaker))
    models = Models(exact, weaker=worse, classifier=mixture.logits_fn(gaussians))
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, label * num_samples + jnp.arange(num_samples))
    labels, strengths = jnp.full(num_samples, label), jnp.full(num_samples, w, jnp.float32)
    return sampler.sample(models, keys, labels, strengths, shape=(2,))


class Study:
    """The measurement of rows, which share their targets and floors."""

    def __init__(self, settings: Settings):
        self.settings = settings
        gaussians = settings.mixture_of(settings.stddev)
        self.densities = GuidedDensities(gaussians, logsnr=settings.logsnr_max, extent=settings.extent)
        self.nearest_w = settings.nearest_w()
        self._tables = np.stack([self.densities.quantiles(w) for w in self.nearest_w])
        self._targets: dict[float, list[Target]] = {}
        self._floors: dict[float, Row] = {}

    def targets(self, w: float) -> list[Target]:
        """The exact densities of all classes at a strength."""
        if w not in self._targets:
            self._targets[w] = [self.densities.target(label, w) for label in range(self.densities.num_classes)]
        return self._targets[w]

    def floor(self, w: float) -> Row:
        """The distances of as many exact draws, as in `measure`: means over classes, and their spread over draws."""
        if w not in self._floors:
            rng = np.random.default_rng(self.settings.seed)
            drawn = [target.floor(self.settings.num_samples, rng) for target in self.targets(w)]
            self._floors[w] = _summary(np.array([[[one[name] for name in METRICS] for one in of] for of in drawn]))
        return self._floors[w]

    def measure(self, rule: Rule, solver: Solver, w: float, *, num_steps: int) -> tuple[Row, np.ndarray]:
        """Measures one row; returns it with its samples [num_seeds, K, num_samples, 2]."""
        settings = self.settings
        sampler = settings.sampler_of(rule, solver, num_steps)
        x = np.stack([draw(settings, sampler, w, seed=settings.seed + place) for place in range(settings.num_seeds)])
        closest = nearest(np.concatenate(x, axis=1), self._tables)
        row = {
            'guidance': rule.text,
            'sampler': solver.text,
            'num_steps': num_steps,
            'w': w,
            'passes': sampler.passes(w).total,
            **self._distances(x, w),
            **{f'floor_{name}': value for name, value in self.floor(w).items()},
            'nearest_w': float(self.nearest_w[closest]),
            'nearest_sliced_w2': self._distances(x, float(self.nearest_w[closest]))['sliced_w2'],
        }
        return row, x

    def _distances(self, x: np.ndarray, w: float) -> Row:
        each = [
            [list(target.distances(of_class).values()) for of_class in of_seed]
            for of_seed, target in ((x[:, label], target) for label, target in enumerate(self.targets(w)))
        ]
        return _summary(np.array(each))


def _summary(values: np.ndarray) -> Row:
    """Of distances [K, draws, metrics]: the mean over classes, its standard deviation over draws, each class's mean."""
    means = values.mean(axis=0)
    row = {}
    for place, name in enumerate(METRICS):
        row[name] = float(means[:, place].mean())
        row[f'{name}_spread'] = float(means[:, place].std(ddof=1)) if len(means) > 1 else None
        row[f'{name}_by_class'] = values[:, :, place].mean(axis=1).tolist()
    return row


def write_study(out_dir: str | Path, settings: Settings) -> Path:
    """Writes distances.json, .csv and .md, rules.png, rule_distances.png and sampler_distances.png.

    What concerns the rules is written before the samplers are drawn.

    Returns:
      The path of distances.md, which shows the figures.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    study, extent = Study(settings), settings.extent
    rules, panels = _rule_rows(study)
    exact = [(w, np.stack([target.panel for target in study.targets(w)])) for w in settings.w]
    plots.rules_figure(exact, panels, extent=extent).savefig(out_dir / 'rules.png', dpi=110)
    plots.rule_distances(rules, extent=extent).savefig(out_dir / 'rule_distances.png', dpi=150)
    path = _write_tables(out_dir, settings, rules, [])
    samplers = list(_sampler_rows(study))
    if samplers:
        plots.sampler_distances(samplers, extent=extent).savefig(out_dir / 'sampler_distances.png', dpi=150)
        path = _write_tables(out_dir, settings, rules, samplers)
    return path


def _write_tables(out_dir: Path, settings: Settings, rules: Sequence[Row], samplers: Sequence[Row]) -> Path:
    content = {'settings': dataclasses.asdict(settings), 'rules': rules, 'samplers': samplers}
    write_whole(out_dir / 'distances.json', (json.dumps(_plain(content), indent=2, allow_nan=False) + '\n').encode())
    write_whole(out_dir / 'distances.csv', _csv(rules, samplers).encode())
    path = out_dir / 'distances.md'
    write_whole(path, _markdown(settings, rules, samplers).encode())
    return path


def _rule_rows(study: Study) -> tuple[list[Row], list[plots.Panels]]:
    """The rows of the first table, and the panels of each rule with the first sampler that it fits."""
    settings, rows, panels = study.settings, [], []
    for text in settings.guidance:
        guidance = samplers.parse_rule(text)
        solvers = [samplers.parse_solver(name) for name in settings.rule_samplers]
        for place, sampler in enumerate([one for one in solvers if samplers.fits(guidance, one)]):
            log.info('mixture: %s with %s', guidance.text, sampler.text)
            shown = []
            for w in guidance.w or settings.w:
                row, x = study.measure(guidance, sampler, w, num_steps=settings.num_steps)
                rows.append(row)
                # Of all seeds together: a picture has less noise than a distance of so many samples.
                drawn = plots.histograms(np.concatenate(x, axis=1), extent=settings.extent)
                peaks = np.stack([target.panel for target in study.targets(w)]).max(axis=(1, 2))
                shown.append((row, drawn / peaks[:, None, None]))
            if place == 0:
                panels.append(plots.Panels(guidance.text, sampler.text, guidance.w is not None, shown))
    return rows, panels


def _sampler_rows(study: Study) -> Iterable[Row]:
    """The rows of the second table."""
    settings = study.settings
    for text in settings.samplers:
        sampler = samplers.parse_solver(text)
        log.info('mixture: steps of %s', sampler.text)
        for num_steps in settings.steps:
            for w in settings.steps_w:
                yield study.measure(samplers.parse_rule('cfg'), sampler, w, num_steps=num_steps)[0]


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rules: Sequence[Row], samplers: Sequence[Row]) -> str:
    """One line a row of both tables, without the classes on their own."""
    names = [name for name in rules[0] if not name.endswith('_by_class')]
    file = io.StringIO()
    writer = csv.DictWriter(file, ['table', *names], extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows({'table': 'rules', **row} for row in rules)
    writer.writerows({'table': 'samplers', **row} for row in samplers)
    return file.getvalue()


_HEADS = {'sliced_w2': 'sliced W2', 'kl': 'KL', 'total_variation': 'TV'}


def _markdown(settings: Settings, rules: Sequence[Row], samplers: Sequence[Row]) -> str:
    looked = settings.nearest_w()
    lines = [
        '# Distances to p(z|c) p(c|z)^w',
        '',
        f'{settings.num_samples} samples a class, {settings.num_seeds} seeds (± is their standard deviation), grid '
        f'{settings.grid}; in brackets as many exact draws. KL is of samples to density, in nats. Nearest: the w whose '
        f'density is nearest in sliced W2, of {len(looked)} from {looked[0]:g} to {looked[-1]:g}, and how near.',
        '',
        '![what each rule draws](rules.png)',
        '![distance against w](rule_distances.png)',
        *(['![distance against T](sampler_distances.png)'] if samplers else []),
    ]
    for title, rows in ((f'Rules, T = {settings.num_steps}', rules), ('Samplers, Eq. 6', samplers)):
        if not rows:
            continue
        heads = ['guidance', 'sampler', 'T', 'w', 'passes', *_HEADS.values(), 'nearest w', 'its sliced W2']
        lines += ['', f'## {title}', '', _line(heads), _line(['---'] * len(heads))]
        lines += [_line(_cells(row)) for row in rows]
    return '\n'.join(lines) + '\n'


def _cells(row: Row) -> list[str]:
    cells = [row['guidance'], row['sampler'], str(row['num_steps']), f'{row["w"]:g}', str(row['passes'])]
    for name in METRICS:
        text, spread = distance_text(row[name]), row[f'{name}_spread']
        within = '' if spread is None or text.startswith('>') else f' ± {distance_text(spread)}'
        cells.append(f'{text}{within} ({row[f"floor_{name}"]:.3f})')
    return [*cells, f'{row["nearest_w"]:.2f}', distance_text(row['nearest_sliced_w2'])]


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
