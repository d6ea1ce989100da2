"""Trains, samples, evaluates and reports a classifier-free guided diffusion model.

  cfg --config=configs/digits.py --workdir=runs/digits                 trains, and goes on if it was stopped
  cfg --config=configs/digits.py --workdir=runs/digits --mode=sample   uses what was trained
  cfg --workdir=runs/digits --mode=status                              says where it stands

The modes are in docs/commands.md, the fields of a config in configs/default.py: --config.train.num_steps=100 sets one.
"""

import importlib
import logging
import sys
from typing import NamedTuple

from absl import flags

from cfg.runtime import command_line, progress
from cfg.runtime.errors import UserError

FLAGS = flags.FLAGS
LESS_SAMPLING = 'lower config.sampling.batch_size, or set config.model.dtype=bfloat16'
LESS_TRAINING = (
    'raise config.train.grad_accum, set config.train.remat=True or config.model.dtype=bfloat16, or lower '
    'config.train.batch_size or config.sampling.batch_size (--mode=describe tells what training takes)'
)
LESS_FEATURES = 'lower config.eval.batch_size'


class Mode(NamedTuple):
    """A mode is what must be known of it before its module, of `cfg.modes`, runs."""

    module: str
    workdir: str  # 'none', 'optional', 'existing', 'made' if it is missing, or 'own' where the mode looks itself
    memory: str = LESS_SAMPLING  # what to change when memory runs out
    several: bool = False  # whether it may run as several processes
    devices: bool = True  # whether it computes on JAX's devices
    config: bool = True  # whether it needs one; else it is run(workdir) alone


MODES = {
    'prepare_data': Mode('prepare_data', 'none', 'set a smaller config.prepare.workers', devices=False),
    'train': Mode('train', 'made', LESS_TRAINING, several=True),
    'sample': Mode('sample', 'existing', several=True),
    'eval': Mode('evaluate', 'existing', several=True),
    'report': Mode('report', 'existing', devices=False),
    'merge': Mode('merge', 'made', devices=False),
    'compare': Mode('compare', 'existing', several=True),
    'tune': Mode('tune', 'existing', several=True),
    'status': Mode('status', 'own', config=False),
    'describe': Mode('describe', 'none'),
    'plan': Mode('plan', 'none'),
    'import_adm': Mode('import_adm', 'made'),
    'export': Mode('export', 'existing', devices=False),
    'import_export': Mode('import_export', 'made', devices=False),
    'stats': Mode('stats', 'none', LESS_FEATURES),
    'evaluate_npz': Mode('evaluate_npz', 'optional', LESS_FEATURES),
    'fetch_weights': Mode('fetch_weights', 'none', devices=False),
}

if __name__ != '__main__':
    flags.disclaim_key_flags()  # for --help they are those of the program that calls `main`


def define_flags() -> None:
    """Defines the flags of the command line."""
    command_line.define_config('--config.train.num_steps=100')
    command_line.define_path('workdir', 'Folder of the run: checkpoints, logs, samples, results, report.')
    flags.DEFINE_enum('mode', 'train', list(MODES), 'What to do.')
    command_line.define_processes()
    flags.DEFINE_integer('num_devices', None, 'For --mode=describe: as if on this many devices.', lower_bound=1)
    flags.DEFINE_float('price', None, 'For --mode=plan: of an hour of a device.', lower_bound=0.0)
    flags.DEFINE_string(
        'target', None, 'For --mode=describe and plan: devices that are not here, as tpu:v5e:2x4 or gpu:h100:8.'
    )
    flags.DEFINE_enum('part', 'train', ['train', 'sample', 'features'], 'For --target: the program that is compiled.')
    flags.DEFINE_bool('largest', False, 'For --target: look for the largest batch that fits, too.')


def _dispatch() -> None:
    mode = MODES[FLAGS.mode]
    if not mode.several and FLAGS.num_processes not in (None, 1):
        names = ', '.join(name for name, other in MODES.items() if other.several)
        raise UserError(
            f'--num_processes={FLAGS.num_processes} is for --mode={names}: run --mode={FLAGS.mode} as one process.'
        )
    # Imported here, after the XLA flags are set and the config was checked.
    module = f'cfg.modes.{mode.module}'
    if not mode.config:
        print(importlib.import_module(module).run(FLAGS.workdir))
        return
    from cfg.modes import start

    needs = {name: getattr(mode, name) for name in ('workdir', 'several', 'devices', 'memory')}
    with start.prepared(FLAGS.mode, **needs) as (config, workdir):
        found = importlib.import_module(module).run(config, workdir)
    if found is not None:
        print(found)


def main() -> None:
    """Runs a command, as its flags say, and ends the process."""
    sys.modules['__main__'].__doc__ = __doc__  # what --help begins with
    define_flags()
    log = logging.getLogger('cfg')
    log.setLevel(logging.INFO)
    log.addHandler(progress.Handler())
    log.propagate = False
    command_line.run(_dispatch, memory=lambda: MODES[FLAGS.mode].memory, stopped=command_line.STOPPED)


if __name__ == '__main__':
    main()
