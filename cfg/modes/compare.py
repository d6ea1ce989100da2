"""Runs `--mode=compare`: the sweep, then its rules, samplers and T beside each other."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfg.evaluation import sweep, twins
from cfg.report import compare, frontier
from cfg.report.results import Results
from cfg.runs.run_files import is_merged
from cfg.runs.trained import newest_meta
from cfg.runtime import processes
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the sweep of a config and compares its rows with those of `report.workdirs`; prints the page to open.

    Rows that cannot be measured are named in a UserError after the comparison of the others is written.
    """
    others = tuple(config.report.workdirs)
    processes.on_first(lambda: check(workdir, others))
    failure, note = None, ''
    try:
        missing = 0 if is_merged(workdir) else sweep.evaluate(config, workdir, then=_twins(config, workdir))
        if missing:
            note = f'{missing} rows of this sweep are not measured yet: run this again when its other jobs have ended.'
    except UserError as error:
        failure, note = error, str(error)

    def show() -> None:
        """Writes the comparison while no other job of the sweep does; after a failure only if there are rows."""
        if failure is None or Results(workdir).read():
            with lock(workdir, 'compare', wait=True):
                print(compare.write(check(workdir, others), note=note))

    processes.on_first(show)  # which alone looks for rows, so that all take the same way
    if failure is not None:
        raise failure


def _twins(config: ConfigDict, workdir: Path) -> Callable[[sweep.Sweep], object] | None:
    """Returns what measures the twins of a sweep, if the config asks for them."""
    return functools.partial(twins.measure, config=config, workdir=workdir) if config.report.twin_samples else None


# Where runs differ in it, neither their scores nor their evaluations can be compared.
_EQUAL = {'data': ('name', 'image_size', 'crop', 'split', 'random_flip'), 'model': ()}
# Where they differ in it, they have other networks.
_NETWORK = {
    'data': ('augment',),
    'diffusion': (),
    'model': ('dropout',),
    'train': (
        *('batch_size', 'stratified', 'learning_rate', 'warmup_steps', 'decay_steps', 'beta1', 'beta2'),
        *('weight_decay', 'grad_clip', 'ema_decay', 'kind', 'w', 'weighting', 'student_steps'),
        *('student_sampler', 'teacher_guidance', 'loss_weight', 'sigmoid_bias', 'times'),
    ),
}
# What rows tell: runs that differ in it are other points, and may have the same seed.
_TOLD = (('model', 'label_in'), ('train', 'p_uncond'))
_DROPOUT = ('model', 'dropout')  # which leaves the evaluations as they are


def check(workdir: Path, others: Sequence[str] = ()) -> list[frontier.Run]:
    """Finds out which workdirs of a comparison have the same network but for their seed, and which have others.

    A run without a checkpoint is taken for another seed of the first one.

    Raises:
        UserError: names the first field of data or network that makes two runs incomparable, two of the same network
            and seed, or a folder that does not exist.
    """
    folders = {}
    for folder in [workdir, *map(Path, others)]:
        if not folder.is_dir():
            raise UserError(f'config.report.workdirs holds {folder}, which does not exist: give the workdirs of runs.')
        folders.setdefault(folder.resolve(), folder)
    configs = {folder: meta['config'] for folder in folders.values() if (meta := newest_meta(folder)) is not None}
    first_of: dict[Path, Path] = {}  # the first run with the network of each
    seen = {}
    first = next(iter(configs), None)
    for folder, config in configs.items():
        for part, name in _differing(configs[first], config, _EQUAL, without=(*_TOLD, _DROPOUT)):
            raise UserError(
                f'{first} and {folder} cannot be compared: config.{part}.{name} is {configs[first][part][name]!r} '
                f'there and {config[part][name]!r} here; leave one of them out of config.report.workdirs.'
            )
        alike = (one for one in first_of.values() if not _differing(configs[one], config, _NETWORK))
        first_of[folder] = next(alike, folder)
        run = (first_of[folder], config['seed'], *(config[part].get(name) for part, name in _TOLD))
        if run in seen:
            raise UserError(
                f'{seen[run]} and {folder} both have config.seed={config["seed"]}: they are no repetitions of each '
                'other; give runs of other seeds in config.report.workdirs.'
            )
        seen[run] = folder
    networks = set(first_of.values())
    short = len({network.name for network in networks}) == len(networks)

    def name(folder):
        network = first_of.get(folder, first)
        return '' if len(networks) < 2 else network.name if short else str(network)

    found = []
    for place, folder in enumerate(folders.values()):
        seed = configs[folder]['seed'] if folder in configs else ~place  # what is not known is none of the others
        found.append(frontier.Run(folder, name(folder), seed))
    return found


def _differing(
    a: Mapping[str, Any], b: Mapping[str, Any], fields: Mapping[str, tuple], without: Sequence[tuple[str, str]] = _TOLD
) -> list[tuple[str, str]]:
    """Returns the fields of two configs that differ, of those that both have; () stands for all of a part."""
    return [
        (part, name)
        for part, names in fields.items()
        for name in sorted(set(names or a[part]) & a[part].keys() & b[part].keys())
        if a[part][name] != b[part][name] and (part, name) not in without
    ]
