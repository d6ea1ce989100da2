"""The one exception that a user is meant to read."""


class UserError(Exception):
    """A mistake in the input that the user can mend.

    The message is one sentence that names what is wrong and the remedy; `main.py` prints it without
    a traceback and exits with status 2.
    """
