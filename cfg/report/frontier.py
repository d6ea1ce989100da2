"""Compares rows of several rules, samplers and runs: means with their spread, and the best at a cost."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfg.report.curves import grouped, number
from cfg.report.rows import Row
from cfg.runtime.errors import UserError

log = logging.getLogger('cfg')

# What Student's t exceeds by chance in a twentieth of the cases, for 2, 3, ... repetitions.
_CHANCE = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
# Scores are compared only where these agree; the other settings of a row are what is compared.
_SAME = ('num_samples', 'labels', 'is_split_size', 'features_sha256', 'reference_sha256')


class Run(NamedTuple):
    """A run is a workdir that is compared."""

    folder: Path
    network: str = ''  # the name of its network, that runs of other seeds share; '' where all have the same
    seed: int = 0  # of its training


@dataclass(frozen=True)
class Setting:
    """A setting is how samples were drawn, but for w.

    Its number of networks is 0, or one for each further set of networks that was used in this way: other classifiers,
    or in one run other weaker models, or parameters of the step itself after it was trained again.
    """

    network: str  # of its run
    step: int  # of the checkpoint
    guidance: str  # this and the next two: their texts
    sampler: str
    grid: str
    num_steps: int  # T
    logvar_interp: float | None  # the paper's v; None of samplers that have none
    networks: int
    rest: tuple[tuple[str, Any], ...]  # everything else, by name

    @property
    def rule(self) -> tuple:
        """Returns what makes two settings the same rule."""
        return self.network, self.step, self.guidance, self.networks, self.rest

    @property
    def way(self) -> tuple:
        """Returns the way to sample a rule: everything else."""
        return self.sampler, self.grid, self.num_steps, self.logvar_interp


@dataclass(frozen=True)
class Point:
    """A point is one setting at one w, over all repetitions.

    Scores are means over them, nan where one has none; spreads are standard deviations (n - 1), of one repetition the
    standard error of its own samples, nan where that is not known.
    """

    setting: Setting
    w: float
    cost: float  # network evaluations for one sample, those of other networks by their share of the model's arithmetic
    fid: float
    fid_spread: float
    inception_score: float
    inception_score_spread: float
    count: int  # of the repetitions
    fids: tuple[tuple[int, float], ...]  # of each repetition, by the seed of its training or its sampling


def points(runs: Sequence[Sequence[Row]], origins: Sequence[Run] = ()) -> list[Point]:
    """Makes points of the rows of each run, in the order in which their first rows were finished.

    With several runs of a network, one training seed each, the repetitions are the runs, and within a run the mean over
    sampling seeds counts; with one run of each they are its sampling seeds. Rows that cannot be compared with the
    newest one of the first run are left out, and counted in the log.

    Args:
      origins: what each run is; by default they are runs of one network.

    Raises:
        UserError: when this leaves nothing of a run.
    """
    origins = origins or [Run(Path(), seed=number) for number in range(len(runs))]
    runs = [sorted(run, key=_finished) for run in runs]
    wanted = _same(newest(runs)) if any(runs) else {}
    alike = [[row for row in run if _same(row) == wanted] for run in runs]
    for number_of_run, (kept, run) in enumerate(zip(alike, runs, strict=True), start=1):
        if run and not kept:
            names = [name for name, value in _same(run[-1]).items() if value != wanted[name]]
            raise UserError(
                f'No row of run {number_of_run} can be compared with those of the first, as they differ in '
                f'{", ".join(names)}: evaluate all runs in the same way, or leave it out of config.report.workdirs.'
            )
    left_out = sum(map(len, runs)) - sum(map(len, alike))
    if left_out:
        log.info('%d rows are left out: of other metrics or numbers of samples.', left_out)
    several = repeated([origin for kept, origin in zip(alike, origins, strict=True) if kept])
    found: dict[tuple[Setting, float], list[tuple[int, Row]]] = {}
    sets: dict[Setting, list[tuple]] = {}
    for origin, run in zip(origins, alike, strict=True):
        own_sets: dict[Setting, list[tuple]] = {}
        for row in run:
            setting, source = setting_of(row, origin.network), row.source
            # Every run has its own networks, which go by their order, but one classifier may serve all.
            own = source.params_sha256, source.uncond_params_sha256, source.weaker_params_sha256
            networks = _place(own, own_sets.setdefault(setting, [])), source.classifier_params_sha256
            setting = dataclasses.replace(setting, networks=_place(networks, sets.setdefault(setting, [])))
            repetition = origin.seed if several else source.seed
            found.setdefault((setting, source.w), []).append((repetition, row))
    return [_point(setting, w, rows) for (setting, w), rows in found.items()]


def repeated(origins: Sequence[Run]) -> bool:
    """Tells whether some network has several runs, which are then the repetitions; else sampling seeds are."""
    return len({origin.network for origin in origins}) < len(origins)


def newest(runs: Sequence[Sequence[Row]]) -> Row:
    """Returns the row that was finished last, of the first run that has any."""
    return max(next(run for run in runs if run), key=_finished)


def _finished(row: Row) -> str:
    return row.origin.finished


def _same(row: Row) -> dict[str, Any]:
    return {name: row.flat[name] for name in _SAME}


def _place(value: Any, known: list[Any]) -> int:
    """Returns the place of a value in a list, at whose end it is put if it is new."""
    if value not in known:
        known.append(value)
    return known.index(value)


def setting_of(row: Row, network: str) -> Setting:
    """Returns the setting of a row of a network, without the number of others that were used in this way."""
    rest = dataclasses.asdict(row.source.sampling)
    named = {name: rest.pop(name) for name in ('guidance', 'sampler', 'grid', 'num_steps', 'logvar_interp')}
    rest |= {'ema': row.source.ema, 'p_uncond': row.p_uncond, 'classifier': row.method.classifier}
    rest |= {'ema_length': row.source.ema_length, 'label_in': row.label_in}
    rest |= {'uncond': row.source.uncond_params_sha256 is not None}
    return Setting(network, row.source.step, **named, networks=0, rest=tuple(rest.items()))


def _point(setting: Setting, w: float, rows: Sequence[tuple[int, Row]]) -> Point:
    """Makes a point of the rows of each repetition."""
    groups, values = grouped(rows, lambda pair: pair[0]), {}
    for name in ('fid', 'inception_score'):
        scores = [float(np.mean([number(getattr(row.scores, name)) for _, row in group])) for group in groups.values()]
        values[name] = float(np.mean(scores))
        errors = [number(getattr(row.scores, f'{name}_standard_error')) for _, row in rows]
        values[f'{name}_spread'] = float(np.std(scores, ddof=1)) if len(scores) > 1 else max(errors)
        if name == 'fid':
            values['fids'] = tuple(zip(groups, scores, strict=True))
    return Point(setting, w, rows[0][1].cost, count=len(groups), **values)


def curves(found: Sequence[Point]) -> dict[Setting, list[Point]]:
    """Returns the points of each setting in ascending w."""
    groups = grouped(found, lambda point: point.setting)
    return {setting: sorted(group, key=lambda point: point.w) for setting, group in groups.items()}


def best(found: Sequence[Point], cost: float = math.inf) -> Point | None:
    """Returns the point of lowest mean FID among those that cost no more; None where there is none.

    Points with fewer repetitions than others of `found` do not count: theirs may be the lowest by luck.
    """
    most = max((point.count for point in found), default=0)
    alike = [point for point in found if point.count == most and math.isfinite(point.fid)]
    affordable = [point for point in alike if point.cost <= cost * (1 + 1e-9)]
    return min(affordable, key=lambda point: point.fid, default=None)


def budgets(found: Sequence[Point], most: int = 8) -> list[float]:
    """Picks the costs at which rules are compared, evenly from those that the points have, at most so many."""
    costs = sorted({point.cost for point in found})
    if len(costs) <= most:
        return costs
    return [costs[round(place)] for place in np.linspace(0, len(costs) - 1, most)]


def chance(spread: float, count: int) -> float:
    """Returns half the width of the 95 % interval of a mean, of 2 or more values with a standard deviation."""
    return _CHANCE[min(count - 2, len(_CHANCE) - 1)] * spread / math.sqrt(count)


def differs(a: Point, b: Point) -> float:
    """Returns the mean of (FID of a - FID of b) over the repetitions of both, in its standard errors: Student's t.

    What a repetition has in common, such as the luck of its training, drops out. nan for fewer than two, or where all
    differences are equal.
    """
    of_b = dict(b.fids)
    differences = [fid - of_b[repetition] for repetition, fid in a.fids if repetition in of_b]
    if len(differences) < 2:
        return math.nan
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return float(np.mean(differences)) / error if error > 0 else math.nan
