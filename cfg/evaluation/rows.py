"""Writing the rows of a sweep: one JSON object a line, each measurement once."""

import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfg.report.results import RESULTS_FILE, Row, read_rows, sampling_of
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock, write_whole

LIBRARIES = ('jax', 'jaxlib', 'flax', 'numpy')

# Columns of the printed table: what they show, the key, and how.
_COLUMNS = (
    ('step', 'step', '9d'),
    ('ema', 'ema', ''),
    ('guidance', 'guidance', ''),
    ('sampler', 'sampler', ''),
    ('grid', 'grid', ''),
    ('T', 'num_steps', 'd'),
    ('v', 'logvar_interp', 'g'),
    ('seed', 'seed', 'd'),
    ('w', 'w', '5g'),
    ('FID', 'fid', '9.4f'),
    ('sFID', 'sfid', '9.4f'),
    ('IS', 'inception_score', '8.4f'),
    ('precision', 'precision', '.4f'),
    ('recall', 'recall', '.4f'),
    ('KID', 'kid', '9.6f'),
    ('accuracy', 'accuracy', '.4f'),
    ('evaluations', 'evaluations', 'd'),
    ('samples', 'num_samples', '8d'),
)
_ONLY_IF_SEVERAL = ('ema', 'guidance', 'sampler', 'grid', 'num_steps', 'logvar_interp', 'seed', 'evaluations')


def results_path(workdir: Path, job: tuple[int, int]) -> Path:
    """Where job i of n writes its rows; all of them together are the sweep, see `results.read_results`."""
    number, count = job
    return workdir / (RESULTS_FILE if count == 1 else f'results.job{number}of{count}.jsonl')


def digest(identity: Row) -> str:
    """Of what makes a row the measurement that it is: rows that agree here are the same one."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of the libraries that a number may depend on."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def repair(path: Path) -> list[Row]:
    """The rows of a results file (none: []); a last line that is not JSON, as it was cut off, is removed from it."""
    if not path.exists():
        return []
    _mend(path)
    return read_rows(path)


def _mend(path: Path) -> None:
    content = path.read_bytes()
    lines = [line for line in content.split(b'\n') if line.strip()]
    if lines and not _is_json(lines[-1]):
        lines.pop()
    mended = b''.join(line + b'\n' for line in lines)
    if mended != content:
        write_whole(path, mended)


def append(path: Path, row: Row) -> None:
    """Adds one line, in the place of one that was cut off, and waits until it is on disk.

    Raises:
      UserError: when a number is not finite, which JSON cannot say.
    """
    bad = [f'{key} is {json.dumps(value)}' for key, value in row.items() if not _is_finite(value)]
    if bad:
        raise UserError(
            f'No row is added to {path}: {", ".join(bad)}; see whether the weights, the reference and the images are '
            'right.'
        )
    with lock(path.parent, 'eval', part=path.name, wait=True):  # a line that another process writes is not cut off
        if path.exists():
            _mend(path)
        with path.open('ab') as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b'\n')
            file.flush()
            os.fsync(file.fileno())


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def table(rows: Sequence[Row]) -> str:
    """Rows as text, one a line; the features, the reference and what must be known of them below."""
    flat = [sampling_of(row) | row for row in rows]
    columns = []
    for header, key, form in _COLUMNS:
        values = [row.get(key) for row in flat]
        shown = len(set(values)) > 1 if key in _ONLY_IF_SEVERAL else any(value is not None for value in values)
        if shown:
            cells = [header, *('' if value is None else format(value, form) for value in values)]
            width = max(map(len, cells))
            columns.append([cell.rjust(width) for cell in cells])
    lines = [' '.join(cells) for cells in zip(*columns, strict=True)]
    for row in {(row['features'], row['reference']): row for row in rows}.values():
        lines.append(f'features: {row["features"]}; reference: {row["reference"]}')
    for row in {row.get('floor'): row for row in rows if row.get('floor')}.values():
        score = f'FID {row["floor_fid"]:.4f}, IS {row["floor_inception_score"]:.4f}'
        lines.append(f'floor: {score} ({row["floor"]})')
    for count, value in {row['num_samples']: row['finite_sample_fid'] for row in rows}.items():
        lines.append(f'floor of {count} samples: FID {value:.4f} (as many draws of a Gaussian with its own moments)')
    lines += dict.fromkeys(f'warning: {text}' for row in rows for text in row.get('warnings', ()))
    return '\n'.join(lines)
