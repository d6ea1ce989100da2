"""What rows of several rules, samplers and runs say of each other: means with their spread, and the best at a cost."""

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfg.report.results import Row, is_complete, label_in, number, sampling_of
from cfg.runtime.errors import UserError

log = logging.getLogger('cfg')

# Scores are compared only where these agree; the other settings of a row are what is compared.
_SAME = ('num_samples', 'labels', 'is_split_size', 'features_sha256', 'reference_sha256')
_CLASSIFIER = 'classifier_params_sha256'
_COMPANIONS = ('uncond_params_sha256', 'weaker_params_sha256', _CLASSIFIER)


@dataclass(frozen=True)
class Setting:
    """How samples were drawn, but for w.

    Attributes:
        step: of the checkpoint.
        guidance, sampler, grid: their texts.
        num_steps: T.
        logvar_interp: the paper's v; None of samplers that have none.
        networks: 0, or a number for each further set of networks that was used in this way: other classifiers, or
            in one run other weaker models, or parameters of the step itself after it was trained again.
        rest: everything else, as JSON.
    """

    step: int
    guidance: str
    sampler: str
    grid: str
    num_steps: int
    logvar_interp: float | None
    networks: int
    rest: str


@dataclass(frozen=True)
class Point:
    """One setting at one w, over all repetitions.

    Attributes:
        setting: how.
        w: the guidance strength.
        cost: network evaluations for one sample, those of other networks by their share of the model's arithmetic.
        fid, inception_score: means over the repetitions.
        fid_spread, inception_score_spread: standard deviations over the repetitions, n - 1; nan for one.
        count: of the repetitions.
        fids: ((repetition, FID), ...), a repetition being the number of a run or a sampling seed.
    """

    setting: Setting
    w: float
    cost: float
    fid: float
    fid_spread: float
    inception_score: float
    inception_score_spread: float
    count: int
    fids: tuple[tuple[int, float], ...]


def points(runs: Sequence[Sequence[Row]]) -> list[Point]:
    """Points of the rows of each run, in the order of the first rows.

    With several runs, one training seed each, the repetitions are the runs, and within a run the mean over sampling
    seeds counts; with one run they are its sampling seeds. Rows that cannot be compared with the newest one of the
    first run are left out, and counted in the log.

    Raises:
        UserError: when this leaves nothing of a run.
    """
    costed = [[row for row in run if is_complete(row) and cost_of(row) is not None] for run in runs]
    newest = next((run[-1] for run in costed if run), {})
    alike = [[row for row in run if all(row.get(k) == newest.get(k) for k in _SAME)] for run in costed]
    for number_of_run, (kept, run) in enumerate(zip(alike, costed, strict=True), start=1):
        if run and not kept:
            names = [name for name in _SAME if run[-1].get(name) != newest.get(name)]
            raise UserError(
                f'No row of run {number_of_run} can be compared with those of the first, as they differ in '
                f'{", ".join(names)}: evaluate all runs in the same way, or leave it out of config.report.workdirs.'
            )
    left_out = sum(map(len, runs)) - sum(map(len, alike))
    if left_out:
        log.info('%d rows are left out: of other metrics or numbers of samples, or without a known cost.', left_out)
    found: dict[tuple[Setting, float], dict[int, list[Row]]] = {}
    sets: dict[Setting, list[tuple]] = {}
    for number_of_run, run in enumerate(alike):
        own_sets: dict[Setting, list[tuple]] = {}
        for row in run:
            setting = _setting(row)
            # Every run has its own networks, which go by their order, but one classifier may serve all.
            own = tuple(row.get(name) for name in ('params_sha256', *_COMPANIONS) if name != _CLASSIFIER)
            networks = _place(own, own_sets.setdefault(setting, [])), row.get(_CLASSIFIER)
            setting = dataclasses.replace(setting, networks=_place(networks, sets.setdefault(setting, [])))
            found.setdefault((setting, float(row['w'])), {}).setdefault(number_of_run, []).append(row)
    several = sum(map(bool, alike)) > 1
    return [_point(setting, w, by_run, several=several) for (setting, w), by_run in found.items()]


def _place(value: Any, known: list[Any]) -> int:
    """The place of a value in a list, at whose end it is put if it is new."""
    if value not in known:
        known.append(value)
    return known.index(value)


def cost_of(row: Row) -> float | None:
    """The 'cost' of a row; of one that was written before there was any, what it must have been, or None."""
    if 'cost' in row:
        return float(row['cost'])
    sampling = row.get('sampling')
    if not sampling or 'num_steps' not in sampling or any(row.get(name) for name in _COMPANIONS):
        return None
    return float(sampling['num_steps'] * (1 if row['w'] in (0.0, -1.0) else 2))


def _setting(row: Row) -> Setting:
    sampling = sampling_of(row)
    named = {name: sampling.pop(name) for name in ('guidance', 'sampler', 'grid', 'num_steps')}
    named['logvar_interp'] = sampling.pop('logvar_interp', None)
    rest = sampling | {name: row.get(name) for name in ('ema', 'p_uncond', 'classifier')}
    rest |= {name.removesuffix('_params_sha256'): bool(row.get(name)) for name in _COMPANIONS[:1]}
    rest['label_in'] = label_in(row)
    return Setting(step=row['step'], **named, networks=0, rest=json.dumps(rest, sort_keys=True))


def _point(setting: Setting, w: float, by_run: dict[int, list[Row]], *, several: bool) -> Point:
    groups: dict[int, list[Row]] = by_run
    if not several:
        groups = {}
        for rows in by_run.values():
            for row in rows:
                groups.setdefault(row.get('seed', 0), []).append(row)
    values = {}
    for name in ('fid', 'inception_score'):
        scores = [float(np.mean([number(row, name) for row in rows])) for rows in groups.values()]
        values[name] = float(np.mean(scores))
        values[f'{name}_spread'] = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
        if name == 'fid':
            values['fids'] = tuple(zip(groups, scores, strict=True))
    first = next(iter(groups.values()))[0]
    return Point(setting, w, cost_of(first), count=len(groups), **values)


def curves(found: Sequence[Point]) -> dict[Setting, list[Point]]:
    """The points of each setting in ascending w."""
    by_setting: dict[Setting, list[Point]] = {}
    for point in sorted(found, key=lambda point: point.w):
        by_setting.setdefault(point.setting, []).append(point)
    return {setting: by_setting[setting] for setting in dict.fromkeys(point.setting for point in found)}


def best(found: Sequence[Point], cost: float = math.inf) -> Point | None:
    """The point of lowest mean FID among those that cost no more; None where there is none.

    Points with fewer repetitions than others of `found` do not count: theirs may be the lowest by luck.
    """
    most = max((point.count for point in found), default=0)
    affordable = [point for point in found if point.cost <= cost * (1 + 1e-9) and math.isfinite(point.fid)]
    affordable = [point for point in affordable if point.count == most]
    return min(affordable, key=lambda point: point.fid, default=None)


def budgets(found: Sequence[Point], most: int = 6) -> list[float]:
    """Costs at which rules are compared: those that the points have, at most so many of them, evenly picked."""
    costs = sorted({point.cost for point in found})
    if len(costs) <= most:
        return costs
    return [costs[round(place)] for place in np.linspace(0, len(costs) - 1, most)]


def differs(a: Point, b: Point) -> float:
    """(FID of a - FID of b), over the repetitions that both have, in standard errors of its mean: Student's paired t.

    What a repetition has in common, such as the luck of its training, drops out. nan for fewer than two, or where all
    differences are equal.
    """
    of_b = dict(b.fids)
    differences = [fid - of_b[repetition] for repetition, fid in a.fids if repetition in of_b]
    if len(differences) < 2:
        return math.nan
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return float(np.mean(differences)) / error if error > 0 else math.nan
