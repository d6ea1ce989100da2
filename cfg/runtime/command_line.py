"""Does what every command does alike: flags, the config, and mistakes as one sentence. It imports no JAX."""

import importlib
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from cfg.runtime import environment, xla_flags
from cfg.runtime.errors import UserError, out_of_disk, out_of_memory
from cfg.runtime.files import remove_empty_folders
from cfg.runtime.paths import user_path
from cfg.runtime.progress import end_line

FLAGS = flags.FLAGS
STOPPED = 'Stopped; the same command goes on where it stopped.'
flags.disclaim_key_flags()  # what is defined here is shown by --help of who calls


def define_config(example: str) -> None:
    """Defines --config; `example` is an override to show in the help."""
    config_flags.DEFINE_config_file('config', None, f'The config; single fields as {example}.')


class _PathParser(flags.ArgumentParser):
    """Reads a flag as `user_path` does; '' is as good as no flag."""

    def __init__(self, name: str):
        self._name = name

    def parse(self, argument: str) -> str | None:
        """Returns the path, or None."""
        return user_path(argument, f'--{self._name}') or None


def define_path(name: str, text: str) -> None:
    """Defines a flag that is a path on this machine or in a bucket; `text` is its help."""
    flags.DEFINE(_PathParser(name), name, None, text)


def define_processes() -> None:
    """Defines the flags of several processes, for where no launcher that JAX knows starts them."""
    flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where all processes can reach it.')
    flags.DEFINE_integer('num_processes', None, 'How many processes there are; 1 = alone.', lower_bound=1)
    flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0 on.', lower_bound=0)


def read_config() -> ConfigDict:
    """Returns the config of --config.

    Raises:
      UserError: when it is missing or cannot be loaded.
    """
    config = FLAGS.config
    if config is None:
        raise UserError('--config is missing: give one of configs/*.py.')
    try:
        config.to_dict()
    except OSError as error:  # a file that could not be loaded says so when the config is first used
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f'--config cannot be loaded ({reason}): give one of configs/*.py.') from error
    return config


def run(main: Callable[[], None], *, memory: Callable[[], str], stopped: str = 'Stopped.') -> None:
    """Parses the flags and runs a command; what the user can mend is one line on stderr and exit status 2.

    Args:
      memory: what to change when memory runs out, in words; see `cfg.runtime.errors.out_of_memory`.
      stopped: what Ctrl-C answers.
    """

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(f'{argv[1]!r} is not a flag: fields of the config are set as --config.field=value.')
            main()
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt):
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one would be a traceback of what ends meanwhile
            status = exit_status(error, memory=memory(), stopped=stopped)
            if status is None:
                raise
            sys.exit(status)

    # Our own lines are for the user; libraries speak up from warnings on.
    absl_logging.set_verbosity(absl_logging.WARNING)
    environment.pin()
    xla_flags.choose()
    app.run(guarded, flags_parser=_parse)


def exit_status(error: BaseException, *, memory: str, stopped: str = 'Stopped.') -> int | None:
    """Prints what the user can mend, and gives the exit status; None if it is a fault of the program.

    Folders that the command made and put nothing into are removed: what is refused leaves nothing behind. For `memory`
    and `stopped` see `run`.
    """
    if isinstance(error, KeyboardInterrupt):
        print(f'\n{stopped}', file=sys.stderr)
        return 130
    if isinstance(error, UserError):
        remove_empty_folders()
        return complain(error)
    if isinstance(error, MemoryError | RuntimeError) and (remedy := out_of_memory(error, memory)):
        return complain(remedy)
    if isinstance(error, OSError) and (remedy := out_of_disk(error)):
        return complain(remedy)
    if isinstance(error, ModuleNotFoundError) and not (error.name or '').startswith('cfg'):
        remedy = 'pip install "classifier-free-guidance[train]", or -r requirements.txt within the project'
        return complain(f'The package {error.name!r} is not installed, which this command needs: {remedy}.')
    if isinstance(error, ValueError) and (remedy := environment.unreadable(error)):
        return complain(remedy)
    return None


def complain(error: Exception | str) -> int:
    """Prints a mistake as one line; returns the exit status."""
    message = str(error)
    if 'Traceback (most recent call last)' in message:  # of a config file that refuses its argument
        message = message.strip().splitlines()[-1].partition(': ')[2]
    end_line()
    print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; a misspelt field or value is one line instead of a traceback."""
    try:
        return FLAGS([_with_path(argument) for argument in argv if argument not in ('--config=', '--config=None')])
    except (KeyError, AttributeError) as error:
        sys.exit(complain(_no_such_field(argv, str(error.args[0]))))
    except (flags.Error, UserError, TypeError, ValueError, OSError) as error:
        sys.exit(complain(error))


def _with_path(argument: str) -> str:
    """Returns an argument of the command line; where it is the file of the config, as `user_path` reads it.

    Where the package is installed its configs are within it, and found by the path that they have in the project.
    """
    name, equals, path = argument.partition('=')
    if not equals or name.lstrip('-') != 'config':
        return argument
    path = user_path(path, name)
    installed = Path(__file__).parents[1] / path
    if path.startswith('configs/') and not _file_of(path).exists() and _file_of(installed).exists():
        sys.modules.setdefault('configs', importlib.import_module('cfg.configs'))  # what they import is beside them
        path = installed
    return f'{name}={path}'


def _file_of(path: str | Path) -> Path:
    return Path(str(path).partition(':')[0])  # a config may be told a part


def _no_such_field(argv: list[str], reason: str) -> str:
    """Tells which override names no field of the config, from ml_collections' words: a name, and perhaps a hint."""
    name = (re.findall(r'lookup: (\S+)', reason) or re.findall(r'\w+', reason) or ['?'])[0]
    paths = [arg.lstrip('-').partition('=')[0] for arg in argv if re.match('--?config[.]', arg)]
    field = next((path for path in paths if f'.{name}.' in f'{path}.'), f'config.{name}')
    hint = re.search(r'Did you mean "(\w+)"', reason)
    meant = f'; did you mean {hint[1]}?' if hint else '.'
    return f'{field} does not exist: every field of a config is in configs/default.py{meant}'
