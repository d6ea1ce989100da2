import io
import logging
import re

import pytest

from cfg.runtime import command_line, progress
from cfg.runtime.progress import Progress, format_seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(name='clock')
def clock_fixture(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_lines_in_a_log_say_rate_and_time_left(clock):
    stream = io.StringIO()
    bar = Progress('train', 100, unit='step', compiles=True, stream=stream)
    clock[0] += 30  # compilation, which is no part of the rate
    bar.update(1)
    for done in range(2, 101):
        clock[0] += 0.5
        bar.update(done, 'loss 0.1')
    lines = stream.getvalue().splitlines()
    assert lines[0] == 'train: compiling'
    assert lines[2] == 'train: 21/100 steps, 2/s, 0:40 left (loss 0.1)'
    assert lines[-1] == 'train: 100/100 steps, 2/s, took 1:20 (loss 0.1)'
    assert 7 <= len(lines) <= 8


def test_a_terminal_line_rewrites_itself(clock):
    stream = Terminal()
    bar = Progress('eval', 3, start=1, unit='sample', compiles=True, stream=stream)
    assert stream.getvalue().endswith('eval: compiling')
    for done in (2, 3):
        clock[0] += 1
        bar.update(done)
    text = stream.getvalue()
    assert text.count('\r') == 3
    assert text.endswith('eval: 3/3 samples, 1/s, took 0:02\n')
    assert text.count('\n') == 1


@pytest.mark.parametrize('speak', [command_line.complain, lambda text: logging.getLogger('words').warning(text)])
def test_what_is_said_beside_progress_has_a_line_of_its_own(monkeypatch, clock, speak):
    stream = Terminal()
    monkeypatch.setattr(progress.sys, 'stderr', stream)
    monkeypatch.setattr(logging.getLogger('words'), 'handlers', [progress.Handler()])
    monkeypatch.setattr(logging.getLogger('words'), 'propagate', False)
    bar = Progress('train', 3, unit='step')
    clock[0] += 1
    bar.update(1)
    speak('first')
    speak('second')
    clock[0] += 1
    bar.update(3)
    speak('third')
    text = re.sub('(?m)^error: |\r\x1b\\[K', '', stream.getvalue())
    assert text == 'train: 1/3 steps\nfirst\nsecond\ntrain: 3/3 steps, 2/s, took 0:02\nthird\n'


def test_seconds():
    assert [format_seconds(s) for s in (0, 59.6, 61, 3600, 3725)] == ['0:00', '1:00', '1:01', '1:00:00', '1:02:05']
