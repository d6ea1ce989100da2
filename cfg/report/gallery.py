"""Makes what the gallery of a report's page shows: sheets of samples, and the scores of each w beside them."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cfg.report.curves import Curve
from cfg.report.rows import Row, Scores
from cfg.report.sample_files import Samples
from cfg.report.tables import Metric, present, score_text

COLUMNS = 10  # of a sheet
_QUALITY = 90  # of WebP
_NORMAL = 1.96  # standard errors to either side of a value hold the true one 19 times in 20

_OF_SAMPLES = ('fid', 'inception_score', 'fd_dinov2')  # these have errors that are the samples', and no fit's

OTHERS = 'the others'  # the value of a setting of those curves that are told apart without it
# The names of settings that say too little by themselves.
_TITLES = {'step': 'checkpoint', 'guidance': 'rule', 'num_steps': 'steps', 'ema_length': 'average'}
_TITLES |= {'logvar_interp': 'v of Alg. 2'}


class Shown(NamedTuple):
    """Holds samples to show, and the place of each in its seed's draw, int [N]."""

    samples: Samples
    index: np.ndarray


def sheet(images: np.ndarray, kind: str) -> str:
    """Puts images into one picture, in rows of `COLUMNS`, edge to edge; returns it as a text that a page can hold.

    Args:
        images: uint8 [N, H, W, C] with C 1 or 3.
        kind: 'png', which keeps every value, or 'webp', which is smaller.
    """
    count, height, width, channels = images.shape
    cells = np.pad(images, [(0, -count % COLUMNS), (0, 0), (0, 0), (0, 0)])
    rows = cells.reshape(-1, COLUMNS, height, width, channels).swapaxes(1, 2).reshape(-1, COLUMNS * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(rows[..., 0] if channels == 1 else rows).save(buffer, format=kind, quality=_QUALITY)
    return data_uri(buffer.getvalue(), kind)


def data_uri(picture: bytes, kind: str = 'png') -> str:
    """Returns a picture as a text that a page can hold."""
    return f'data:image/{kind};base64,' + base64.b64encode(picture).decode('ascii')


def sheets(shown: Mapping[str, Shown], room: int) -> tuple[dict[str, Shown], dict[str, str]]:
    """Makes sheets that together have at most `room` characters: smaller pictures first, and then fewer samples.

    Returns:
        What is on each sheet, and the sheets; one sample of each is there whatever the room.
    """
    kind, most = 'png', max((len(one.index) for one in shown.values()), default=1)
    while True:
        made = {path: sheet(one.samples.images, kind) for path, one in shown.items()}
        size = sum(map(len, made.values()))
        if size <= room or (kind == 'webp' and most == 1):
            return dict(shown), made
        if kind == 'webp':
            most = max(1, min(most - 1, most * room // size))
            shown = {path: Shown(one.samples.take(np.s_[:most]), one.index[:most]) for path, one in shown.items()}
        kind = 'webp'


def data(
    curves: Sequence[Curve], shown: Mapping[str, Shown], class_names: Sequence[str], *, room: int
) -> dict[str, Any]:
    """Returns what the gallery's part of the page and its script need.

    Args:
        shown: what may be shown of each sample file, by the row's `samples`; files may be absent.
        room: the most characters of all sheets.
    """
    shown, made = sheets(shown, room)
    places = {path: place for place, path in enumerate(made)}
    labels = sorted({int(label) for one in shown.values() for label in one.samples.labels})
    metrics, picked = present(curves), _pickers(curves)
    return {
        'columns': COLUMNS,
        'pickers': [(_title(name), values) for name, values in picked.items()],
        'metrics': [metric.key for metric in metrics],
        'classes': [
            {'label': label, 'name': class_names[label] if 0 <= label < len(class_names) else f'class {label}'}
            for label in labels
        ],
        'sheets': [
            {
                'src': made[path],
                'height': one.samples.images.shape[1],
                'width': one.samples.images.shape[2],
                'labels': one.samples.labels.tolist(),
                'index': one.index.tolist(),
            }
            for path, one in shown.items()
        ],
        'curves': [
            {
                'key': curve.key,
                'label': curve.label,
                'told': [curve.told.get(name, OTHERS) for name in picked],
                'points': [
                    {
                        'w': row.source.w,
                        'seed': row.source.seed,
                        'scores': [_score(row.scores, metric) for metric in metrics],
                        'count': f'{row.method.num_samples:,}',
                        'best': curve.bests_at(place),
                        'sheet': places.get(row.samples),
                        **_calls(row),
                    }
                    for place, row in enumerate(curve.rows)
                ],
            }
            for curve in curves
        ],
    }


def _pickers(curves: Sequence[Curve]) -> dict[str, list[str]]:
    """Returns the settings in which curves differ, by their names, each with the texts of its values."""
    found = {}
    for name in dict.fromkeys(name for curve in curves for name in curve.told):
        values = list(dict.fromkeys(curve.told.get(name, OTHERS) for curve in curves))
        if len(values) > 1:
            found[name] = values
    return found


def _title(name: str) -> str:
    """Returns the name of a setting for people."""
    return _TITLES.get(name, name.replace('_sha256', ' SHA-256').replace('_', ' '))


def _score(scores: Scores, metric: Metric) -> dict[str, Any]:
    """Returns a value with its 95% interval where the error of its samples is known, else the text of the table."""
    value, error = getattr(scores, metric.key), getattr(scores, f'{metric.key}_standard_error', None)
    if metric.key not in _OF_SAMPLES or value is None or error is None:
        return {'text': metric.show(scores), 'value': value}
    low, high = value - _NORMAL * error, value + _NORMAL * error
    interval = f'{score_text(low)} to {score_text(high)}'
    return {'text': score_text(value), 'value': value, 'low': low, 'high': high, 'interval': interval}


def _calls(row: Row) -> dict[str, str]:
    """Returns arguments in Python: those after the run's folder that open its model, and those that draw samples."""
    source, sampling = row.source, row.source.sampling
    load = f'step={source.step}'
    if not source.ema:
        load += ', ema=False'
    elif source.ema_length is not None:
        load += f', ema_length={source.ema_length}'
    sampler, (name, _, options) = repr(sampling.sampler), sampling.sampler.partition('(')
    if name == 'ancestral' and sampling.logvar_interp is not None:  # a text does not say v
        given = [f'logvar_interp={sampling.logvar_interp}', *filter(None, [options.removesuffix(')')])]
        sampler = f'cfg.solvers.Ancestral({", ".join(given)})'
    how = {'w': source.w, 'guidance': repr(sampling.guidance), 'sampler': sampler, 'grid': repr(sampling.grid)}
    how |= {'steps': sampling.num_steps, 'clip_x': sampling.clip_x, 'seed': source.seed}
    return {'load': load, 'how': ', '.join(f'{name}={value}' for name, value in how.items())}
