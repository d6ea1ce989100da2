"""Groups the rows of a sweep into curves, and names them."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cfg.report.rows import FileRow, Row, Sampling

T, K = TypeVar('T'), TypeVar('K', bound=Hashable)

# What a label names where curves differ in it, beside the step.
_SETTINGS = (
    *('p_uncond', 'features', 'reference', 'labels', 'ema', 'ema_length', 'seed', 'num_samples'),
    *('is_split_size', 'label_in'),
    *(field.name for field in dataclasses.fields(Sampling)),
)
# These say little to people, and the hashes differ between steps by nature, so a label names them only where it would
# be ambiguous without.
_DETAILS = ('neighbours_dtype', 'kid_subsets', 'kid_subset_size', 'num_reference_features', 'classifier', 'dinov2')
_HASHES = (
    *('params_sha256', 'uncond_params_sha256', 'weaker_params_sha256', 'classifier_params_sha256'),
    *('features_sha256', 'dinov2_sha256', 'reference_sha256'),
)

# Settings in the fewest words that still say what they are: with a value, and without one.
_PHRASES = dict.fromkeys(('features', 'reference', 'network', 'guidance', 'sampler'), ('{}', '')) | {
    'step': ('step {:,}', ''),
    'grid': ('{} grid', ''),
    'ema_length': ('EMA length {:g}', 'EMA by decay'),
    'num_samples': ('{:,} samples', ''),
    'p_uncond': ('p_uncond = {:g}', ''),
    'num_steps': ('T = {}', ''),
    'logvar_interp': ('v = {:g}', 'no v'),
    'neighbours_dtype': ('precision and recall in {}', ''),
    'num_reference_features': ('{:,} reference images', 'no reference images'),
    'classifier': ('classes by {}', 'no classifier'),
    'dinov2': ('FD of {}', 'no FD-DINOv2'),
    'dinov2_sha256': ('DINOv2 {:.8}', 'no DINOv2'),
    'uncond_params_sha256': ('second model {:.8}', 'no second model'),
    'weaker_params_sha256': ('weaker model {:.8}', 'no weaker model'),
    'classifier_params_sha256': ('guiding classifier {:.8}', 'no guiding classifier'),
}


class Scored:
    """A scored line has `w`, `fid` and `inception_score`, each float64 [N], nan where there is no number."""

    @property
    def fd_dinov2(self) -> np.ndarray:
        """Returns the FD-DINOv2 of each point, likewise."""
        return np.full(len(self.w), math.nan)

    @property
    def bests(self) -> dict[str, int]:
        """Returns where the distances are lowest and the inception score highest, by name, of those that there are."""
        scores = {'fid': -self.fid, 'inception_score': self.inception_score, 'fd_dinov2': -self.fd_dinov2}
        return {name: int(np.nanargmax(values)) for name, values in scores.items() if not np.isnan(values).all()}

    def bests_at(self, place: int) -> list[str]:
        """Returns the scores that are best at a place, by more than two standard errors from every other point."""
        return [name for name, best in self.bests.items() if best == place and self._clear(name, best)]

    def errors(self, name: str) -> np.ndarray:
        """Returns the standard errors of a score, float64 [N]; nan if not known. Published scores have 0."""
        return np.zeros(len(self.w))

    def _clear(self, name: str, best: int) -> bool:
        """Tells whether there are others, and the best is two errors from each, as of independent samples."""
        values, errors = getattr(self, name), self.errors(name)
        far = np.abs(values - values[best]) > 2 * np.hypot(errors, errors[best])  # never where an error is not known
        others = ~np.isnan(values)
        others[best] = False
        return bool(others.any() and far[others].all())


@dataclass(frozen=True)
class Curve(Scored):
    """A curve is the rows that differ in nothing but w, in ascending w."""

    key: str  # unique among the curves of a report; the step, with '.2', '.3', ... for further curves of that step
    told: Mapping[str, str]  # the settings that tell this curve from the others, in words, by their names
    rows: tuple[Row, ...]  # one a w

    @property
    def label(self) -> str:
        """Returns what tells this curve from the others, for people."""
        return ', '.join(self.told.values())

    @property
    def step(self) -> int:
        """Returns the step of the checkpoint."""
        return self.rows[0].source.step

    @property
    def w(self) -> np.ndarray:
        """Returns the guidance strengths, float64 [len(rows)]."""
        return np.array([row.source.w for row in self.rows])

    @property
    def fid(self) -> np.ndarray:
        """Returns the FID of each row, float64 [len(rows)]; nan where it could not be measured."""
        return np.array([number(row.scores.fid) for row in self.rows])

    def errors(self, name: str) -> np.ndarray:
        """Returns the standard errors of a score, likewise."""
        return np.array([number(getattr(row.scores, f'{name}_standard_error', None)) for row in self.rows])

    @property
    def inception_score(self) -> np.ndarray:
        """Returns the inception score of each row, likewise."""
        return np.array([number(row.scores.inception_score) for row in self.rows])

    @property
    def fd_dinov2(self) -> np.ndarray:
        """Returns the FD-DINOv2 of each row, likewise."""
        return np.array([number(row.scores.fd_dinov2) for row in self.rows])


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Groups items by a key, in the order in which the keys come."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def number(value: float | None) -> float:
    """Returns a score, nan for None."""
    return math.nan if value is None else value


def alike(row: Row) -> tuple:
    """Returns what rows of one curve have in common: all but w."""
    source = dataclasses.replace(row.source, w=0.0)
    return source, row.method, row.p_uncond, row.label_in, row.beside.reference


def group_curves(rows: Sequence[Row]) -> list[Curve]:
    """Groups rows into curves, in ascending step; of several rows of one curve and w the last one counts."""
    groups = [{row.source.w: row for row in group} for group in grouped(rows, alike).values()]
    members = [tuple(group[w] for w in sorted(group)) for group in groups]
    members.sort(key=lambda rows: rows[0].source.step)
    curves, steps = [], []
    for settings, rows in zip(told([rows[0].settings for rows in members]), members, strict=True):
        steps.append(step := rows[0].source.step)
        count = steps.count(step)
        curves.append(Curve(f'{step}.{count}' if count > 1 else str(step), settings, rows))
    return curves


def phrase(name: str, value: Any) -> str:
    """Returns the setting of a row in words."""
    if name in _PHRASES:
        form, without = _PHRASES[name]
        return without if value is None else form.format(value)
    if name == 'label_in':
        return f'label in the {value}' if value == 'decoder' else f'label {value}'
    if isinstance(value, bool):
        return name if value else f'no {name}'
    return f'{name.removesuffix("_sha256")} {value[:8]}' if name in _HASHES else f'{name} {value}'


def floors(curves: Sequence[Curve]) -> dict[str, Row]:
    """Returns the newest row of each floor of real data, by what that is, with the features where they differ."""
    rows = [row for curve in curves for row in curve.rows if row.beside.floor_fid is not None]
    rows.sort(key=lambda row: row.origin.finished)
    several = len({row.method.networks for row in rows}) > 1
    return {f'{row.beside.floor}, {row.method.networks}' if several else row.beside.floor: row for row in rows}


def finite_sample_floors(rows: Iterable[Row | FileRow]) -> list[tuple[str, float]]:
    """Returns the FIDs that as many real images score as rows have samples, each with a text that names it."""
    text = '{:,} real images drawn as the samples, {}'.format
    drawn = [row for row in rows if row.beside.finite_sample_draws is not None]
    named = [
        (text(row.method.num_samples, row.beside.finite_sample_draws), row.beside.finite_sample_fid) for row in drawn
    ]
    return list(dict.fromkeys(named))


def told(firsts: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Returns what differs between the curves, in words by the settings' names, from the settings of a row of each."""
    names = _differing(firsts, _SETTINGS)
    if not names or _differing(firsts, ['step']):
        names.insert(0, 'step')
    found = [{name: phrase(name, settings[name]) for name in names} for settings in firsts]
    for more in (_DETAILS, _HASHES):  # what differs between curves that are told alike is added to them
        for group in grouped(range(len(firsts)), lambda i: tuple(found[i].values())).values():
            for name, i in itertools.product(_differing([firsts[i] for i in group], more), group):
                found[i][name] = phrase(name, firsts[i][name])
    return found


def _differing(settings: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(other[name] != settings[0][name] for other in settings)]
