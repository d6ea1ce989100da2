"""Reads a path as the user means it, whether or not a shell has expanded it."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cfg.runtime.errors import UserError


def configs_folder() -> Path:
    """Returns the folder of the project's configs, which is beside the package or, where it is installed, within it."""
    folders = (Path(__file__).parents[level] / 'configs' for level in (2, 1))
    return next(folder for folder in folders if (folder / 'default.py').exists())


def is_remote(path: str | os.PathLike) -> bool:
    """Tells whether a path is in a bucket (gs://, s3://) instead of a file system."""
    return '://' in os.fspath(path)


def user_path(value: Any, what: str) -> Any:
    """Returns a path with its `~`, `~user`, `$VARIABLE` and `file://` resolved, as a string.

    None, and the word that a command line makes of it, become ''. An address in a bucket and a relative path stay what
    they are, and so does what is no path at all, for whoever checks its type.

    Args:
      value: what was typed, or a config file says.
      what: names it to the user, as '--workdir' or 'config.data.dir'.

    Raises:
      UserError: when the variable, the user or the machine in it is not known, or it has a control character.
    """
    if value is None or value == 'None':
        return ''
    if not isinstance(value, str | os.PathLike):
        return value
    text, named = os.fspath(value), f'{what}={str(value)!r}'
    if re.search(r'[\x00-\x1f\x7f]', text):
        raise UserError(f'{named} has a control character: take it away (\\r comes from a script with Windows lines).')
    if text.startswith('file://'):
        address = urlsplit(text)
        if address.netloc not in ('', 'localhost'):
            raise UserError(f'{named} is on another machine, {address.netloc!r}: give the path of a file or folder.')
        text = unquote(address.path)
    names = [name.strip('{}') for name in re.findall(r'\$([^\W\d]\w*|\{[^}]*\})', text, re.ASCII)]
    unset = next((name for name in names if not os.environ.get(name)), None)
    path = os.path.expanduser(os.path.expandvars(text))  # noqa: PTH111  pathlib would take the :// of an address apart
    held = re.match(r'.*\$[^/]*', path)
    if unset is not None and not (held and os.path.lexists(held[0])):  # the name of a folder may have a dollar in it
        raise UserError(f'{named}: the variable {unset} is not set; set and export it, or give the path itself.')
    if path.startswith('~'):
        user = path.partition('/')[0]
        raise UserError(f'{named}: no home folder is known for {user}; give the path itself (./{user} is one here).')
    return path
