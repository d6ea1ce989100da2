"""The metrics of a run as JSON lines; reading them needs no TensorFlow."""

import json
from pathlib import Path
from typing import Any

METRICS_FILE = 'metrics.jsonl'


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file, a dict each, in order; [] if it is missing."""
    if not path.exists():
        return []
    parsed = [_parse(line) for line in path.read_text().splitlines()]
    return [line for line in parsed if line is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except json.JSONDecodeError:  # cut off when the process was killed
        return None
    return values if isinstance(values, dict) and 'step' in values else None
