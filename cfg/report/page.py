"""The page of a report: one HTML file that needs nothing else."""

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cfg.report import beside_paper as side_by_side
from cfg.report.beside_paper import Comparison
from cfg.report.columns import Metric, percent, present, score_text
from cfg.report.results import Curve, Row, Samples, finite_sample_floors, floors, number

SPRITE_COLUMNS = 10

_BADGE = '<span class="badge">best</span> '
_TEMPLATE = Path(__file__).with_name('page.html')


def write_page(
    path: Path,
    *,
    title: str,
    curves: Sequence[Curve],
    samples: Mapping[str, Samples],
    class_names: Sequence[str],
    plots: Sequence[Path],
    notices: Sequence[str],
    comparison: Comparison | None = None,
) -> Path:
    """Writes the page.

    Args:
        path: the HTML file to write.
        title: title of the page.
        curves: the results, in ascending step.
        samples: the samples to show of each sample file, by the row's 'samples'; files may be absent.
        class_names: name of each label.
        plots: the PNG files of FID and IS against w, and of FID against IS.
        notices: sentences on what is missing.
        comparison: our numbers beside the paper's; None leaves them out.

    Returns:
        `path`.
    """
    fields = {
        'title': html.escape(title),
        'summary': html.escape(_summary(curves)),
        'notices': ''.join(f'<p class="notice">{html.escape(notice)}</p>' for notice in notices),
        'plot_against_w': _data_uri(plots[0].read_bytes()),
        'plot_fid_against_is': _data_uri(plots[1].read_bytes()),
        'curve_options': ''.join(f'<option value="{c.key}">{html.escape(c.label)}</option>' for c in curves),
        'paper': side_by_side.to_html(comparison) if comparison else '',
        'table_head': _table_head(curves),
        'table': _table(curves),
        'table_hint': html.escape(_table_hint(curves)),
        'provenance': _provenance(curves),
        'data': _script_json(_viewer_data(curves, samples, class_names)),
    }
    template = _TEMPLATE.read_text(encoding='utf-8')
    path.write_text(re.sub(r'\{\{(\w+)\}\}', lambda match: fields[match[1]], template), encoding='utf-8')
    return path


def sprite(images: np.ndarray) -> bytes:
    """One PNG of all images in rows of `SPRITE_COLUMNS`, edge to edge, row by row.

    Args:
        images: uint8 [N, H, W, C] with C 1 or 3.
    """
    count, height, width, channels = images.shape
    lines = math.ceil(count / SPRITE_COLUMNS)
    cells = np.zeros((lines * SPRITE_COLUMNS, height, width, channels), dtype=np.uint8)
    cells[:count] = images
    sheet = cells.reshape(lines, SPRITE_COLUMNS, height, width, channels).transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(lines * height, SPRITE_COLUMNS * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(buffer, format='PNG', optimize=True)
    return buffer.getvalue()


def _viewer_data(curves: Sequence[Curve], samples: Mapping[str, Samples], class_names: Sequence[str]) -> dict[str, Any]:
    """What the page's script needs: the points of each curve, and a sprite for each sample file."""
    sprites = {path: place for place, path in enumerate(samples)}
    labels = sorted({int(label) for shown in samples.values() for label in shown.labels})
    return {
        'columns': SPRITE_COLUMNS,
        'accuracy': any(metric.key == 'accuracy' for metric in present(curves)),
        'classes': [{'label': label, 'name': _class_name(label, class_names)} for label in labels],
        'sprites': [
            {
                'src': _data_uri(sprite(shown.images)),
                'height': shown.images.shape[1],
                'width': shown.images.shape[2],
                'labels': shown.labels.tolist(),
            }
            for shown in samples.values()
        ],
        'curves': [
            {
                'key': curve.key,
                'label': curve.label,
                'points': [
                    {
                        'w': row['w'],
                        'fid': score_text(number(row, 'fid')),
                        'inceptionScore': score_text(number(row, 'inception_score')),
                        'accuracy': percent(number(row, 'accuracy')),
                        'count': f'{row["num_samples"]:,}',
                        'best': _marks(curve, place),
                        'sprite': sprites.get(row.get('samples')),
                    }
                    for place, row in enumerate(curve.rows)
                ],
            }
            for curve in curves
        ],
    }


def _class_name(label: int, class_names: Sequence[str]) -> str:
    return str(class_names[label]) if 0 <= label < len(class_names) else f'class {label}'


def _summary(curves: Sequence[Curve]) -> str:
    steps = [f'{step:,}' for step in dict.fromkeys(curve.step for curve in curves)]
    ws = {row['w'] for curve in curves for row in curve.rows}
    features = dict.fromkeys(row['features'] for curve in curves for row in curve.rows)
    at_steps = f'checkpoint step{"s" if len(steps) > 1 else ""} {_listed(steps)}'
    strengths = f'{len(ws)} guidance strengths w' if len(ws) > 1 else 'one guidance strength w'
    return (
        f'A class-conditional diffusion model, sampled at {strengths} from the same seeds, at {at_steps}. '
        f'FID and inception score (IS) are computed on the features of: {_listed(features)}.'
    )


def _listed(items: Sequence[str]) -> str:
    *head, last = items
    return f'{", ".join(head)} and {last}' if head else last


def _table_head(curves: Sequence[Curve]) -> str:
    heads = ['step', 'w', *(metric.head for metric in present(curves)), 'samples']
    return ''.join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)


def _table(curves: Sequence[Curve]) -> str:
    """The rows of the table's body, and below them the floors: of real data, and of so many samples."""
    metrics = present(curves)
    lines = [_table_line(curve, place, row, metrics) for curve in curves for place, row in enumerate(curve.rows)]
    for label, row in floors(curves).items():
        values = {metric.key: number(row, f'floor_{metric.key}') for metric in metrics}
        lines.append(_floor_line(f'Floor: {label}', values))
    for count, value in finite_sample_floors(curves):
        label = f"Floor of {count:,} samples: as many draws of a Gaussian with the reference's own moments"
        lines.append(_floor_line(label, {metric.key: math.nan for metric in metrics} | {'fid': value}))
    return '\n'.join(lines)


def _floor_line(label: str, values: Mapping[str, float]) -> str:
    """A line of the table; a value that does not exist is an empty cell."""
    texts = {'accuracy': percent}
    cells = [texts.get(key, score_text)(value) if math.isfinite(value) else '' for key, value in values.items()]
    return (
        f'<tr class="floor"><th scope="row" colspan="2">{html.escape(label)}</th>'
        + ''.join(f'<td>{cell}</td>' for cell in [*cells, ''])
        + '</tr>'
    )


def _table_hint(curves: Sequence[Curve]) -> str:
    keys = {metric.key for metric in present(curves)}
    parts = ['Best (a star on narrow screens): the lowest FID and the highest IS of each curve.']
    if 'precision' in keys:
        parts.append('Precision: the share of samples within the manifold of real images; recall: the reverse (k = 3).')
    if 'kid' in keys:
        parts.append('KID: with the standard error of the estimate, which is not the spread over subsets.')
    if 'accuracy' in keys:
        parts.append('Accuracy: the share of samples that a classifier assigns to their intended class.')
    return ' '.join(parts)


def _table_line(curve: Curve, place: int, row: Row, metrics: Sequence[Metric]) -> str:
    marks = _marks(curve, place)
    classes = ['best'] * bool(marks) + ['group'] * (place == 0)
    label = html.escape(curve.label.removeprefix('step '))
    link = f'<a href="#step={curve.key}&amp;w={row["w"]:g}" title="Show these samples">{row["w"]:g}</a>'
    names = {'fid': 'FID', 'inception_score': 'IS'}
    cells = [
        link,
        *(_BADGE * (names.get(metric.key) in marks) + html.escape(metric.show(row)) for metric in metrics),
        f'{row["num_samples"]:,}',
    ]
    return (
        f'<tr class="{" ".join(classes)}"><th scope="row">{label}</th>'
        + ''.join(f'<td>{cell}</td>' for cell in cells)
        + '</tr>'
    )


def _marks(curve: Curve, place: int) -> list[str]:
    """What the row at `place` is the best of its curve in."""
    bests = {'FID': curve.best_fid, 'IS': curve.best_inception_score}
    return [name for name, best in bests.items() if best == place]


def _provenance(curves: Sequence[Curve]) -> str:
    """A definition list of what the rows say about their making; several values are listed by where they apply."""
    getters = {
        'Features': lambda row: row['features'],
        'Features SHA-256': lambda row: row.get('features_sha256'),
        'Weight file SHA-256': lambda row: row.get('features_file_sha256'),
        'Reference': lambda row: row.get('reference'),
        'Reference SHA-256': lambda row: row.get('reference_sha256'),
        'Floor': lambda row: row.get('floor'),
        'Sampling': lambda row: _pairs(row.get('sampling')),
        'Seed': lambda row: row.get('seed'),
        'Labels': lambda row: row.get('labels'),
        'EMA parameters': lambda row: row.get('ema'),
        'p_uncond of training': lambda row: row.get('p_uncond'),
        'Blocks told the label': lambda row: row.get('label_in'),
        'Config SHA-256': lambda row: row.get('config_sha256'),
        'Parameters SHA-256': lambda row: row.get('params_sha256'),
        'Second model SHA-256': lambda row: row.get('uncond_params_sha256'),
        'Weaker model SHA-256': lambda row: row.get('weaker_params_sha256'),
        'Guiding classifier SHA-256': lambda row: row.get('classifier_params_sha256'),
        'Network evaluations a sample': lambda row: row.get('evaluations'),
        'Classifier': lambda row: row.get('classifier'),
        'Versions': lambda row: _pairs(row.get('versions')),
        'Last evaluated': lambda row: None,
    }
    entries = []
    for name, getter in getters.items():
        labels_of: dict[str, list[str]] = {}
        for curve in curves:
            for value in dict.fromkeys(_word(getter(row)) for row in curve.rows if getter(row) is not None):
                labels_of.setdefault(value, []).append(curve.label)
        if name == 'Last evaluated':
            finished = [str(row['finished']) for curve in curves for row in curve.rows if row.get('finished')]
            labels_of = {max(finished): []} if finished else {}
        entries += _entry(name, labels_of)
    return '\n'.join(entries)


def _entry(name: str, labels_of: Mapping[str, Sequence[str]]) -> list[str]:
    if not labels_of:
        return []
    values = [
        html.escape(value)
        + (f' <span class="where">({html.escape("; ".join(labels))})</span>' if len(labels_of) > 1 else '')
        for value, labels in labels_of.items()
    ]
    return [f'<dt>{name}</dt><dd>{"<br>".join(values)}</dd>']


def _word(value: Any) -> str:
    return {True: 'yes', False: 'no'}[value] if isinstance(value, bool) else str(value)


def _pairs(values: Mapping[str, Any] | None) -> str | None:
    return ', '.join(f'{name} {_word(value)}' for name, value in values.items()) if values else None


def _data_uri(png: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(png).decode('ascii')


def _script_json(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, allow_nan=False, separators=(',', ':')).replace('<', '\\u003c')
