"""Runs main.py in this process, which costs a hundredth of one of its own and keeps its compiled programs."""

import contextlib
import functools
import io
import logging
import subprocess
import sys
import warnings
from unittest import mock

from absl import flags
from absl import logging as absl_logging

import cfg.__main__ as program
from cfg.runtime import command_line
from tests.command_line import ROOT, command, sentence

FLAGS = flags.FLAGS


@functools.cache
def _own_flags():
    """Returns the names of the flags of main.py, which can be defined only once."""
    before = set(FLAGS)
    program.define_flags()
    return set(FLAGS) - before


def modes():
    """Returns {name: its row} of the table of modes."""
    return program.MODES


@contextlib.contextmanager
def _unparsed(own):
    """Puts the flags of main.py back to their defaults, and takes those of the fields of a config away."""
    try:
        yield
    finally:
        for name in list(FLAGS):
            if name.startswith('config.'):
                delattr(FLAGS, name)
            elif name in own:
                FLAGS[name].unparse()
        FLAGS.unparse_flags()


@contextlib.contextmanager
def _own_logging(stream):
    """Logs to a stream as main.py does, and puts everything back afterwards."""
    root, ours = logging.getLogger(), logging.getLogger('cfg')
    before = [(log, log.handlers[:], log.level, log.propagate) for log in (root, ours)]
    verbosity = absl_logging.get_verbosity()
    ours.setLevel(logging.INFO)
    ours.addHandler(logging.StreamHandler(stream))
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
        for log, handlers, level, propagate in before:
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(level)


def main(*arguments, **kwargs):
    """Runs main.py on this process's devices; returns stdout, stderr and status, as `tests.command_line.main`.

    An error of the program itself is raised.
    """
    own = _own_flags()
    # JAX has started, so it cannot look for others.
    line = command('--num_processes=1', *map(str, arguments), **kwargs)[1:]
    out, errors = io.StringIO(), io.StringIO()
    status = 0
    with (
        _unparsed(own),
        mock.patch.object(sys, 'argv', line),  # where ml_collections looks for the fields of a config
        mock.patch('cfg.runtime.xla_flags.choose'),
        contextlib.chdir(ROOT),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        _own_logging(errors),
    ):
        warnings.filterwarnings('ignore', 'the load_module')  # ml_collections'
        try:
            command_line.run(program._dispatch, memory=lambda: modes()[FLAGS.mode].memory, stopped=command_line.STOPPED)
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess(line, status, out.getvalue(), errors.getvalue())


def refused(*arguments, **kwargs):
    """Runs main.py, which must refuse to; returns why."""
    return sentence(main(*arguments, **kwargs))
