"""Rows of a sweep that nobody measured, for tests of what reads them."""

import json
from pathlib import Path

import jsonschema

from cfg.report import rows
from cfg.report.results import Results
from cfg.report.rows import Row

SCHEMA = json.loads((Path(rows.__file__).parent / 'results.schema.json').read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)  # of a row as JSON

_SAMPLING = {
    'guidance': 'cfg',
    'sampler': 'ancestral',
    'grid': 'paper',
    'num_steps': 256,
    'logvar_interp': 0.3,
    'clip_x': True,
    'logsnr_min': -20.0,
    'logsnr_max': 20.0,
    'rounding': 'round',
    'prediction': 'eps',
    'dtype': 'float32',
}
_SCORES = ('sfid', 'inception_score_std', 'precision', 'recall', 'kid', 'kid_std', 'kid_standard_error', 'accuracy')
_OTHERS = ('uncond_params_sha256', 'weaker_params_sha256', 'classifier_params_sha256')
_FLOOR = ('floor', 'floor_fid', 'floor_inception_score', 'floor_accuracy')
FIELDS = {
    'step': 1200,
    'ema': True,
    'params_sha256': 'a' * 64,
    'labels': 'balanced',
    'seed': 0,
    'w': 0.0,
    'num_samples': 50_000,
    'is_split_size': 5000,
    'neighbours_dtype': 'float32',
    'kid_subsets': 100,
    'kid_subset_size': 1000,
    'num_reference_features': 10_000,
    'features': 'Inception (2015-12-05)',
    'features_sha256': 'f' * 64,
    'classifier': None,
    'reference_sha256': 'e' * 64,
    'fid': 2.5,
    'inception_score': 50.0,
    'reference': 'imagenet',
    'reference_file_sha256': None,
    'finite_sample_fid': 0.25,
    'warnings': [],
    'features_file_sha256': 'd' * 64,
    'device': 'cpu',
    'versions': {'jax': '0.10.2'},
    'finished': '2026-01-01T00:00:00.000+00:00',
    'p_uncond': 0.1,
    'label_in': 'everywhere',
    'evaluations': 512,
    'cost': 512.0,
    'samples': None,
    'config_sha256': 'c' * 64,
    'seconds': 1.0,
} | dict.fromkeys((*_SCORES, *_OTHERS, *_FLOOR))


def row_of(*, sampling=None, **changes) -> Row:
    """A row in which some fields of `FIELDS`, and some entries of its sampling, are others."""
    return Row.from_flat(FIELDS | {'sampling': _SAMPLING | (sampling or {})} | changes)


def write_rows(workdir, rows) -> None:
    """Puts rows into a workdir."""
    for row in rows:
        Results(workdir).write(row)
