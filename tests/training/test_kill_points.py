"""Training that dies at any moment goes on to the result of a run that did not."""

import shutil

import pytest

from cfg.modes.status import run as describe
from cfg.runs.run_files import read_metrics
from cfg.training import loop
from tests.kill_points import KillPoints, parts_of_files


def digests(workdir):
    return [line for line in describe(workdir).splitlines() if 'sha256' in line or line.startswith('step')]


@pytest.mark.chaos
@pytest.mark.usefixtures('kept_training')
def test_training_killed_at_every_change_of_its_folder(tmp_path, small_config):
    """Two checkpoints with averages, of which the second replaces the first, and their logs."""
    train = small_config.train
    train.ema_lengths = (0.05, 0.1)
    train.num_steps, train.checkpoint_every, train.log_every, train.keep_every, train.keep_last = 2, 1, 1, 0, 1
    workdir = tmp_path / 'run'
    workdir.mkdir()
    points = KillPoints(workdir, tmp_path / 'copies')
    with points.watching():
        loop.train(small_config, workdir)
    assert not points.unsafe
    changes = [change for change, _ in points.found]
    assert 'rename checkpoints/2.orbax-checkpoint-tmp' in changes
    assert {change.split()[0] for change in changes} > {'write', 'fsync', 'replace', 'rename', 'open', 'unlink'}
    expected = digests(workdir)
    assert any(line.startswith('averages_sha256') for line in expected)
    lines = read_metrics(workdir / 'metrics.jsonl')
    for change, copy in points.chosen():
        loop.train(small_config, copy)
        assert digests(copy) == expected, change
        assert [line['step'] for line in read_metrics(copy / 'metrics.jsonl')] == [1, 2], change
        assert [line['loss'] for line in read_metrics(copy / 'metrics.jsonl')] == [line['loss'] for line in lines]
        assert not parts_of_files(copy), change
        shutil.rmtree(copy)
