"""`--mode=merge`: rows of several folders in one, which is read like a run and needs none."""

import json
import shutil

import numpy as np
import pytest

from cfg.report.results import Results
from cfg.report.sample_files import Samples, load_pairs, load_samples, pairs_of, write_pairs, write_samples
from cfg.report.strengths import RowStrength
from cfg.report.strengths import read as read_strength
from cfg.report.strengths import write as write_strength
from tests import in_process
from tests.report.rows import row_of, write_rows


def run_of(folder, *rows, level=0):
    """Makes a workdir of rows with samples of one grey level, nearest pairs and strengths."""
    folder.mkdir(exist_ok=True)
    images = np.full((8, 8, 8, 1), level, np.uint8)
    for row in rows:
        if row.samples:
            write_samples(folder, row.samples.rpartition('/')[2], images, np.arange(8, dtype=np.int32))
            write_pairs(folder, row.samples, images, images)
        strength = RowStrength(num_samples=0, logsnr=[0.0], w_eff=[1.0], remainder=[0.0], twin=None, twin_row=None)
        write_strength(folder, row.identity, strength)
    write_rows(folder, rows)
    return folder


def at(w, **changes):
    return row_of(w=w, **({'samples': f'samples/w{w:g}.npz'} | changes))


def merge(tmp_path, *folders, into='merged', mode='merge', main=in_process.main):
    workdirs = tuple(str(tmp_path / folder) for folder in folders)
    return main(f'--mode={mode}', f'--workdir={tmp_path / into}', f'--config.report.workdirs={workdirs}')


def test_a_sweep_spread_over_machines_becomes_one(tmp_path, small_run):
    """Each has a copy of the run; the merged folder is moved away from all of them, and read by every reader."""
    sources = [[at(0.0), at(1.0)], [at(1.0), at(4.0, p_uncond=0.5)]]
    for name, rows in zip('ab', sources, strict=True):
        shutil.copytree(small_run, tmp_path / name)
        run_of(tmp_path / name, *rows)
    done = merge(tmp_path, 'a', 'b')
    assert done.stdout.strip() == str(tmp_path / 'merged' / 'report' / 'index.html')
    first = at(0.0).samples
    assert (tmp_path / 'a' / first).samefile(tmp_path / 'merged' / first)
    moved = shutil.copytree(tmp_path / 'merged', tmp_path / 'elsewhere')
    for folder in 'ab':
        shutil.rmtree(tmp_path / folder)
    assert [row.source.w for row in Results(moved).read()] == [0.0, 1.0, 4.0]
    lines = (moved / 'results.jsonl').read_text().splitlines()
    assert [json.loads(line)['w'] for line in lines] == [0.0, 1.0, 4.0]
    for row in Results(moved).read():
        assert isinstance(load_samples(moved / row.samples), Samples)
        assert load_pairs(moved, row.samples) is not None
        assert read_strength(moved, row.identity) is not None
    page = (moved / 'report' / 'index.html').read_text()
    assert in_process.main('--mode=report', f'--workdir={moved}').returncode == 0
    assert (moved / 'report' / 'index.html').read_text() == page
    compared = in_process.main('--mode=compare', f'--workdir={moved}')
    assert compared.returncode == 0, compared.stderr
    assert 'p_uncond' in (moved / 'compare' / 'points.csv').read_text()


def test_merging_again_adds_rows_and_changes_none(tmp_path):
    run_of(tmp_path / 'a', at(0.0))
    run_of(tmp_path / 'b', at(1.0))
    merge(tmp_path, 'a')
    before = (tmp_path / 'merged' / 'results.jsonl').read_text()
    assert merge(tmp_path, 'a', 'b', 'merged').returncode == 0
    assert (tmp_path / 'merged' / 'results.jsonl').read_text().startswith(before)
    assert [row.source.w for row in Results(tmp_path / 'merged').read()] == [0.0, 1.0]
    shutil.rmtree(tmp_path / 'a')
    assert load_samples(tmp_path / 'merged' / at(0.0).samples) is not None


@pytest.mark.parametrize('order', [('old', 'new'), ('new', 'old')])
def test_of_two_scores_of_one_measurement_the_newer_is_kept_and_named(tmp_path, order):
    old, new = at(0.0, fid=2.0), at(0.0, fid=3.0, finished='2026-06-01T00:00:00.000+00:00')
    run_of(tmp_path / 'old', old, level=1)
    run_of(tmp_path / 'new', new, level=2)
    for folder in order:
        done = merge(tmp_path, folder)
    assert Results(tmp_path / 'merged').read() == [new]
    assert load_samples(tmp_path / 'merged' / new.samples).images.max() == 2
    assert f'Row {new.identity} has other scores in ' in done.stderr
    assert '(FID 2.00)' in done.stderr and '(FID 3.00), which is newer and kept' in done.stderr
    assert Results(tmp_path / 'old').read() == [old]  # whose files shared a name with the replaced ones
    assert load_samples(tmp_path / 'old' / old.samples).images.max() == 1


def test_samples_come_from_where_they_are_left_and_may_be_gone(tmp_path):
    for folder in 'ab':
        run_of(tmp_path / folder, at(0.0), at(1.0), at(2.0, samples=None))
    (tmp_path / 'a' / at(0.0).samples).unlink()
    (tmp_path / 'a' / pairs_of(at(0.0).samples)).unlink()
    for folder in 'ab':
        (tmp_path / folder / at(1.0).samples).unlink()
    assert merge(tmp_path, 'a', 'b').returncode == 0
    assert load_samples(tmp_path / 'merged' / at(0.0).samples) is not None
    assert load_samples(tmp_path / 'merged' / at(1.0).samples) is None
    assert 'missing or unreadable' in (tmp_path / 'merged' / 'report' / 'index.html').read_text()


def test_on_another_disk_files_are_copied(tmp_path, monkeypatch):
    run_of(tmp_path / 'a', at(0.0))

    def refuse(self, target):
        raise OSError(18, 'Invalid cross-device link')

    monkeypatch.setattr('pathlib.Path.hardlink_to', refuse)
    merge(tmp_path, 'a')
    assert Results(tmp_path / 'merged').read() == [at(0.0)]
    ours, theirs = (tmp_path / folder / at(0.0).samples for folder in ('merged', 'a'))
    assert not ours.samefile(theirs)
    assert ours.read_bytes() == theirs.read_bytes()


def test_what_cannot_be_merged_is_refused_before_anything_is_written(tmp_path, small_run):
    run_of(tmp_path / 'a', at(0.0))
    (tmp_path / 'empty').mkdir()
    for name, classes in (('digits', [str(i) for i in range(10)]), ('others', ['x', 'y'])):
        run_of(tmp_path / name, at(0.0))
        said = {'config': {'data': {'name': 'digits'}}, 'data': {'name': name, 'class_names': classes}}
        (tmp_path / name / 'merged.json').write_text(json.dumps(said))
    shutil.copytree(small_run, tmp_path / 'run')
    for into, folders, expected in (
        ('merged', [], 'config.report.workdirs is empty'),
        ('merged', ['a', 'empty'], 'empty/results has no rows'),
        ('merged', ['digits', 'others'], 'are of data with other classes, 10 and 2'),
        ('run', ['a'], 'holds a run already'),
    ):
        before = sorted(tmp_path.rglob('*'))
        assert expected in merge(tmp_path, *folders, into=into, main=in_process.refused)
        assert sorted(tmp_path.rglob('*')) == before
