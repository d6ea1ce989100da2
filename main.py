"""Trains, samples, evaluates and reports a classifier-free guided diffusion model; see README.md."""

import logging
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from cfg import xla_flags
from cfg.errors import UserError, out_of_memory

MODES = ('train', 'sample', 'eval', 'report', 'status', 'describe', 'import_adm')

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file('config', None, 'The config; single fields as --config.train.num_steps=100.')
flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, logs, samples, results, report.')
flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
flags.DEFINE_integer('num_devices', None, 'For --mode=describe: as if on this many devices.', lower_bound=1)


def _config():
    config = FLAGS.config
    if config is None:
        raise UserError('--config is missing: give one of configs/*.py.')
    try:
        config.to_dict()
    except OSError as error:  # a file that could not be loaded says so when the config is first used
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f'--config cannot be loaded ({reason}): give one of configs/*.py.') from error
    return config


def _dispatch() -> None:
    # Imported here, after the XLA flags are set and the arguments are known to be right.
    from cfg import setup

    if FLAGS.mode == 'describe':
        from cfg import describe

        config = _config()
        setup.check_config(config)
        print(describe.describe(config, num_devices=FLAGS.num_devices))
        return
    if FLAGS.workdir is None:
        raise UserError('--workdir is missing: give the folder of the run.')
    if FLAGS.mode == 'status':
        from cfg import status

        print(status.describe(setup.check_workdir(FLAGS.workdir, create=False, write=False)))
        return
    config = _config()
    setup.check_config(config)
    begins = FLAGS.mode in ('train', 'import_adm') or config.data.name == 'mixture'
    workdir = setup.check_workdir(FLAGS.workdir, create=begins, write=True)
    if FLAGS.mode == 'train':
        from cfg.training import loop

        loop.train(config, workdir)
    elif FLAGS.mode == 'eval':
        from cfg.evaluation import sweep

        sweep.evaluate(config, workdir)
    elif FLAGS.mode == 'sample':
        from cfg.evaluation import sweep

        sweep.sample(config, workdir)
    elif FLAGS.mode == 'import_adm':
        from cfg import importing

        print(importing.import_adm(config, workdir))
    elif FLAGS.mode == 'report':
        from cfg.evaluation import reporting

        print(reporting.write(config, workdir))


def main(argv: list[str]) -> None:
    """Runs one mode; what the user can mend is one line on stderr and exit status 2."""
    try:
        if len(argv) > 1:
            raise UserError(f'{argv[1]!r} is not a flag: fields of the config are set as --config.field=value.')
        _dispatch()
    except UserError as error:
        sys.exit(_complain(error))
    except (MemoryError, RuntimeError) as error:
        remedy = out_of_memory(error, FLAGS.mode)
        if remedy is None:
            raise
        sys.exit(_complain(remedy))
    except KeyboardInterrupt:
        print('\nStopped; the same command goes on where it stopped.', file=sys.stderr)
        sys.exit(130)


def _complain(error: Exception | str) -> int:
    message = str(error)
    if 'Traceback (most recent call last)' in message:  # of a config file that refuses its argument
        message = message.strip().splitlines()[-1].partition(': ')[2]
    print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; a misspelt field or value is one line instead of a traceback."""
    try:
        return flags.FLAGS(argv)
    except (KeyError, AttributeError) as error:
        reason = str(error.args[0]).replace('\\n', ' ').replace("\\'", "'").strip("'")
        sys.exit(_complain(f"The config has no such field as '{reason}"))
    except (flags.Error, TypeError, ValueError, OSError) as error:
        sys.exit(_complain(error))


if __name__ == '__main__':
    # Our own lines are for the user; libraries speak up from warnings on.
    absl_logging.set_verbosity(absl_logging.WARNING)
    log = logging.getLogger('cfg')
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    xla_flags.choose()
    app.run(main, flags_parser=_parse)
