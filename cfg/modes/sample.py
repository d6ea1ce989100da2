"""`--mode=sample`: samples of chosen classes at several w."""

import hashlib
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cfg.evaluation.sample_files import FOLDER, write_samples
from cfg.report import sweep_report
from cfg.report.results import Samples
from cfg.runs.companions import check_guidable, open_companions
from cfg.runs.generate import Generator
from cfg.runs.trained import TrainedRun
from cfg.runtime import parallel, processes
from cfg.runtime.errors import UserError
from cfg.runtime.progress import Progress
from cfg.settings.sampler import read_sampler
from cfg.settings.values import config_dict


def run(config: ConfigDict, workdir: Path) -> None:
    """Draws samples of one checkpoint at each w of `config.sampling.w`: an npz for each, and one PNG of all.

    Raises:
      UserError: on input that does not fit, before any sample is drawn.
    """
    options = config.sampling
    model = TrainedRun.of_config(config, workdir, options.step)
    classes = tuple(options.labels) or tuple(range(model.spec.num_classes))
    for label in classes:
        if not 0 <= label < model.spec.num_classes:
            raise UserError(
                f'config.sampling.labels holds {label}, but the classes of {model.spec.name} are '
                f'0 to {model.spec.num_classes - 1}: choose among them.'
            )
    labels = np.resize(np.array(classes, np.int32), options.num_samples)
    sampler = read_sampler(config)
    companions = open_companions(config, model, sampler.rule)
    ws = sampler.rule.w or options.w
    check_guidable(ws, model.p_uncond, sampler.rule, companions)
    networks = {'model': model} | companions
    generator = Generator(
        {name: run.bind for name, run in networks.items()},
        sampler,
        image_shape=model.spec.image_shape,
        batch_size=options.batch_size,
        rounding=options.rounding,
        shared=True,
    )
    params = parallel.replicate({name: run.params() for name, run in networks.items()})
    values = [config_dict(config)[part] for part in ('sampling', 'diffusion', 'model')]
    settings = json.dumps(values + [it.sha256 for it in companions.values()])
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    progress = Progress('sample', len(ws) * len(labels), unit='sample')
    panels = []
    for number, w in enumerate(ws):
        images = []
        for batch in generator(params, labels, w, seed=options.seed):
            images.append(batch.images)
            progress.update(number * len(labels) + batch.start + len(batch.images), f'w = {w:g}')
        if not processes.is_first():
            continue
        images = np.concatenate(images)
        print(workdir / write_samples(workdir, f'sample_step{model.step:08d}_w{w:g}_{digest}.npz', images, labels))
        panels.append(({'w': float(w)}, Samples(images, labels)))
    if not processes.is_first():
        return
    columns = min(len(labels), max(len(classes), 8), 10)
    rows = min(-(-len(labels) // columns), 10)
    path = workdir / FOLDER / f'sample_step{model.step:08d}_{digest}.png'
    sweep_report.draw_grid(
        path, panels, (rows, columns), f'step {model.step}: a cell has the same seed and class in every panel'
    )
    print(path)
