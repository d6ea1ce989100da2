"""Trains, samples, evaluates and reports a classifier-free guided diffusion model; see README.md."""

import logging
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cfg import command_line
from cfg.errors import UserError

MODES = (
    'prepare_data',
    'train',
    'sample',
    'eval',
    'report',
    'compare',
    'status',
    'describe',
    'import_adm',
    'stats',
    'evaluate_npz',
    'fetch_weights',
)

STOPPED = 'Stopped; the same command goes on where it stopped.'

FLAGS = flags.FLAGS
command_line.define_config('--config.train.num_steps=100')
flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, logs, samples, results, report.')
flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
command_line.define_processes()
flags.DEFINE_integer('num_devices', None, 'For --mode=describe: as if on this many devices.', lower_bound=1)


def _dispatch() -> None:
    # Imported here, after the XLA flags are set and the arguments are known to be right.
    from cfg import launching, setup

    launching.check_flags(FLAGS.mode)
    if FLAGS.mode == 'describe':
        from cfg import describe

        config = command_line.read_config()
        setup.check_config(config)
        print(describe.describe(config, num_devices=FLAGS.num_devices))
        return
    if FLAGS.mode == 'prepare_data':
        from cfg import preparing

        config = command_line.read_config()
        setup.check_config(config)
        print(preparing.prepare_data(config))
        return
    if FLAGS.mode in ('stats', 'evaluate_npz', 'fetch_weights'):
        from cfg.evaluation import npz_modes

        config = command_line.read_config()
        setup.check_config(config)
        if FLAGS.mode == 'fetch_weights':
            print(npz_modes.fetch(config))
            return
        workdir = FLAGS.workdir and setup.check_workdir(FLAGS.workdir, create=True, write=True)
        print({'stats': npz_modes.write_stats, 'evaluate_npz': npz_modes.evaluate_npz}[FLAGS.mode](config, workdir))
        return
    if FLAGS.workdir is None:
        raise UserError('--workdir is missing: give the folder of the run.')
    if FLAGS.mode == 'status':
        import jax

        from cfg import status

        # An accelerator may be in use, and on a slice of TPUs it would wait for the other hosts.
        jax.config.update('jax_platforms', 'cpu')
        print(status.describe(setup.check_workdir(FLAGS.workdir, create=False, write=False)))
        return
    config = command_line.read_config()
    setup.check_config(config)
    begins = FLAGS.mode in ('train', 'import_adm') or config.data.name == 'mixture'
    workdir = setup.check_workdir(FLAGS.workdir, create=begins, write=True)
    if FLAGS.mode in launching.MODES:
        job = '' if FLAGS.mode not in ('eval', 'compare') else '.job{}of{}'.format(*setup.parse_job(config.eval.job))
        with launching.joined(config, workdir, FLAGS.mode + job, status_of=_exit_status):
            _run(config, workdir)
    elif FLAGS.mode == 'import_adm':
        from cfg import importing

        print(importing.import_adm(config, workdir))
    elif FLAGS.mode == 'report':
        from cfg.evaluation import reporting

        print(reporting.write(config, workdir))


def _exit_status(error: BaseException) -> int | None:
    return command_line.exit_status(error, mode=FLAGS.mode, stopped=STOPPED)


def _run(config: ConfigDict, workdir: Path) -> None:
    if FLAGS.mode == 'train':
        from cfg.training import loop

        loop.train(config, workdir)
    elif FLAGS.mode == 'eval':
        from cfg.evaluation import sweep

        sweep.evaluate(config, workdir)
    elif FLAGS.mode == 'compare':
        from cfg.evaluation import compare

        compare.run(config, workdir)
    elif FLAGS.mode == 'sample':
        from cfg.evaluation import sample

        sample.sample(config, workdir)


if __name__ == '__main__':
    log = logging.getLogger('cfg')
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    command_line.run(_dispatch, mode=lambda: FLAGS.mode, stopped=STOPPED)
