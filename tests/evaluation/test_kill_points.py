"""A sweep that dies at any moment goes on to the rows and samples of one that did not."""

import json
import shutil

import pytest

from cfg.evaluation import sweep
from cfg.report.results import Results
from cfg.training import loop
from tests.kept import keep
from tests.kill_points import KillPoints, parts_of_files

VARYING = ('seconds', 'finished')


def results_of(workdir):
    """Returns (the rows without what may differ between two runs, {name: content} of the sample files)."""
    rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
    assert rows == [json.loads(row.to_json()) for row in Results(workdir).read()]
    rows = [{k: v for k, v in row.items() if k not in VARYING} for row in rows]
    return rows, {path.name: path.read_bytes() for path in (workdir / 'samples').iterdir()}


@pytest.mark.chaos
@pytest.mark.usefixtures('kept_sampling')
def test_a_sweep_killed_at_every_change_of_its_folder(tmp_path, small_config, monkeypatch):
    """The moments of the real images, and a row of two batches, each saved."""
    small_config.train.num_steps = 2
    options = small_config.eval
    options.w = (1.0,)
    options.num_samples, options.keep_samples, options.is_split_size, options.save_seconds = 40, 30, 20, 0.0
    workdir = tmp_path / 'run'
    workdir.mkdir()
    loop.train(small_config, workdir)
    keep(monkeypatch, sweep.opening, open_features=lambda *_: 'those of this config')
    points = KillPoints(workdir, tmp_path / 'copies')
    with points.watching():
        sweep.evaluate(small_config, workdir)
    assert not points.unsafe
    assert {change.split()[0] for change, _ in points.found} > {'write', 'fsync', 'replace', 'unlink', 'mkdir'}
    expected = results_of(workdir)
    assert (len(expected[0]), len(expected[1])) == (1, 1)
    for change, copy in points.chosen():
        sweep.evaluate(small_config, copy)
        assert results_of(copy) == expected, change
        assert not list((copy / sweep.UNFINISHED).glob('[!.]*')), change
        assert not parts_of_files(copy), change
        shutil.rmtree(copy)
