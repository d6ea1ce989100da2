"""The one exception that a user is meant to read."""

import errno
import os
import re

# Of a write that a full disk, a quota or a limit refuses.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """Says what is wrong in the input that the user can mend, in one sentence that names it and the remedy.

    `main.py` prints it without a traceback and exits with status 2. Every function `check_...` raises it where what it
    checks does not hold.
    """


def first_line(error: Exception, length: int = 300) -> str:
    """Returns what an exception of a library says, in short; its kind if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:length] if lines else type(error).__name__


def os_error(error: BaseException | None) -> int | None:
    """Returns the number of the system's error behind an exception, or behind tensorstore's words; None for none."""
    seen = set()  # `raise a from b` while a is handled makes a ring
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r"os_error_code='(\d+)'|\[OS error (\d+)", str(error)):
            return int(found[1] or found[2])
        error = error.__cause__ or error.__context__
    return None


def reason_of_write(error: Exception) -> str:
    """Tells why a library could not write: the system's words for a full disk, or else its own in short."""
    words = (os.strerror(number) for number in NO_ROOM)
    return next((each for each in words if each in str(error)), first_line(error, 200))


def out_of_memory(error: Exception, remedy: str) -> str | None:
    """Tells what to change (`remedy`) when a device or the host ran out of memory; None for any other error."""
    if not isinstance(error, MemoryError) and 'RESOURCE_EXHAUSTED' not in str(error):  # which XLA's begins with
        return None
    where = 'The host' if isinstance(error, MemoryError) else 'The device'
    return f'{where} ran out of memory: {remedy}; what is finished is kept.'


def out_of_disk(error: OSError) -> str | None:
    """Tells what to do when a file could not be written for lack of room; None for any other error."""
    if error.errno not in NO_ROOM:
        return None
    where = f' with {error.filename}' if error.filename else ''
    return f'The disk is full{where} ({error.strerror}): make room, and the same command goes on; what is done is kept.'
