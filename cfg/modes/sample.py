"""Runs `--mode=sample`, which draws samples of chosen classes at several w."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cfg.data.spec import DataSpec
from cfg.report.sample_files import FOLDER, Samples, write_samples
from cfg.report.sample_grids import Panel, draw_grid
from cfg.runs.companions import Networks, check_guidable, make_generator, on_devices, open_companions
from cfg.runs.trained import TrainedRun
from cfg.runtime import processes
from cfg.runtime.errors import UserError
from cfg.runtime.progress import Progress
from cfg.settings.sampler import read_sampler
from cfg.settings.values import config_dict

log = logging.getLogger('cfg')


def run(config: ConfigDict, workdir: Path) -> None:
    """Draws samples of one checkpoint at each w of `config.sampling.w`: an npz for each, and one PNG of all."""
    options, sampler = config.sampling, read_sampler(config)
    model = TrainedRun.of_config(config, workdir, options.step)
    classes = _classes(options.labels, model.spec)
    labels = np.resize(np.array(classes, np.int32), options.num_samples)
    companions = open_companions(config, model, sampler.rule)
    ws = sampler.rule.w or options.w
    check_guidable(ws, model, sampler.rule, companions)
    networks = {'model': model} | companions
    generator = make_generator(config, networks, sampler)
    params = on_devices(networks)
    name, digest = f'sample_step{model.step:08d}', _digest(config, companions)
    progress = Progress('sample', len(ws) * len(labels), unit='sample', compiles=True)
    panels = []
    for number, w in enumerate(ws):
        for warning in model.warnings(w, sampler):
            log.warning('%s', warning)
        images = []
        for batch in generator(params, labels, w, seed=options.seed):
            images.append(batch.images)
            progress.update(number * len(labels) + batch.start + len(batch.images), f'w = {w:g}')
        if processes.is_first():
            images = np.concatenate(images)
            print(workdir / write_samples(workdir, f'{name}_w{w:g}_{digest}.npz', images, labels))
            panels.append(Panel(float(w), Samples(images, labels)))
    if processes.is_first():
        columns = min(len(labels), max(len(classes), 8), 10)
        rows = min(-(-len(labels) // columns), 10)
        path = workdir / FOLDER / f'{name}_{digest}.png'
        title = f'step {model.step}: a cell has the same seed and class in every panel'
        draw_grid(path, panels, (rows, columns), title)
        print(path)


def _classes(labels: Sequence[int], spec: DataSpec) -> Sequence[int]:
    """Returns the classes asked for, or else all of them."""
    for label in labels:
        if label >= spec.num_classes:
            raise UserError(
                f'config.sampling.labels holds {label}, but the classes of {spec.name} are 0 to '
                f'{spec.num_classes - 1}: choose among them.'
            )
    return labels or range(spec.num_classes)


def _digest(config: ConfigDict, companions: Networks) -> str:
    """Returns what tells the files of one setting from those of another."""
    values = [config_dict(config)[part] for part in ('sampling', 'diffusion', 'model')]
    settings = json.dumps(values + [run.sha256 for run in companions.values()])
    return hashlib.sha256(settings.encode()).hexdigest()[:8]
