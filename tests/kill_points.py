"""What a process leaves on disk that dies at any moment, for every moment, without a process that dies.

While something runs, its folder is copied before each call that changes it: `os.rename` and its like, `os.fsync`, the
making and removing of files, and in the middle of the writing of a file that takes the place of another. A process
killed just then would have left that copy, so the same command must go on from it to the same result.
"""

import contextlib
import itertools
import os
import pathlib
import re
import shutil
import tempfile
import threading
from pathlib import Path
from unittest import mock

REMOVALS = ('unlink', 'remove', 'rmdir')
CALLS = ('fsync', 'rename', 'replace', 'link', 'mkdir', *REMOVALS)


class KillPoints:
    """The moments of a run that changes a folder.

    Args:
      folder: of the run.
      copies: a folder for its copies.

    Attributes:
      found: (what was about to happen, the copy) of each moment, in order.
      unsafe: files that took the place of another before all of their content was sure to be on disk.
    """

    def __init__(self, folder, copies):
        self._folder, self._copies = Path(folder), Path(copies)
        self._guard = threading.RLock()  # libraries write in threads of their own
        self._synced = set()
        self.found, self.unsafe = [], []

    def chosen(self):
        """Returns the moments that differ: of many removals in a row the first, the middle one and the last."""
        groups = itertools.groupby(self.found, key=lambda moment: moment[0].split()[0] in REMOVALS)
        chosen = {}
        for removals, group in groups:
            group = list(group)
            for i in sorted({0, len(group) // 2, len(group) - 1}) if removals else range(len(group)):
                chosen.setdefault(_contents(group[i][1]), group[i])
        return list(chosen.values())

    def _reach(self, name, path):
        """Copies the folder if the path lies in it."""
        if not path.is_relative_to(self._folder):
            return
        copy = self._copies / str(len(self.found))
        with contextlib.suppress(shutil.Error):  # tensorstore's own threads move its files meanwhile
            shutil.copytree(self._folder, copy, copy_function=_copy)
        self.found.append((f'{name} {path.relative_to(self._folder)}', copy))

    def _call(self, name):
        real = getattr(os, name)

        def call(path, *args, **kwargs):
            with self._guard:
                place = _path_of(path, kwargs.get('dir_fd'))
                self._reach(name, place)
                if name == 'fsync':
                    self._synced.add(_state(place))
                if name in ('rename', 'replace') and place.is_file() and _state(place) not in self._synced:
                    self.unsafe.append(str(place))
                return real(path, *args, **kwargs)

        return call

    def _open(self, real):
        def call(path, mode='r', *args, **kwargs):
            with self._guard:
                if set(mode) & set('wax+'):
                    self._reach('open', Path(path))
                return real(path, mode, *args, **kwargs)

        return call

    def _temporary(self, real):
        def call(*args, **kwargs):
            file = real(*args, **kwargs)
            write = file.write

            def first(content):
                content = bytes(content)
                file.write = write
                write(content[: len(content) // 2])
                file.flush()
                with self._guard:
                    self._reach('write', Path(file.name))
                write(content[len(content) // 2 :])
                return len(content)

            file.write = first
            return file

        return call

    @contextlib.contextmanager
    def watching(self):
        """Looks at every change while entered; one more moment is that after the last change."""
        with contextlib.ExitStack() as patches:
            for name in CALLS:
                patches.enter_context(mock.patch.object(os, name, self._call(name)))
            patches.enter_context(mock.patch.object(pathlib.Path, 'open', self._open(pathlib.Path.open)))
            patches.enter_context(
                mock.patch.object(tempfile, 'NamedTemporaryFile', self._temporary(tempfile.NamedTemporaryFile))
            )
            yield self
            self._reach('end', self._folder)


def parts_of_files(folder):
    """Returns the files of a folder and those below it whose writing was begun and not ended."""
    return sorted(path for path in Path(folder).rglob('.*') if re.fullmatch(r'\..+\.[a-z0-9_]{8}', path.name))


def _contents(folder):
    """Returns the names in a folder with the contents; of a hidden file, which nobody reads, that it is there."""
    found = set()
    for path in folder.rglob('*'):
        hidden = path.name.startswith('.')
        name = path.name.rpartition('.')[0] if hidden else path.name  # without what makes a temporary name unique
        found.add((path.parent.relative_to(folder) / name, b'' if hidden or path.is_dir() else path.read_bytes()))
    return frozenset(found)


def _copy(source, target):
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def _state(path):
    """Returns what changes when a file is written."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _path_of(path, dir_fd=None):
    if isinstance(path, int):
        return Path(f'/proc/self/fd/{path}').readlink()
    folder = Path(f'/proc/self/fd/{dir_fd}').readlink() if dir_fd is not None else Path.cwd()
    return folder / os.fspath(path)
