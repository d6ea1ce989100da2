"""Says what the page of a report says beside its gallery; it is one HTML file that needs nothing else."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfg.metrics.memorisation import COPY_QUANTILE
from cfg.report.curves import Curve, finite_sample_floors, floors, grouped
from cfg.report.tables import percent, score_text, with_error


def summary(curves: Sequence[Curve]) -> str:
    """Returns the sentences at the top of the page."""
    steps = [f'{step:,}' for step in dict.fromkeys(curve.step for curve in curves)]
    ws = {w for curve in curves for w in curve.w}
    features = list(dict.fromkeys(curve.rows[0].method.features for curve in curves))
    at_steps = f'checkpoint step{"s" if len(steps) > 1 else ""} {_listed(steps)}'
    strengths = f'{len(ws)} guidance strengths w' if len(ws) > 1 else 'one guidance strength w'
    return (
        f'A class-conditional diffusion model, sampled at {strengths} from the same seeds, at {at_steps}. '
        f'FID and inception score (IS) are computed on the features of: {_listed(features)}.'
    )


def _listed(items: Sequence[str]) -> str:
    *head, last = items
    return f'{", ".join(head)} and {last}' if head else last


def floor_lines(curves: Sequence[Curve]) -> list[tuple[str, dict[str, str]]]:
    """Returns the last lines of the table, of real data and of so many samples: a text for each metric that has one."""
    lines = []
    for label, row in floors(curves).items():
        beside = row.beside
        cells = {'fid': score_text(beside.floor_fid), 'inception_score': score_text(beside.floor_inception_score)}
        accuracy = '' if beside.floor_accuracy is None else percent(beside.floor_accuracy)
        distance = '' if beside.floor_fd_dinov2 is None else score_text(beside.floor_fd_dinov2)
        cells |= {'accuracy': accuracy, 'fd_dinov2': distance}
        if beside.floor_authenticity is not None:
            cells |= {'authenticity': percent(beside.floor_authenticity), 'near_copies': percent(COPY_QUANTILE)}
        lines.append((label[:1].upper() + label[1:], cells))
    for text, value in finite_sample_floors(row for curve in curves for row in curve.rows):
        lines.append((f'Floor: {text}', {'fid': score_text(value)}))
    return lines


def seed_lines(curves: Sequence[Curve]) -> list[tuple[str, dict[str, str]]]:
    """Returns lines of the means over sampling seeds with their standard errors, where there are several, likewise."""
    lines = []
    rows = [(curve.told, row) for curve in curves for row in curve.rows]
    for group in grouped(rows, lambda pair: (dataclasses.replace(pair[1].source, seed=0), pair[1].method)).values():
        if len(group) < 2:
            continue
        (told, row), cells = group[0], {}
        for key in ('fid', 'inception_score', 'fd_dinov2'):
            values = [getattr(of_seed.scores, key) for _, of_seed in group]
            if None not in values:
                cells[key] = with_error(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values)))
        settings = [words for name, words in told.items() if name != 'seed']
        lines.append((', '.join([f'Mean of {len(group)} seeds', *settings, f'w = {row.source.w:g}']), cells))
    return lines


# What the rows say about their making, by the name that the page gives it.
_PROVENANCE = {
    'Features': 'features',
    'Features SHA-256': 'features_sha256',
    'Weight file SHA-256': 'features_file_sha256',
    'FD-DINOv2': 'dinov2',
    'DINOv2 SHA-256': 'dinov2_sha256',
    'DINOv2 file SHA-256': 'dinov2_file_sha256',
    'Reference': 'reference',
    'Reference SHA-256': 'reference_sha256',
    'Held-out images': 'floor',
    'Sampling': 'sampling',
    'Seed': 'seed',
    'Labels': 'labels',
    'EMA parameters': 'ema',
    'EMA length': 'ema_length',
    'p_uncond of training': 'p_uncond',
    'Blocks told the label': 'label_in',
    'Config SHA-256': 'config_sha256',
    'Parameters SHA-256': 'params_sha256',
    'Second model SHA-256': 'uncond_params_sha256',
    'Weaker model SHA-256': 'weaker_params_sha256',
    'Guiding classifier SHA-256': 'classifier_params_sha256',
    'Network evaluations a sample': 'evaluations',
    'Classifier': 'classifier',
    'Versions': 'versions',
}


def provenance(curves: Sequence[Curve]) -> dict[str, dict[str, list[str]]]:
    """Returns what is said under each name, with the labels of the curves of which it is said."""
    found: dict[str, dict[str, list[str]]] = {}
    for curve in curves:
        flat = [row.flat for row in curve.rows]
        for name, key in _PROVENANCE.items():
            for value in dict.fromkeys(_words(row[key]) for row in flat if row[key] is not None):
                found.setdefault(name, {}).setdefault(value, []).append(curve.label)
    found = {name: found[name] for name in _PROVENANCE if name in found}
    return found | {'Last evaluated': {max(row.origin.finished for curve in curves for row in curve.rows): []}}


def _words(value: Any) -> str:
    """Returns a value for people; of an object the names and values."""
    if isinstance(value, dict):
        return ', '.join(f'{name} {_words(item)}' for name, item in value.items() if item is not None)
    return {True: 'yes', False: 'no'}[value] if isinstance(value, bool) else str(value)
