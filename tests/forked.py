"""Runs main.py in processes that start in a moment: forks of one that has imported everything and run nothing."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.command_line import ROOT, XLA_FLAGS, command, sentence

_context = multiprocessing.get_context('forkserver')
_context.set_forkserver_preload(['tests.preload'])
# Python 3.11's server looks for these modules where this says, and says nothing if they are not there.
os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])


def _child(arguments, environ, outputs, session):
    if session:
        os.setsid()
    for stream, output in zip((1, 2), outputs, strict=True):
        with Path(output).open('ab') as file:
            os.dup2(file.fileno(), stream)
    os.chdir(ROOT)
    assert 'cfg.training.logs' in sys.modules
    os.environ.update(environ)
    sys.argv = arguments
    runpy.run_path(str(ROOT / 'main.py'), run_name='__main__')


class Run:
    """A run is one process of main.py.

    Attributes:
      process: a `multiprocessing.Process`; exitcode is negative for a signal.
      output: the file with everything that it printed, or where `errors` are apart, with stdout alone.

    With `session` it leads a process group, which is that of its workers too.
    """

    def __init__(self, *arguments, output, errors=None, devices=4, session=False, **kwargs):
        self.output = Path(output)
        outputs = self.output, Path(errors or output)
        for path in outputs:
            path.unlink(missing_ok=True)
        environ = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} {XLA_FLAGS}'}
        line = command(*map(str, arguments), **kwargs)[1:]
        self.process = _context.Process(target=_child, args=(line, environ, outputs, session))
        self.process.start()

    def wait(self, timeout=600):
        """Returns the exit status; negative for a signal."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f'still running:\n{self.text}'
        return self.process.exitcode

    def signal(self, number):
        """Sends a signal, if it still runs."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    @property
    def text(self):
        """Returns what it printed so far."""
        return self.output.read_text(errors='replace') if self.output.exists() else ''


def main(*arguments, **kwargs):
    """Runs main.py on four devices to its end; returns stdout, stderr and status, as `tests.command_line.main`."""
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / 'err'
        run = Run(*arguments, output=Path(folder) / 'out', errors=errors, **kwargs)
        status = run.wait()
        return subprocess.CompletedProcess(arguments, status, run.text, errors.read_text())


def refused(*arguments, **kwargs):
    """Runs main.py, which must refuse to; returns why."""
    return sentence(main(*arguments, **kwargs))


def free_port():
    """Returns a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def group(*arguments, folder, count=2, devices=2, **kwargs):
    """Starts several processes of one run, on 127.0.0.1."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    coordinator = f'127.0.0.1:{free_port()}'
    return [
        Run(
            *arguments,
            f'--coordinator={coordinator}',
            f'--num_processes={count}',
            f'--process_id={index}',
            output=folder / f'process{index}.log',
            devices=devices,
            **kwargs,
        )
        for index in range(count)
    ]


def finish(runs):
    """Waits for all; returns their exit statuses."""
    return [run.wait() for run in runs]


def ok(runs):
    """Waits for all, which must succeed."""
    statuses = finish(runs)
    assert statuses == [0] * len(runs), '\n'.join(run.text for run in runs)


def wait_until(condition, timeout=400, pause=0.005):
    """Returns when the condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, 'waited too long'
        time.sleep(pause)
