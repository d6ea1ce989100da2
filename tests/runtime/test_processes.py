"""What needs no second process: the flags, and everything where there is one process. The rest is in test_pod.py."""

import contextlib
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from cfg.modes import start
from cfg.runtime import processes
from cfg.runtime.errors import UserError
from configs import digits


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        (('here:1', None, None), 'go with --num_processes'),
        ((None, None, 1), 'go with --num_processes'),
        (('here:1', 2, None), r'--process_id=None must be 0 to 1'),
        (('here:1', 2, 2), r'--process_id=2 must be 0 to 1 with --num_processes=2'),
        (('here', 2, 0), r'--coordinator=here must be HOST:PORT'),
        ((None, 2, 0), r'--coordinator=None must be HOST:PORT'),
    ],
)
def test_flags_that_do_not_go_together(flags, expected, monkeypatch):
    monkeypatch.delenv('JAX_COORDINATOR_ADDRESS', raising=False)
    with pytest.raises(UserError, match=expected):
        processes.check_flags(*flags)


@pytest.mark.parametrize('flags', [(None, None, None), (None, 1, None), (None, 1, 0), ('here:1', 2, 1)])
def test_flags_that_do(flags):
    processes.check_flags(*flags)


def test_one_process_agrees_with_itself():
    assert processes.largest(3) == 3
    assert processes.from_first({'a': [1, None]}) == {'a': [1, None]}
    assert np.array_equal(processes.gather({'x': np.arange(3)})['x'], np.arange(3))
    assert processes.on_first(lambda: 1) == processes.on_each(lambda: 1) == processes.in_turn(lambda: 1) == 1
    with processes.held_by_first(lambda: contextlib.nullcontext(5)) as held:
        assert held == 5
    assert not processes.told_to_stop(1)


@pytest.mark.parametrize('way', [processes.on_first, processes.on_each, processes.in_turn])
def test_errors_and_stops_pass_through(way):
    def fail(error):
        raise error

    with pytest.raises(UserError, match='x is missing'):
        way(lambda: fail(UserError('x is missing')))
    with pytest.raises(SystemExit, match='143'):
        way(lambda: fail(SystemExit(143)))


def test_processes_that_jax_does_not_find_are_not_taken_for_one(monkeypatch):
    """Open MPI 5 no longer sets the variable that JAX looks for."""
    monkeypatch.setattr(processes, '_may_be_several', lambda: False)
    monkeypatch.setenv('OMPI_COMM_WORLD_RANK', '0')
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '2')
    with pytest.raises(UserError, match='Open MPI started 2 processes, which JAX does not find: give --coordinator, '):
        processes.start(None, None, None, timeout=60)
    processes.start(None, 1, None, timeout=60)  # alone, as was asked for
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '1')
    processes.start(None, None, None, timeout=60)


@pytest.mark.parametrize('mode', ['train', 'eval', 'compare', 'sample'])
def test_sigterm_ends_what_does_not_ask_jax_whether_it_came(tmp_path, monkeypatch, mode):
    def taken_by_jax(number, frame):
        pass

    flags = SimpleNamespace(coordinator=None, num_processes=1, process_id=None)
    monkeypatch.setattr(start, 'FLAGS', flags)
    before = signal.signal(signal.SIGTERM, taken_by_jax)
    try:
        with start.joined(digits.get_config(), tmp_path, mode, status_of=lambda error: None):
            found = signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found is (taken_by_jax if mode == 'train' else signal.SIG_DFL)
