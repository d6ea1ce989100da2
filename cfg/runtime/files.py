"""Files that are whole or not there, folders that a refused command takes back, and locks on a workdir."""

import contextlib
import fcntl
import glob
import hashlib
import logging
import lzma
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from etils import epath

from cfg.runtime.errors import UserError, first_line
from cfg.runtime.paths import is_remote

log = logging.getLogger('cfg')


@contextlib.contextmanager
def reaching(path: epath.PathLike) -> Iterator[None]:
    """Turns what a bucket's client raises into the sentence of a UserError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each client has kinds of its own
        if not is_remote(path):
            raise
        raise UserError(
            f'{path} cannot be reached ({type(error).__name__}: {first_line(error)}): check the address, and that this '
            'machine may read it.'
        ) from error


# What a damaged npz raises. Of a turned bit zipfile says also that a method or a version is not supported, that a
# password or a member is missing.
BROKEN_NPZ = (zipfile.BadZipFile, EOFError, ValueError, OSError, KeyError, RuntimeError, zlib.error, lzma.LZMAError)

# In a row, of a lock that is free: more than are ever needed where a file keeps its number, as in most file systems.
MOST_TRIES = 100

_made: list[Path] = []  # folders that this process made


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, unless they are there."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    _made.extend(reversed(missing))


def remove_empty_folders() -> None:
    """Removes the folders that `make_folder` made and nothing was put into."""
    while _made:
        with contextlib.suppress(OSError):
            _made.pop().rmdir()


def check_writable(folder: Path, what: str) -> None:
    """Makes a folder if it is missing, and tries to write in it; a bucket is not tried. `what` names it to the user."""
    if is_remote(folder):
        return
    try:
        make_folder(Path(folder))
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f'{what} cannot be written ({error.strerror}): choose another folder.') from error


def write_whole(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes a file so that a reader, or a run after a crash, sees the old content or the new one, never a part.

    Without `sync` that holds for readers alone.
    """
    with replacing(path, sync=sync) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Opens a binary file that takes the place of `path` when the block ends, and leaves it alone if it raises."""
    if is_remote(path):  # where an object appears when all of it has arrived
        with epath.Path(path).open('wb') as file:
            yield file
        return
    path = Path(path)
    make_folder(path.parent)
    _remove_dead_parts(path)
    with _part(path) as file:
        try:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _part(path: Path) -> IO[bytes]:
    """Makes the file that will take the place of `path`; its lock tells others that its writer lives."""
    while True:
        file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', delete=False)  # noqa: SIM115
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if Path(file.name).exists():  # nobody took it for a dead writer's before it was locked
            return file
        file.close()


def _remove_dead_parts(path: Path) -> None:
    """Removes what killed processes left of their attempts to write `path`, where the file system has locks."""
    for part in path.parent.glob(f'.{glob.escape(path.name)}.????????'):
        with contextlib.suppress(OSError), part.open('rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def sha256_of_file(path: epath.PathLike) -> str:
    """Returns the SHA-256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with epath.Path(path).open('rb') as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def lock(
    workdir: Path, what: str, *, part: str = '', wait: bool = False, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Holds `what` ('train', say) of a folder for one process; a process that dies lets go.

    Args:
      workdir: the folder; one in a bucket has no locks.
      part: of what the mode does there, where several may run beside each other.
      wait: until another process lets go, instead of refusing.
      waiting: is called every second meanwhile, and may raise.

    Raises:
      UserError: when another process holds it.
    """
    if is_remote(workdir):
        yield
        return
    path = Path(workdir) / f'.{part or what}.lock'
    tries, waited = 0, False
    with contextlib.ExitStack() as held:
        while tries < MOST_TRIES:
            held.pop_all().close()  # of a file that who held it has removed
            file = held.enter_context(path.open('w'))
            tries += 1
            if not _try_lock(file, workdir):
                if not wait:
                    raise UserError(
                        f'Another process runs --mode={what} on {workdir}: wait for it, stop it, or work in another '
                        'folder.'
                    )
                if not waited:
                    log.info('Another process works on %s: waiting for it.', part or what)
                while not _try_lock(file, workdir):  # not in one call, which no signal handler of ours could end
                    if waiting is not None:
                        waiting()
                    time.sleep(1.0)
                tries, waited = 0, True
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    break
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _try_lock(file: IO[str], folder: Path) -> bool:
    """Locks a file, or says that another process holds it; where the file system has no locks nobody can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning('%s cannot be locked (%s): take care that nothing else runs there.', folder, error.strerror)
    return True


def resident_bytes() -> int:
    """Returns what this process has in memory now; 0 where the system does not tell."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf('SC_PAGE_SIZE')


def check_workdir(workdir: str | Path, *, create: bool, write: bool) -> Path:
    """Returns the workdir as a path, made if it is missing and `create` says so.

    Raises:
      UserError: when it does not exist, or cannot be written although `write` says that it must.
    """
    if is_remote(workdir):
        raise UserError(f'--workdir={workdir} is not a local folder: give a path on this machine.')
    path = Path(workdir)
    if not create and not path.is_dir():
        raise UserError(f'--workdir={path} does not exist: give the workdir of a run.')
    if write:
        check_writable(path, f'--workdir={path}')
    return path
