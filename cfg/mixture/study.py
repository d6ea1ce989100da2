"""Measures what each guidance rule and each sampler really draws, on a Gaussian mixture with exact scores.

Samples come from `Sampler`, as those of networks do, and are held to the density that guidance of strength w
aims at, p(z | c) p(c | z)^w. Three tables: the rules at every w, with samplers that leave little error; the samplers
with Eq. 6 at every number of steps; and those that aim at that density itself.
"""

import functools
import itertools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import effective, mixture
from cfg.diffusion import sampler as samplers
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Cfg
from cfg.diffusion.rules.base import Rule
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.stepping import Solver
from cfg.diffusion.strength import Given
from cfg.mixture import plots
from cfg.mixture.distances import METRICS, nearest
from cfg.mixture.settings import Settings
from cfg.mixture.tables import write_tables

log = logging.getLogger('cfg')

Row = dict[str, Any]


def draw(settings: Settings, sampler: Sampler, w: float | Given, *, seed: int) -> np.ndarray:
    """Draws samples of every class by a sampler: [K, num_samples, 2].

    The noise of a sample follows from seed and place alone: it is the same for every rule, solver, w and T.
    """
    mixtures = _mixtures(settings)
    # One class at a time: the scan is quicker when a step fits the processor's cache.
    labels = range(len(settings.means))
    drawn = [_draw(*mixtures, jax.random.key(seed), label, w, settings.num_samples, sampler) for label in labels]
    return np.stack(drawn)


def _mixtures(settings):
    return settings.mixture_of(settings.stddev), settings.mixture_of(settings.weaker_stddev)


@functools.partial(jax.jit, static_argnames=('num_samples', 'sampler'))
def _draw(gaussians, weaker, key, label, w, num_samples, sampler):
    """Draws samples [num_samples, 2] of one class; one compilation for all w and classes."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, label * num_samples + jnp.arange(num_samples))
    w = w if isinstance(w, Given) else jnp.full(num_samples, w, jnp.float32)
    return sampler.sample(_models(gaussians, weaker), keys, jnp.full(num_samples, label), w, shape=(2,))


@functools.partial(jax.jit, static_argnames=('num_samples', 'sampler'))
def _sums(gaussians, weaker, key, w, num_samples, sampler):
    """Returns what the strength of a sampler is made of, see `effective.measure`, of samples of all classes."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(num_samples))
    labels, strengths = jnp.arange(num_samples) % len(gaussians.means), jnp.full(num_samples, w, jnp.float32)
    return effective.measure(sampler, _models(gaussians, weaker), keys, labels, strengths, shape=(2,))


def _models(gaussians, weaker):
    exact, worse = (Denoiser(mixture.eps_fn(one), one.null_label) for one in (gaussians, weaker))
    return Models(exact, weaker=worse, classifier=mixture.logits_fn(gaussians))


class Study:
    """Measures rows, which share their targets and floors."""

    def __init__(self, settings: Settings):
        self.settings = settings
        densities = settings.densities()
        self.nearest_w = settings.nearest_w()
        self._tables = np.stack([densities.quantiles(w) for w in self.nearest_w])
        self.targets = functools.cache(densities.targets)
        self.floor = functools.cache(self._floor)

    def _floor(self, w: float) -> Row:
        """Measures as many exact draws, as in `measure`: means over classes, and their spread over draws."""
        rng = np.random.default_rng(self.settings.seed)
        return _summary([target.floor(self.settings.num_samples, rng) for target in self.targets(w)])

    def measure(
        self, rule: Rule, solver: Solver, w: float, *, num_steps: int, num_seeds: int | None = None
    ) -> tuple[Row, np.ndarray]:
        """Measures one row; returns it with its samples [num_seeds, K, num_samples, 2]."""
        settings = self.settings
        sampler = settings.sampler_of(rule, solver, num_steps)
        x = self._draws(sampler, w, num_seeds or settings.num_seeds)
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

    def twin(self, rule: Rule, solver: Solver, w: float, *, num_steps: int) -> Row:
        """Measures plain Eq. 6 with the effective strength of a rule; None of each where the rule is Eq. 6."""
        settings = self.settings
        sampler = settings.sampler_of(rule, solver, num_steps)
        if effective.exact(sampler, w) is not None:
            return dict.fromkeys(('remainder', 'twin_sliced_w2', 'twin_sliced_w2_spread'))
        sums = _sums(*_mixtures(settings), jax.random.key(settings.seed), w, settings.num_samples, sampler)
        strength = effective.strength_of(sampler, sums)
        plain = settings.sampler_of(Cfg(), solver, num_steps)
        given = Given(jnp.float32(strength.levels), jnp.float32(strength.w), jnp.float32(1.0))
        found = self._distances(self._draws(plain, given, settings.num_seeds), w)
        twin = {f'twin_{name}': found[name] for name in ('sliced_w2', 'sliced_w2_spread')}
        return {'remainder': float(strength.share.max()), **twin}

    def shown(self, rule: Rule, solver: Solver, ws: Sequence[float], **how: int) -> list[tuple[Row, np.ndarray]]:
        """Measures rows at several w; returns each with its panel, see `plots.Panels`."""
        log.info('mixture: %s with %s', rule.text, solver.text)
        found = []
        for w in ws:
            row, x = self.measure(rule, solver, w, **how)
            # Of all seeds together: a picture has less noise than a distance of so many samples.
            drawn = plots.histograms(np.concatenate(x, axis=1), extent=self.settings.extent)
            peaks = np.stack([target.panel for target in self.targets(w)]).max(axis=(1, 2))
            found.append((row, drawn / peaks[:, None, None]))
        return found

    def _draws(self, sampler: Sampler, w: float | Given, num_seeds: int) -> np.ndarray:
        """Draws samples of several seeds: [num_seeds, K, num_samples, 2]."""
        seeds = range(self.settings.seed, self.settings.seed + num_seeds)
        return np.stack([draw(self.settings, sampler, w, seed=seed) for seed in seeds])

    def _distances(self, x: np.ndarray, w: float) -> Row:
        targets = enumerate(self.targets(w))
        return _summary([[target.distances(one) for one in x[:, label]] for label, target in targets])


def _summary(each: Sequence[Sequence[dict[str, float]]]) -> Row:
    """Sums up the distances of draws of each class: mean over classes, its deviation over draws, the mean of each."""
    values = np.array([[[one[name] for name in METRICS] for one in of_class] for of_class in each])
    means = values.mean(axis=0)
    row = {}
    for place, name in enumerate(METRICS):
        row[name] = float(means[:, place].mean())
        row[f'{name}_spread'] = float(means[:, place].std(ddof=1)) if len(means) > 1 else None
        row[f'{name}_by_class'] = values[:, :, place].mean(axis=1).tolist()
    return row


def write_study(out_dir: str | Path, settings: Settings) -> Path:
    """Writes distances.json, .csv and .md, rules.png, rule_distances.png, sampler_distances.png and tilted.png.

    What concerns the rules is written before the samplers are drawn, and that before those that aim at the density.

    Returns:
      The path of distances.md, which shows the figures.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    study, extent = Study(settings), settings.extent
    rules, panels = _rule_rows(study)

    def exact(ws):
        return [(w, np.stack([target.panel for target in study.targets(w)])) for w in ws]

    plots.rules_figure(exact(settings.w), panels, extent=extent).savefig(out_dir / 'rules.png', dpi=110)
    plots.rule_distances(rules, extent=extent).savefig(out_dir / 'rule_distances.png', dpi=150)
    tables = {'rules': rules, 'samplers': [], 'tilted': []}
    write_tables(out_dir, settings, tables)
    tables['samplers'] = samplers = list(_sampler_rows(study))
    if samplers:
        plots.sampler_distances(samplers, extent=extent).savefig(out_dir / 'sampler_distances.png', dpi=150)
        write_tables(out_dir, settings, tables)
    guided = [w for w in settings.w if w > 0]
    if settings.tilted and guided:
        tables['tilted'], panels = _tilted_rows(study, guided)
        plots.rules_figure(exact(guided), panels, extent=extent).savefig(out_dir / 'tilted.png', dpi=110)
    return write_tables(out_dir, settings, tables)


def _rule_rows(study: Study) -> tuple[list[Row], list[plots.Panels]]:
    """Measures the first table; returns its rows, and the panels of each rule with the first sampler that it fits."""
    settings, rows, panels = study.settings, [], []
    solvers = [samplers.parse_solver(name) for name in settings.rule_samplers]
    for guidance in map(samplers.parse_rule, settings.guidance):
        for place, sampler in enumerate([one for one in solvers if samplers.fits(guidance, one)]):
            shown = study.shown(guidance, sampler, guidance.w or settings.w, num_steps=settings.num_steps)
            how = {'num_steps': settings.num_steps}
            rows += [row | study.twin(guidance, sampler, row['w'], **how) for row, _ in shown]
            if place == 0:
                panels.append(plots.Panels(guidance.text, sampler.text, guidance.w is not None, shown))
    return rows, panels


def _tilted_rows(study: Study, ws: Sequence[float]) -> tuple[list[Row], list[plots.Panels]]:
    """Measures the third table, of one seed; returns its rows and their panels."""
    panels = []
    for text, num_steps in study.settings.tilted:
        shown = study.shown(Cfg(), samplers.parse_solver(text), ws, num_steps=num_steps, num_seeds=1)
        panels.append(plots.Panels(f'T = {num_steps}, {shown[-1][0]["passes"]} evaluations', text, False, shown))
    return [row for line in panels for row, _ in line.shown], panels


def _sampler_rows(study: Study) -> Iterable[Row]:
    """Measures the rows of the second table."""
    settings = study.settings
    for sampler in map(samplers.parse_solver, settings.samplers):
        log.info('mixture: steps of %s', sampler.text)
        for num_steps, w in itertools.product(settings.steps, settings.steps_w):
            yield study.measure(Cfg(), sampler, w, num_steps=num_steps)[0]
