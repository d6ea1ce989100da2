"""Imports once what every run of main.py imports; no JAX backend is started here."""

import gc
import os
from importlib import import_module

os.environ |= {'TF_CPP_MIN_LOG_LEVEL': '2', 'TF_ENABLE_ONEDNN_OPTS': '0'}

for _name in (
    'cfg.data.prepare.run',
    'cfg.report.sweep_report',
    'cfg.modes.sample',
    'cfg.evaluation.sweep',
    'cfg.modes.start',
    'cfg.modes.status',
    'cfg.training.logs',
    'cfg.training.loop',
    'clu.metric_writers',
    'sklearn.datasets',
    'tensorflow_datasets',
):
    import_module(_name)

gc.freeze()  # the forks share it as long as nothing writes to it
