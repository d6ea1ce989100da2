"""Signals are answered at once, and the second one says what it costs."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from cfg.runtime import stopping
from cfg.runtime.stopping import StopSignal


@pytest.fixture(name='lines')
def lines_fixture(caplog):
    """Returns a function that waits until so many lines were logged."""
    caplog.set_level('INFO', logger='cfg')

    def lines(count):
        deadline = time.monotonic() + 20
        while len(caplog.records) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return [record.message for record in caplog.records]

    return lines


@pytest.fixture(name='exits')
def exits_fixture(monkeypatch):
    """The exit statuses with which this process would have ended."""
    found = []
    monkeypatch.setattr(stopping.os, '_exit', found.append)
    monkeypatch.setattr(stopping, 'PATIENCE', 600.0)
    return found


@pytest.mark.parametrize('number', StopSignal.NUMBERS)
def test_the_first_says_what_is_saved_and_the_second_what_is_lost(number, lines, exits):
    before = [signal.getsignal(each) for each in StopSignal.NUMBERS]
    name = number.name
    with StopSignal('the step in progress', 'the steps since then') as stop:
        os.kill(os.getpid(), number)
        assert stop.received == number
        assert lines(1) == [f'{name}: the step in progress is being saved; a second one ends at once, without that.']
        assert not exits
        os.kill(os.getpid(), number)
        ended = f'Ended by a second signal ({name}) without saving. Lost: the steps since then.'
        assert lines(2)[1] == ended
        with pytest.raises(SystemExit) as end:
            stop.leave(lambda: None)
    assert end.value.code == 128 + number
    assert exits == [128 + number]
    assert [signal.getsignal(each) for each in StopSignal.NUMBERS] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_the_second_ends_whatever_becomes_of_its_words(lines, exits, monkeypatch):
    monkeypatch.setattr(stopping, 'PATIENCE', 0.01)
    for hangs in (False, True):
        exits.clear()
        goes_on = threading.Event()
        with StopSignal() as stop:
            stop.lost = goes_on.wait if hangs else lambda: 1 / 0
            os.kill(os.getpid(), signal.SIGTERM)
            lines(1)
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 20
            while not exits and time.monotonic() < deadline:
                time.sleep(0.01)
            assert exits[0] == 128 + signal.SIGTERM
            goes_on.set()


def test_both_are_answered_while_a_library_computes(lines, exits, caplog):
    """Python's own handlers wait until it returns."""
    matrix = np.random.default_rng(0).normal(size=(1500, 1500))

    def twice():
        for number in (signal.SIGINT, signal.SIGTERM):
            time.sleep(0.1)
            os.kill(os.getpid(), number)

    with StopSignal() as stop:
        sender = threading.Thread(target=twice)
        sender.start()
        np.linalg.svd(matrix)
        returned = time.time()
        sender.join()
        assert lines(2)[1].startswith('Ended by a second signal (SIGTERM)')
    assert caplog.records[1].created < returned
    assert stop.received == signal.SIGINT
    assert exits == [128 + signal.SIGTERM]


def test_an_event_loop_may_take_the_place_for_a_while(lines, exits):
    """As those of orbax do, in the main thread."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with StopSignal() as stop:
        ours = signal.set_wakeup_fd(write)
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(lines(1)) == 1
        assert signal.set_wakeup_fd(ours) == write
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(lines(2)) == 2
    assert stop.received == signal.SIGTERM
    assert exits == [128 + signal.SIGTERM]
    os.close(read)
    os.close(write)


def test_other_signals_are_nothing_to_it(lines):
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.05)
        stop.leave(lambda: pytest.fail('there was no signal'))
    signal.signal(signal.SIGUSR1, before)
    assert lines(0) == []


def test_in_another_thread_it_takes_none():
    before = signal.getsignal(signal.SIGINT)

    def enter():
        with StopSignal() as stop:
            assert signal.getsignal(signal.SIGINT) is before
            stop.leave(lambda: pytest.fail('there was no signal'))
        done.append(True)

    done = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert done
