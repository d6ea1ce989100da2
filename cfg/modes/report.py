"""Runs `--mode=report` with the report that a config calls for."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cfg.diffusion.sampler import parse_solver
from cfg.mixture import fig2, study
from cfg.mixture.settings import Settings
from cfg.report import sweep_report
from cfg.runs.trained import read_names
from cfg.runtime.files import lock
from cfg.settings.values import require


def run(config: ConfigDict, workdir: Path, *, missing: int = 0) -> Path:
    """Writes the report of a sweep, or Fig. 2 and the study beside it for a mixture; returns the file to open.

    Args:
      missing: rows that a sweep under way has still to measure; the page says so.
    """
    if config.data.name == 'mixture':
        return _mixture(config, workdir)
    name, class_names = names(config, workdir)
    options = config.report
    with lock(workdir, 'report', wait=True):  # jobs of a sweep draw it too
        return sweep_report.write_report(
            workdir,
            class_names=class_names,
            title=options.title or f'Classifier-free guidance on {name}',
            grid_w=tuple(options.w),
            grid_shape=tuple(options.grid_shape),
            one_class=options.one_class,
            paper=options.paper,
            others=tuple(options.workdirs),
            missing=missing,
        )


def names(config: ConfigDict, workdir: Path) -> tuple[str, Sequence[str]]:
    """Returns the name of the data of a run, and those of its classes, of which the report must show one."""
    name, class_names = read_names(config, workdir)
    one, last = config.report.one_class, len(class_names) - 1
    require(0 <= one <= last, 'report.one_class', one, f'one of the classes 0 to {last}')
    return name, class_names


def _mixture(config: ConfigDict, workdir: Path) -> Path:
    mixture, sampling, diffusion = config.mixture, config.sampling, config.diffusion
    names = ('means', 'stddev', 'weaker_stddev', 'w', 'guidance', 'rule_samplers', 'num_steps', 'samplers', 'steps')
    names += ('steps_w', 'tilted', 'grid', 'extent', 'num_seeds')
    settings = Settings(
        **{name: mixture[name] for name in names},
        num_samples=mixture.seed_samples,
        seed=sampling.seed,
        logvar_interp=sampling.logvar_interp,
        logsnr_min=diffusion.logsnr_min,
        logsnr_max=diffusion.logsnr_max,
    )
    folder = workdir / 'report'
    drawn = dataclasses.replace(settings, grid=sampling.grid, num_samples=mixture.num_samples)
    solver = parse_solver(sampling.sampler)
    figure = fig2.write_figure(folder, drawn, solver, num_steps=sampling.num_steps)
    return study.write_study(folder, settings) if mixture.guidance else figure
