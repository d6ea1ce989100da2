"""Does what every command does alike: flags, the config, and mistakes as one sentence. It imports no JAX."""

import importlib
import importlib.util
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from cfg.runtime import environment, xla_flags
from cfg.runtime.errors import UserError, first_line, out_of_disk, out_of_memory
from cfg.runtime.files import remove_empty_folders
from cfg.runtime.paths import configs_folder, user_path
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
    names = ', '.join(sorted(file.stem for file in configs_folder().glob('[a-z]*.py')))
    known = f'give one of configs/*.py ({names}), or a file of your own'
    if config is None and not FLAGS['config'].present:
        raise UserError(f'--config is missing: {known}.')
    try:
        config.to_dict()
    except OSError as error:  # a file that could not be loaded says so when the config is first used
        reason = str(error).splitlines()[-1].strip().rpartition('failure to load: ')[2]
        raise UserError(f'--config cannot be loaded ({reason}): {known}.') from error
    except AttributeError as error:
        file = config_flags.get_config_filename(FLAGS['config'])
        raise UserError(f'get_config() of {file} returns no config: end it with return config.') from error
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
        remedy = 'pip install ".[train]", or -r requirements.txt, within the project'
        return complain(f'The package {error.name!r} is not installed, which this command needs: {remedy}.')
    if isinstance(error, ValueError) and (remedy := environment.unreadable(error)):
        return complain(remedy)
    return None


def complain(error: Exception | str, where: str = '') -> int:
    """Prints a mistake as one line, after `where` it is; returns the exit status."""
    message = str(error)
    if 'Traceback (most recent call last)' in message:  # of a config file that refuses its argument
        message = message.strip().splitlines()[-1].partition(': ')[2]
    end_line()
    print(f'error: {where}{" ".join(message.split())}', file=sys.stderr)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; a misspelt field or value, or what is wrong in the config's file, is one line."""
    each = iter(argv)
    joined = [f'{argument}={next(each, "")}' if argument in ('--config', '-config') else argument for argument in each]
    found = [_with_path(argument) for argument in joined if argument not in ('--config=', '--config=None')]
    try:
        return FLAGS(found)
    except (flags.Error, UserError, ValueError, OSError) as error:
        if 'get_config() takes 0 positional' in str(error):
            sys.exit(complain(f'{_file_of_config(found)} has no parts: leave out the colon and what follows it.'))
        sys.exit(complain(error, _line_of_config(found, error) if 'TypeError: ' in str(error) else ''))
    except Exception as error:
        where, words = _line_of_config(found, error), str(error.args[0] if error.args else '')
        if "attribute 'get_config'" in words:
            sys.exit(complain(f'{_file_of_config(found)} has no function get_config(), as configs/digits.py has.'))
        if isinstance(error, KeyError | AttributeError) and (
            not where or re.search('lookup: |Key "|Did you mean', words)
        ):
            sys.exit(complain(_no_such_field(argv, words), where))
        if isinstance(error, TypeError) and not where:  # of a field that is no part
            deep = next((path for path in re.findall(r'(config(?:[.]\w+){3,})=', ' '.join(argv))), None)
            remedy = 'options stand within the text, as in --config.sampling.guidance="apg(eta=0.0)"'
            sys.exit(complain(f'{deep} does not exist: {remedy}.' if deep else error))
        if where:
            sys.exit(complain(f'{type(error).__name__}: {first_line(error)}', where))
        raise


def _file_of_config(argv: list[str]) -> Path:
    return _file_of(next(argument.partition('=')[2] for argument in argv if re.match('--?config=', argument)))


def _line_of_config(argv: list[str], error: Exception) -> str:
    """Tells which line of the config's own file an error comes from; '' where it does not come from there."""
    if not any(re.match('--?config=', argument) for argument in argv):
        return ''
    file = _file_of_config(argv)
    lines = re.findall(rf'File "{re.escape(str(file))}", line (\d+)', ''.join(traceback.format_exception(error)))
    return f'{file}, line {lines[-1]}: ' if lines else ''


def _with_path(argument: str) -> str:
    """Returns an argument of the command line; where it is the file of the config, as `user_path` reads it.

    The project's configs are found from any folder by the path that they have in it. Where the package is installed
    they are within it, and a config elsewhere may import them too.
    """
    name, equals, path = argument.partition('=')
    if not equals or name.lstrip('-') != 'config':
        return argument
    path, folder = user_path(path, name), configs_folder()
    if folder.parent == Path(__file__).parents[1]:
        theirs = importlib.util.find_spec('configs')
        if theirs is None or theirs.origin is None:  # a folder of one's own that is no package stands before ours
            sys.modules['configs'] = ours = importlib.import_module('cfg.configs')
            ours.__path__[:0] = getattr(theirs, 'submodule_search_locations', ())
    if path.startswith('configs/') and not _file_of(path).exists() and _file_of(folder.parent / path).exists():
        path = folder.parent / path
    return f'{name}={path}'


def _file_of(path: str | Path) -> Path:
    return Path(str(path).partition(':')[0])  # a config may be told a part


def _no_such_field(argv: list[str], reason: str) -> str:
    """Tells which override names no field of the config, from ml_collections' words: a name, and perhaps a hint."""
    name = (re.findall(r'(?:lookup: |Key ")([^\s"]+)', reason) or re.findall(r'\w+', reason) or ['?'])[0]
    paths = [arg.lstrip('-').partition('=')[0] for arg in argv if re.match('--?config[.]', arg)]
    field = next((path for path in paths if f'.{name}.' in f'{path}.'), f'config.{name}')
    hint = re.search(r'Did you mean "(\w+)"', reason)
    meant = f'; did you mean {hint[1]}?' if hint else '.'
    return f'{field} does not exist: every field of a config is in configs/default.py{meant}'
