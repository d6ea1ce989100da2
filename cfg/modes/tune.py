"""Runs `--mode=tune`, which searches for the setting of lowest FID within a budget and measures it on fresh seeds."""

import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cfg.evaluation import halving, sweep
from cfg.evaluation.candidates import as_sweep, candidates, is_plain
from cfg.evaluation.halving import Rung
from cfg.evaluation.points import Point
from cfg.report import tuned
from cfg.report.rows import TUNED
from cfg.report.tuned import Fresh, Round
from cfg.runtime import processes
from cfg.runtime.errors import UserError

log = logging.getLogger('cfg')

FRESH = 1000  # the seeds of the fresh samples begin so far above the first one
_CHOSE = f'{TUNED}: one of many that a setting was chosen from, of which the lowest FID is too low.'
_FRESH = f'{TUNED}: fresh samples of a setting that others chose.'


def run(config: ConfigDict, workdir: Path) -> str | None:
    """Searches by successive halving; returns what was found, on the first process.

    Raises:
      UserError: on a budget too small for a search, and on what a sweep refuses, before any sample is drawn.
    """
    if config.eval.job != '1/1':
        raise UserError(f'config.eval.job={config.eval.job!r} must be 1/1 with --mode=tune, which is one job.')
    searched = processes.on_each(lambda: as_sweep(config, workdir))
    found, notes = processes.on_each(lambda: candidates(searched, workdir))
    rungs = _rungs(config, len(found))
    ranks = np.random.default_rng(config.tune.seed).permutation(len(found)).tolist()
    drawn = sorted(halving.kept(ranks, rungs[0].candidates, [is_plain(point) for point in found]))
    notes += _notes(config, rungs, len(found))
    for note in notes:
        log.info('%s', note)
    with sweep.opened(searched, workdir, fewest=config.tune.first_samples) as opened:
        search = _Search(opened, config, rungs)
        chosen, beside = search.climb(found, drawn)
        entrants = search.fresh([point for point in (chosen, beside) if point])
        return processes.on_first(
            lambda: tuned.write(
                workdir,
                chosen=entrants[0],
                beside=entrants[1] if beside else None,
                setting=setting(chosen),
                rounds=search.rounds,
                notes=notes,
            )
        )


def setting(point: Point) -> dict[str, Any]:
    """Returns the fields of a config that make a point the setting of `--mode=sample`, and of `--mode=eval`."""
    sampler, w = point.sampler, (point.w,)
    found = {'guidance': sampler.rule.whole_text, 'w': w, 'sampler': sampler.solver.text, 'grid': sampler.grid.text}
    found |= {'num_steps': sampler.num_steps, 'step': point.step, 'ema': point.ema}
    found |= {'ema_length': point.ema_length} if point.ema_length else {}
    return {f'sampling.{name}': value for name, value in found.items()} | {'eval.w': w, 'eval.steps': (point.step,)}


def _rungs(config: ConfigDict, count: int) -> list[Rung]:
    tune, final = config.tune, 2 * config.tune.final_seeds * config.eval.num_samples
    rungs = halving.plan(tune.samples - final, candidates=count, least=tune.first_samples, factor=tune.factor)
    if not rungs:
        raise UserError(
            f'config.tune.samples={tune.samples} is too small: the fresh samples at the end take {final} of them, and '
            f'two candidates of config.tune.first_samples={tune.first_samples} each come before; give '
            f'{final + 2 * tune.first_samples} or more.'
        )
    return rungs


def _notes(config: ConfigDict, rungs: Sequence[Rung], count: int) -> list[str]:
    tune, first = config.tune, rungs[0].candidates
    notes = [f'{count} candidates take at most {tune.evaluations} evaluations a sample.']
    if first < count:
        notes.append(f'The first rung has room for {first}: a random choice (config.tune.seed={tune.seed}).')
    sizes = ', '.join(f'{rung.candidates} x {rung.samples:,}' for rung in rungs)
    last = f'{tune.final_seeds} x {config.eval.num_samples:,}'
    return [*notes, f'Samples of the rungs: {sizes}; at the end {last} fresh ones of each of two.']


def _words(point: Point) -> str:
    sampler, averaged = point.sampler, '' if point.ema else ', not averaged'
    way = f'{sampler.solver.text}, grid {sampler.grid.text}, T = {sampler.num_steps}'
    return f'{sampler.rule.whole_text}, w = {point.w:g}, {way}, step {point.step}{averaged}'


class _Search:
    """A search measures candidates rung by rung; every process takes the same steps."""

    def __init__(self, opened: sweep.Sweep, config: ConfigDict, rungs: Sequence[Rung]):
        self._opened, self._tune, self._rungs, self._final = opened, config.tune, rungs, config.eval.num_samples
        self._before = 0  # samples so far, and all
        self._total = 2 * config.tune.final_seeds * self._final + sum(math.prod(rung) for rung in rungs)
        self.rounds: list[Round] = []

    def climb(self, found: Sequence[Point], drawn: Sequence[int]) -> tuple[Point, Point | None]:
        """Returns the best of the last rung, and the best plain one, or the best other one if that is plain."""

        def measure(number, alive):
            log.info('Rung %d of %d: %d settings.', number + 1, len(self._rungs), len(alive))
            # A seed for each rung, so that nobody's luck goes on with him.
            points = [found[place]._replace(seed=self._tune.seed + number) for place in sorted(alive)]
            what = f'tune, rung {number + 1} of {len(self._rungs)}'
            fids = dict(
                zip(sorted(alive), self._measure(points, self._rungs[number].samples, what, _CHOSE), strict=True)
            )
            return [math.inf if fids[place] is None else fids[place] for place in alive]

        climbed = halving.climb(self._rungs, drawn, [is_plain(point) for point in found], measure)
        for rung, one in zip(self._rungs, climbed, strict=True):
            words = tuple(_words(found[place]) for place in one.ranked)
            self.rounds.append(Round(rung.samples, words, one.kept))
        ranked = [found[place] for place in climbed[-1].ranked]
        return ranked[0], next((it for it in ranked if is_plain(it) is not is_plain(ranked[0])), None)

    def fresh(self, points: Sequence[Point]) -> list[Fresh]:
        """Measures settings on seeds that nothing was chosen by; what it returns is for the first process."""
        seeds = range(self._tune.seed + FRESH, self._tune.seed + FRESH + self._tune.final_seeds)
        asked = [point._replace(seed=seed) for point, seed in itertools.product(points, seeds)]
        if None in self._measure(asked, self._final, 'tune, fresh samples', _FRESH, last=True):
            raise UserError('The setting found has no FID on fresh samples: see the warnings above.')
        rows = iter(processes.on_first(self._opened.found) or [])
        return [Fresh(_words(point), tuple(itertools.islice(rows, len(seeds)))) for point in points]

    def _measure(
        self, points: Sequence[Point], samples: int, what: str, mark: str, *, last: bool = False
    ) -> list[float | None]:
        """Returns the FID of each, on every process; None for those that cannot be measured."""
        processes.on_each(lambda: self._opened.ask(points, num_samples=samples, mark=(mark,)))
        own = len(points) * samples
        after = 0 if last else self._total - self._before - own
        failures = self._opened.measure(what=what, before=self._before, after=after)
        self._before += own
        rows = processes.on_first(self._opened.found) or []
        fids = processes.from_first([row and row.scores.fid for row in rows])
        if not any(fid is not None for fid in fids):
            raise UserError(f'No setting could be measured; the first: {failures[0] if failures else "it has no FID"}')
        return fids
