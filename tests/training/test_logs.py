"""The logs of a run: nothing of them is waited for, and nothing of them is lost."""

import errno
import subprocess
import sys

import numpy as np
import pytest

from cfg.data.crop import from_png
from cfg.runtime.errors import UserError
from cfg.training.logs import Logs
from tests.command_line import ROOT, command

# Runs main.py and ends it where the first step is dispatched.
UNTIL_FIRST_STEP = """
import runpy, sys
from cfg.training import loop

make = loop.step_of

def made(*args, **kwargs):
    make(*args, **kwargs)
    def step(*_):
        slow = {'tensorflow', 'clu', 'matplotlib', 'tensorflow_datasets'}
        print('imported:', *sorted(slow & sys.modules.keys()))
        raise SystemExit(0)
    return step

loop.step_of = made
runpy.run_path('main.py', run_name='__main__')
"""


def test_no_tensorflow_is_imported_before_the_first_step(tmp_path):
    arguments = command('--mode=train', f'--workdir={tmp_path}')[1:]
    code = [sys.executable, '-c', UNTIL_FIRST_STEP, *arguments[1:]]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('imported:'))
    assert line == 'imported:'


def test_what_cannot_be_written_is_raised(tmp_path):
    with pytest.raises(Exception, match='Not a directory'), Logs(tmp_path, start_step=0) as logs:
        (tmp_path / 'tensorboard').write_text('a file where the folder should be')
        logs.scalars(1, {'loss': 0.5})
        logs.image(1, 'samples', np.zeros((4, 4, 3), np.uint8))
        logs.flush()


def test_an_image_is_a_picture_in_the_folder_of_samples_too(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    with Logs(tmp_path, start_step=0) as logs:
        logs.image(300, 'samples', image)
    np.testing.assert_array_equal(from_png((tmp_path / 'samples' / 'train_step00000300.png').read_bytes()), image)


class Full:
    """A writer whose disk is full."""

    def write_scalars(self, *_):
        raise OSError(errno.ENOSPC, 'events.out; No space left on device')

    flush = write_scalars


def test_a_disk_that_is_full_of_pictures_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Logs, '_writer', Full())
    said = r'tensorboard cannot be written \(No space left on device\)'
    with pytest.raises(UserError, match=said), Logs(tmp_path, start_step=0) as logs:
        logs.scalars(1, {'loss': 0.5})
    with pytest.raises(UserError, match='the checkpoint'), Logs(tmp_path, start_step=0) as logs:
        logs.scalars(2, {'loss': 0.5})
        raise UserError('the checkpoint')  # which says it better
