"""Writes the tables of the study, for programs and for people."""

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cfg.mixture.distances import METRICS
from cfg.mixture.plots import distance_text
from cfg.mixture.settings import Settings
from cfg.runtime.files import write_whole

Row = dict[str, Any]


def write_tables(out_dir: Path, settings: Settings, tables: Mapping[str, Sequence[Row]]) -> Path:
    """Writes distances.json, .csv and .md of the tables 'rules', 'samplers' and 'tilted'; returns the last's path."""
    content = {'settings': dataclasses.asdict(settings), **tables}
    # JSON has no NaN and no infinity: they become null.
    content = json.loads(json.dumps(content), parse_constant=lambda constant: None)
    write_whole(out_dir / 'distances.json', (json.dumps(content, indent=2, allow_nan=False) + '\n').encode())
    write_whole(out_dir / 'distances.csv', _csv(tables).encode())
    path = out_dir / 'distances.md'
    write_whole(path, _markdown(settings, tables).encode())
    return path


def _csv(tables: Mapping[str, Sequence[Row]]) -> str:
    """Writes one line a row of all tables, without the classes on their own."""
    names = [name for name in tables['rules'][0] if not name.endswith('_by_class')]
    file = io.StringIO()
    writer = csv.DictWriter(file, ['table', *names], extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    for table, rows in tables.items():
        writer.writerows({'table': table, **row} for row in rows)
    return file.getvalue()


_HEADS = {'sliced_w2': 'sliced W2', 'kl': 'KL', 'total_variation': 'TV'}


def _markdown(settings: Settings, tables: Mapping[str, Sequence[Row]]) -> str:
    looked = settings.nearest_w()
    lines = [
        '# Distances to p(z|c) p(c|z)^w',
        '',
        f'{settings.num_samples} samples a class, {settings.num_seeds} seeds (± is their standard deviation), grid '
        f'{settings.grid}; in brackets as many exact draws. KL is of samples to density, in nats. Nearest: the w whose '
        f'density is nearest in sliced W2, of {len(looked)} from {looked[0]:g} to {looked[-1]:g}, and how near. Twin: '
        'the sliced W2 of Eq. 6 with the strength that the rule has in effect at each level. Remainder: the largest '
        'share over the levels of what the rule adds beside.',
        '',
        '![what each rule draws](rules.png)',
        '![distance against w](rule_distances.png)',
        *(['![distance against T](sampler_distances.png)'] if tables['samplers'] else []),
        *(['![what samplers that aim at the density draw](tilted.png)'] if tables['tilted'] else []),
    ]
    titles = f'Rules, T = {settings.num_steps}', 'Samplers, Eq. 6', 'Samplers that aim at the density, one seed'
    for title, rows in zip(titles, tables.values(), strict=True):
        if not rows:
            continue
        heads = ['guidance', 'sampler', 'T', 'w', 'passes', *_HEADS.values(), 'nearest w', 'its sliced W2']
        heads += ['twin', 'remainder'] if 'remainder' in rows[0] else []
        lines += ['', f'## {title}', '', _line(heads), _line(['---'] * len(heads))]
        lines += [_line(_cells(row)) for row in rows]
    return '\n'.join(lines) + '\n'


def _cells(row: Row) -> list[str]:
    cells = [row['guidance'], row['sampler'], str(row['num_steps']), f'{row["w"]:g}', str(row['passes'])]
    for name in METRICS:
        cells.append(f'{_spread_text(row, name)} ({row[f"floor_{name}"]:.3f})')
    cells += [f'{row["nearest_w"]:.2f}', distance_text(row['nearest_sliced_w2'])]
    if 'remainder' not in row:
        return cells
    if row['remainder'] is None:
        return [*cells, '', '']
    return [*cells, _spread_text(row, 'twin_sliced_w2'), f'{row["remainder"]:.0%}']


def _spread_text(row: Row, name: str) -> str:
    """Returns a distance with its spread, where that says something."""
    text, spread = distance_text(row[name]), row[f'{name}_spread']
    return text if spread is None or text.startswith('>') else f'{text} ± {distance_text(spread)}'


def _line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'
