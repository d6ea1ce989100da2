"""Files that are whole or not there, and locks on a workdir."""

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from etils import epath

from cfg.runtime.errors import UserError, first_line

log = logging.getLogger('cfg')


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket (gs://, s3://) instead of a file system."""
    return '://' in os.fspath(path)


@contextlib.contextmanager
def reaching(path: epath.PathLike) -> Iterator[None]:
    """Turns what a bucket's client raises into a sentence.

    Raises:
      UserError: when it cannot be reached.
    """
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


def check_writable(folder: Path, what: str) -> None:
    """Makes a folder if it is missing, and tries to write in it; a bucket is not tried.

    Args:
      what: names the folder to the user, '--workdir=runs/x', say.

    Raises:
      UserError: when it cannot be written.
    """
    if is_remote(folder):
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f'{what} cannot be written ({error.strerror}): choose another folder.') from error


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a run after a crash, sees the old content or the new one, never a part."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write that takes the place of `path` when the block ends, and leaves it alone if it raises."""
    if is_remote(path):  # where an object appears when all of it has arrived
        with epath.Path(path).open('wb') as file:
            yield file
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def sha256_of_file(path: Path) -> str:
    """Of the content."""
    with Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


@contextlib.contextmanager
def lock(
    workdir: Path, what: str, *, part: str = '', wait: bool = False, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Holds `what` ('train', say) of a folder for one process; a process that dies lets go.

    Args:
      workdir: the folder; one in a bucket has no locks.
      what: the mode.
      part: of what it does there, where several may run beside each other.
      wait: until another process lets go, instead of refusing.
      waiting: is called every second meanwhile, and may raise.

    Raises:
      UserError: when another process holds it.
    """
    if is_remote(workdir):
        yield
        return
    with (Path(workdir) / f'.{part or what}.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise UserError(
                    f'Another process runs --mode={what} on {workdir}: wait for it, stop it, or work in another folder.'
                ) from None
            log.info('Another process works on %s: waiting for it.', part or what)
            _wait_for(file, waiting)
        except OSError as error:  # a file system without locks
            log.warning('%s cannot be locked (%s): take care that nothing else runs there.', workdir, error.strerror)
        yield


def _wait_for(file: IO[str], waiting: Callable[[], None] | None) -> None:
    """Locks a file as soon as it can; not in one call, which no signal handler of ours could end."""
    while True:
        if waiting is not None:
            waiting()
        time.sleep(1.0)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return


def resident_bytes() -> int:
    """What this process has in memory now; 0 where the system does not tell."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf('SC_PAGE_SIZE')


def check_workdir(workdir: str | Path, *, create: bool, write: bool) -> Path:
    """The workdir as a path.

    Args:
      create: whether it is made if it is missing.
      write: whether it must be possible to write in it.

    Raises:
      UserError: when it does not exist or cannot be written.
    """
    if '://' in str(workdir):
        raise UserError(f'--workdir={workdir} is not a local folder: give a path on this machine.')
    path = Path(workdir)
    if not create and not path.is_dir():
        raise UserError(f'--workdir={path} does not exist: give the workdir of a run.')
    if not write:
        return path
    check_writable(path, f'--workdir={path}')
    return path
