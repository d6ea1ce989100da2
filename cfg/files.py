"""Files that are whole or not there, and locks on a workdir."""

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from cfg.errors import UserError

log = logging.getLogger('cfg')


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket (gs://, s3://) instead of a file system."""
    return '://' in os.fspath(path)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a run after a crash, sees the old content or the new one, never a part."""
    if is_remote(path):  # where an object appears when all of it has arrived
        epath.Path(path).write_bytes(content)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f'.{path.name}.', delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def lock(workdir: Path, what: str) -> Iterator[None]:
    """Holds `what` ('train', say) of a workdir for one process; a process that dies lets go.

    Raises:
      UserError: when another process holds it.
    """
    with (workdir / f'.{what}.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'Another process runs --mode={what} on {workdir}: wait for it, stop it, or work in another folder.'
            ) from None
        except OSError as error:  # a file system without locks
            log.warning('%s cannot be locked (%s): take care that nothing else runs there.', workdir, error.strerror)
        yield
