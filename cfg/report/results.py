"""Reading what the evaluation wrote: the rows of results.jsonl, the curves they form, the sample files."""

import dataclasses
import json
import math
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfg.diffusion.sampler import USUAL
from cfg.runtime.errors import UserError

Row = dict[str, Any]

RESULTS_FILE = 'results.jsonl'

REQUIRED_KEYS = ('step', 'w', 'fid', 'inception_score', 'num_samples', 'features')

# What makes a row the measurement that it is; rows that differ in nothing of it but w are a curve.
IDENTITY_KEYS = (
    'step',
    'w',
    'ema',
    'seed',
    'sampling',
    'params_sha256',
    'uncond_params_sha256',
    'weaker_params_sha256',
    'classifier_params_sha256',
    'num_samples',
    'labels',
    'is_split_size',
    'neighbours_dtype',
    'kid_subsets',
    'kid_subset_size',
    'num_reference_features',
    'features',
    'features_sha256',
    'classifier',
    'reference_sha256',
)

# What a label names where curves differ in it, beside the step and the entries of 'sampling'.
_SETTING_KEYS = ('p_uncond', 'features', 'reference', 'labels', 'ema', 'seed', 'num_samples', 'is_split_size')
# These say little to people, and the hashes differ between steps by nature, so a label names them only where it would
# be ambiguous without.
_DETAIL_KEYS = ('neighbours_dtype', 'kid_subsets', 'kid_subset_size', 'num_reference_features', 'classifier')
_HASH_KEYS = (
    *('params_sha256', 'uncond_params_sha256', 'weaker_params_sha256', 'classifier_params_sha256'),
    *('features_sha256', 'reference_sha256'),
)

_COUNTS = ('step', 'w', 'num_samples')  # of every row that has them: finite numbers
_SCORES = (
    *('fid', 'sfid', 'inception_score', 'precision', 'recall', 'kid', 'kid_standard_error', 'accuracy'),
    *('finite_sample_fid', 'floor_fid', 'floor_inception_score', 'floor_accuracy'),
)  # numbers, null where they could not be measured


@dataclasses.dataclass(frozen=True)
class Curve:
    """The rows that differ in nothing but w, in ascending w.

    Attributes:
        key: unique among the curves of a report; the step, with '.2', '.3', ... for further curves of that step.
        label: what tells this curve from the others, for people.
        step: the checkpoint's step.
        rows: one row a w.
    """

    key: str
    label: str
    step: int
    rows: tuple[Row, ...]

    def values(self, name: str) -> np.ndarray:
        """The number under `name` of each row, float64 [len(rows)]; nan where it is absent or null."""
        return np.array([number(row, name) for row in self.rows])

    @property
    def best_fid(self) -> int | None:
        """Index of the row of lowest FID; None if no FID is finite."""
        return _best(-self.values('fid'))

    @property
    def best_inception_score(self) -> int | None:
        """Index of the row of highest inception score; None if none is finite."""
        return _best(self.values('inception_score'))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images, uint8 [N, H, W, C] with C 1 or 3, and their intended labels, int32 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> 'Samples':
        """The samples at `indices`, in that order."""
        return Samples(self.images[indices], self.labels[indices])


def read_rows(path: str | Path) -> list[Row]:
    """Reads a file of one JSON object a line, in the file's order.

    A last line that is not JSON is what a killed process leaves behind, and is ignored.

    Raises:
        UserError: the file is missing, a line before the last one is not a JSON object, or what must be a number is
            none.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f'{path} does not exist: run --mode=eval first.') from None
    lines = [(number, line) for number, line in enumerate(content.split(b'\n'), start=1) if line.strip()]
    rows = []
    for line_number, line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            if line_number == lines[-1][0]:
                break
            row = None
        if not isinstance(row, dict):
            raise UserError(f'Line {line_number} of {path} is not a JSON object: delete that line or mend it.')
        _check_numbers(row, f'Line {line_number} of {path}')
        rows.append(row)
    return rows


def _check_numbers(row: Row, named: str) -> None:
    for key in (*_COUNTS, *_SCORES):
        value = row.get(key, 0)
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _COUNTS:
            right, what = right and math.isfinite(value), 'finite number'
        else:
            right, what = right or value is None, 'number'
        if not right:
            raise UserError(f'{named} has {key}={json.dumps(value)}, which is no {what}: delete that line or mend it.')


def read_results(workdir: str | Path) -> list[Row]:
    """The rows of `results.jsonl` and of every `results.job*.jsonl` beside it, in that order, each measurement once.

    Rows that agree under 'identity' are one measurement, and the first of them counts; a row without is one of its own.

    Returns:
        [] where there is no such file.

    Raises:
        UserError: as in `read_rows`.
    """
    workdir = Path(workdir)
    main = workdir / RESULTS_FILE
    paths = [main] * main.exists() + sorted(workdir.glob('results.job*.jsonl'), key=_by_numbers)
    found: dict[Any, Row] = {}
    for path in paths:
        for row in read_rows(path):
            found.setdefault(row.get('identity', len(found)), row)
    return list(found.values())


def _by_numbers(path: Path) -> list[int]:
    """job2of10 before job10of10."""
    return [int(number) for number in re.findall(r'\d+', path.name)]


def is_complete(row: Row) -> bool:
    """Whether the row has all that a report cannot do without."""
    return all(key in row for key in REQUIRED_KEYS)


def number(row: Row, name: str) -> float:
    """The number under `name`; nan where it is absent or null."""
    value = row.get(name)
    return math.nan if value is None else float(value)


def sampling_of(row: Row) -> dict[str, Any]:
    """What a row says of its sampler, with the parts that it does not name as they are the usual ones."""
    return USUAL | (row.get('sampling') or {})


def label_in(row: Row) -> str:
    """Which blocks of the network are told the label; older rows do not say."""
    return row.get('label_in', 'everywhere')


def group_curves(rows: Sequence[Row]) -> list[Curve]:
    """Groups complete rows into curves, in ascending step.

    Of several rows of the same curve and w the last one counts: it is the newest.
    """
    groups: dict[str, dict[float, Row]] = {}
    for row in rows:
        settings = _settings(row) | {key: row.get(key) for key in IDENTITY_KEYS if key != 'w'}
        identity = json.dumps(settings, sort_keys=True)
        groups.setdefault(identity, {})[float(row['w'])] = row
    sorted_groups = sorted(groups.values(), key=lambda group: next(iter(group.values()))['step'])
    members = [tuple(group[w] for w in sorted(group)) for group in sorted_groups]
    labels = _labels([member[0] for member in members])
    keys = _keys([member[0]['step'] for member in members])
    return [
        Curve(key=key, label=label, step=member[0]['step'], rows=member)
        for key, label, member in zip(keys, labels, members, strict=True)
    ]


def floors(curves: Sequence[Curve]) -> dict[str, Row]:
    """A row for each floor of real data, by what the floor is, with the features where they differ."""
    rows = [row for curve in curves for row in curve.rows if math.isfinite(number(row, 'floor_fid'))]
    several = len({row['features'] for row in rows}) > 1
    found = {}
    for row in rows:
        label = row.get('floor') or 'real data'
        found[f'{label}, {row["features"]}' if several else label] = row
    return found


def finite_sample_floors(curves: Sequence[Curve]) -> list[tuple[int, float]]:
    """(number of samples, the FID that so many draws of a Gaussian with the reference's own moments would score)."""
    rows = [row for curve in curves for row in curve.rows if math.isfinite(number(row, 'finite_sample_fid'))]
    return list(dict.fromkeys((int(row['num_samples']), number(row, 'finite_sample_fid')) for row in rows))


def load_samples(path: Path) -> Samples | None:
    """Reads a sample file; None if it was deleted or cut off."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Samples(images=archive['arr_0'], labels=archive['arr_1'])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def mixed_order(labels: np.ndarray) -> np.ndarray:
    """An order of the samples in which every prefix is as even over the classes as it can be.

    The first sample of each class comes first, then the second of each, whatever order the labels are
    in. Labels that already alternate (0, 1, ..., 9, 0, 1, ...) keep their order.

    Args:
        labels: int [N].

    Returns:
        Indices, int [N].
    """
    by_class = np.argsort(labels, kind='stable')
    _, counts = np.unique(labels, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.concatenate([np.arange(count) for count in counts]) if len(counts) else []
    return np.argsort(rank, kind='stable')


def _best(values: np.ndarray) -> int | None:
    finite = np.isfinite(values)
    return int(np.argmax(np.where(finite, values, -np.inf))) if finite.any() else None


def _settings(row: Row) -> dict[str, Any]:
    """What tells curves of one step apart and can be read by people, flat."""
    sampling = row.get('sampling') or {}
    settings = {key: row.get(key) for key in _SETTING_KEYS}
    settings['label_in'] = label_in(row)
    return settings | {f'sampling.{key}': sampling[key] for key in sampling}


def _keys(steps: Sequence[int]) -> list[str]:
    keys = []
    for position, step in enumerate(steps):
        earlier = steps[:position].count(step)
        keys.append(f'{step}.{earlier + 1}' if earlier else str(step))
    return keys


def _labels(firsts: Sequence[Row]) -> list[str]:
    """A label for each curve, from one row of each: only what differs between the curves."""
    settings = [_settings(row) for row in firsts]
    names = [name for name in dict.fromkeys(name for s in settings for name in s) if _differs(settings, name)]
    labels = []
    for row, setting in zip(firsts, settings, strict=True):
        parts = [_phrase(name, setting.get(name)) for name in names]
        if not parts or _differs(firsts, 'step'):
            parts.insert(0, f'step {row["step"]:,}')
        labels.append(', '.join(parts))
    return _told_apart(_told_apart(labels, firsts, _DETAIL_KEYS), firsts, _HASH_KEYS)


def _told_apart(labels: Sequence[str], firsts: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Labels that several curves share, with what differs between these."""
    told = []
    for label, row in zip(labels, firsts, strict=True):
        same = [other for other, shared in zip(firsts, labels, strict=True) if shared == label]
        told.append(', '.join([label, *(_phrase(name, row.get(name)) for name in names if _differs(same, name))]))
    return told


def _differs(rows: Sequence[Row], name: str) -> bool:
    return any(row.get(name) != rows[0].get(name) for row in rows)


def _phrase(name: str, value: Any) -> str:
    """A setting in the fewest words that still say what it is."""
    name = name.removeprefix('sampling.')
    if name in ('features', 'reference', 'sampler'):
        return str(value)
    if name == 'guidance':
        return str(value or USUAL[name])
    if name == 'grid':
        return f'{value or USUAL[name]} grid'
    if name == 'num_samples':
        return f'{value:,} samples'
    if name == 'p_uncond':
        return f'p_uncond = {value:g}' if value is not None else 'p_uncond unknown'
    if name == 'label_in':
        return f'label in the {value}' if value == 'decoder' else f'label {value}'
    if name == 'num_steps':
        return f'T = {value}'
    if name == 'logvar_interp':
        return f'v = {value:g}' if value is not None else 'no v'
    if name == 'neighbours_dtype':
        return f'precision and recall in {value}'
    if name == 'num_reference_features':
        return f'{value:,} reference images' if value else 'no reference images'
    if name == 'classifier':
        return f'classes by {value}' if value else 'no classifier'
    if name == 'uncond_params_sha256':
        return f'second model {value[:8]}' if value else 'no second model'
    if name in _HASH_KEYS:
        return f'{name.removesuffix("_sha256")} {str(value)[:8]}'
    if isinstance(value, bool):
        return name if value else f'no {name}'
    return f'{name} {value}'
