"""Runs main.py in this process, which costs a hundredth of one of its own and keeps its compiled programs."""

import contextlib
import io
import logging
import runpy
import subprocess
import sys
import warnings
from unittest import mock

from absl import flags
from absl import logging as absl_logging

import cfg.__main__ as program
from tests.command_line import ROOT, command, sentence

FLAGS = flags.FLAGS


def modes():
    """Returns {name: its row} of the table of modes."""
    return program.MODES


@contextlib.contextmanager
def _own_flags():
    """Takes the flags that a script defines away again, and those of the fields of its config."""
    before = set(FLAGS)
    try:
        yield
    finally:
        for name in set(FLAGS) - before:
            delattr(FLAGS, name)
        FLAGS.unparse_flags()


@contextlib.contextmanager
def _own_logging():
    """Puts everything back that a script changes in how it logs."""
    root, ours = logging.getLogger(), logging.getLogger('cfg')
    before = [(log, log.handlers[:], log.level, log.propagate) for log in (root, ours)]
    verbosity = absl_logging.get_verbosity()
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
        for log, handlers, level, propagate in before:
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(level)


def run(*line):
    """Runs a script of the project, with its arguments, on this process's devices; returns as `subprocess.run` does.

    An error of the script itself is raised.
    """
    out, errors = io.StringIO(), io.StringIO()
    status = 0
    with (
        _own_flags(),
        mock.patch.object(sys, 'argv', list(line)),  # where ml_collections looks for the fields of a config
        mock.patch('cfg.runtime.xla_flags.choose'),
        contextlib.chdir(ROOT),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        _own_logging(),
    ):
        warnings.filterwarnings('ignore', 'the load_module')  # ml_collections'
        try:
            runpy.run_path(line[0], run_name='__main__')
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess(line, status, out.getvalue(), errors.getvalue())


def main(*arguments, **kwargs):
    """Runs main.py on this process's devices; returns stdout, stderr and status, as `tests.command_line.main`."""
    # JAX has started, so it cannot look for others.
    return run(*command('--num_processes=1', *map(str, arguments), **kwargs)[1:])


def refused(*arguments, **kwargs):
    """Runs main.py, which must refuse to; returns why."""
    return sentence(main(*arguments, **kwargs))
