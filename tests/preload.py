"""Imports once what every run of main.py imports; no JAX backend is started here."""

from importlib import import_module

for _name in (
    'cfg.data.prepare',
    'cfg.report.sweep_report',
    'cfg.modes.sample',
    'cfg.evaluation.sweep',
    'cfg.modes.start',
    'cfg.modes.status',
    'cfg.training.logs',
    'cfg.training.loop',
    'sklearn.datasets',
    'tensorflow_datasets',
):
    import_module(_name)
