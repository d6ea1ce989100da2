"""Runs `--mode=compare`: the sweep, then its rules, samplers and T beside each other."""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cfg.evaluation import sweep
from cfg.report import compare
from cfg.report.results import Results
from cfg.runs.trained import newest_meta
from cfg.runtime import processes
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the sweep of a config and compares its rows; prints the page to open.

    Rows that cannot be measured are named in a UserError after the comparison of the others is written.
    """
    others = tuple(config.report.workdirs)
    processes.on_first(lambda: check(workdir, others))
    failure, note = None, ''
    try:
        missing = sweep.evaluate(config, workdir)
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


# What must be equal in the configs of repetitions: nothing of it is told by their rows.
_EQUAL = {
    'model': (),
    'diffusion': (),
    'data': ('name', 'image_size', 'crop', 'split', 'random_flip'),
    'train': (
        *('batch_size', 'stratified', 'learning_rate', 'warmup_steps', 'decay_steps', 'beta1', 'beta2'),
        *('weight_decay', 'grad_clip', 'ema_decay', 'kind', 'w', 'weighting', 'student_steps'),
        *('student_sampler', 'teacher_guidance'),
    ),
}
# What rows tell: runs that differ in it are other points, and may have the same seed.
_TOLD = (('model', 'label_in'), ('train', 'p_uncond'))


def check(workdir: Path, others: Sequence[str] = ()) -> list[Path]:
    """Checks the workdirs of a comparison: they must differ in nothing but their seed and what their rows tell.

    Raises:
        UserError: names the first field in which two differ, two of the same seed, or a folder that does not exist.
    """
    folders = {}
    for folder in [workdir, *map(Path, others)]:
        if not folder.is_dir():
            raise UserError(f'config.report.workdirs holds {folder}, which does not exist: give the workdirs of runs.')
        folders.setdefault(folder.resolve(), folder)
    configs = [(folder, meta['config']) for folder in folders.values() if (meta := newest_meta(folder)) is not None]
    for folder, config in configs[1:]:
        first, other = configs[0]
        for part, names in _EQUAL.items():
            for name in sorted(set(names or config[part]) & other[part].keys() & config[part].keys()):
                if config[part][name] != other[part][name] and (part, name) not in _TOLD:
                    raise UserError(
                        f'{first} and {folder} are not two seeds of one run: config.{part}.{name} is '
                        f'{other[part][name]!r} there and {config[part][name]!r} here; leave one of them out of '
                        'config.report.workdirs.'
                    )
    seen = {}
    for folder, config in configs:
        run = (config['seed'], *(config[part].get(name) for part, name in _TOLD))
        if run in seen:
            raise UserError(
                f'{seen[run]} and {folder} both have config.seed={config["seed"]}: they are no repetitions of each '
                'other; give runs of other seeds in config.report.workdirs.'
            )
        seen[run] = folder
    return list(folders.values())
