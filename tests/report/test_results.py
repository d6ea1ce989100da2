"""Rows as files: read as they were written, refused with a sentence, and the lines that are made of them."""

import dataclasses
import json
import re

import pytest

from cfg.report.results import Results
from cfg.report.rows import LATER, Drawn, FileRow, Given, Method, Row, identity_of
from cfg.runtime.errors import UserError
from tests.report.rows import row_of, write_rows


def lines(workdir):
    return [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]


def test_a_row_is_read_as_it_was_written(tmp_path):
    row = row_of(w=0.3, warnings=['few', 'ä'], kid=1e-300, sampling={'logvar_interp': None}, versions={'a': '1'})
    Results(tmp_path).write(row)
    assert Results(tmp_path).read() == [row]
    assert row.identity in Results(tmp_path)
    assert [path.name for path in (tmp_path / 'results').iterdir()] == [f'{row.identity}.json']
    assert lines(tmp_path) == [json.loads((tmp_path / 'results' / f'{row.identity}.json').read_text())]
    assert lines(tmp_path)[0]['sampling']['guidance'] == 'cfg'
    theirs = FileRow(
        source=Given(samples_sha256='1'),
        samples='x.npz',
        **{name: getattr(row, name) for name in ('method', 'scores', 'beside', 'origin')},
    )
    Results(tmp_path, FileRow).write(theirs)
    assert Results(tmp_path, FileRow).read() == [theirs]
    assert (tmp_path / 'evaluate_npz.jsonl').exists()


def test_the_identity_is_of_all_that_a_row_measures_and_of_nothing_else():
    changes = {int: 7, float: 0.7, bool: False, str: 'x'}
    row = row_of()
    for part, kind in (('source', Drawn), ('method', Method)):
        for field in dataclasses.fields(kind):
            if field.name != 'sampling':
                value = next(value for kind, value in changes.items() if kind in (field.type, *_union(field.type)))
                assert row_of(**{field.name: value}).identity != row.identity, field.name
        assert getattr(row, part) == getattr(row_of(fid=1.0, finished='later', device='x', reference='y'), part)
    for name, value in row.flat['sampling'].items():
        other = not value if isinstance(value, bool) else 'x' if isinstance(value, str) else 7
        assert row_of(sampling={name: other}).identity != row.identity, name
    assert row_of(fid=1.0, p_uncond=0.5, cost=1.0).identity == row.identity == identity_of(row.source, row.method)
    assert re.fullmatch('[0-9a-f]{16}', row.identity)


def test_rows_of_older_versions_are_read_and_stay_the_same_measurements(tmp_path):
    """Fields that came later are null in them, and say nothing of their identity."""
    row = row_of()
    assert row.identity == 'b1c838c751fa40d1'  # as it was before there were such fields
    write_rows(tmp_path, [row])
    path = Results(tmp_path).path(row.identity)
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in values.items() if name not in LATER}))
    assert Results(tmp_path).read() == [row]
    assert set(LATER) < values.keys()


def _union(hint):
    return getattr(hint, '__args__', ())


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'w': None}, 'has w=null, which is no number'),
        ({'w': '1'}, 'has w="1", which is no number'),
        ({'w': float('nan')}, 'says that w is nan, which is no number'),
        ({'fid': float('inf')}, 'says that fid is inf, which is no number'),
        ({'fid': 'low'}, 'has fid="low", which is no number'),
        ({'kid': True}, 'has kid=true, which is no number'),
        ({'step': None}, 'has step=null, which is no whole number'),
        ({'step': 1.0}, r'has step=1\.0, which is no whole number'),
        ({'num_samples': [3]}, r'has num_samples=\[3\], which is no whole number'),
        ({'ema': 1}, 'has ema=1, which is no true or false'),
        ({'warnings': [1]}, r'has warnings=\[1\], which is no list of texts'),
        ({'versions': {'jax': 1}}, 'has versions={"jax": 1}, which is no object of texts'),
        ({'sampling': None}, 'has sampling=null, which is no object'),
        ({'sampling': {}}, 'has no guidance'),
        ({'fid': ...}, 'has no fid'),
        ({'uncond_params_sha256': ...}, 'has no uncond_params_sha256'),
        (
            {'sampling': row_of().flat['sampling'] | {'extra': 1}},
            'has sampling=.*, which does not fit its other fields',
        ),
        ({'sampling': 'paper'}, 'has sampling="paper", which is no object'),
        ({'identity': ...}, 'has identity=null, which does not fit its other fields'),
        ({'extra': 1}, 'has extra=1, which does not fit its other fields'),
        ({'seed': 5}, 'has identity="[0-9a-f]{16}", which does not fit its other fields'),
    ],
)
def test_a_row_that_is_not_as_it_was_written_is_named(tmp_path, changes, expected):
    row = row_of()
    write_rows(tmp_path, [row, row_of(w=1.0)])
    path = Results(tmp_path).path(row.identity)
    values = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not ...}
    path.write_text(json.dumps(values))
    with pytest.raises(
        UserError, match=rf'results/{row.identity}\.json {expected}: delete that file, and --mode=eval '
    ):
        Results(tmp_path).read()


@pytest.mark.parametrize(('content', 'expected'), [('{"step": 1', 'is not JSON'), ('[]', 'is not a JSON object')])
def test_a_file_that_is_no_row_is_named(tmp_path, content, expected):
    (tmp_path / 'evaluate_npz').mkdir()
    (tmp_path / 'evaluate_npz' / 'x.json').write_text(content)
    with pytest.raises(UserError, match=rf'x\.json {expected}: delete that file, and --mode=evaluate_npz measures'):
        Results(tmp_path, FileRow).read()


def test_a_number_that_is_not_finite_is_no_row(tmp_path):
    row = row_of()
    bad = dataclasses.replace(row, scores=dataclasses.replace(row.scores, fid=float('nan'), kid=float('inf')))
    with pytest.raises(UserError, match=rf'{row.identity}\.json is not written: fid is nan, kid is inf; see whether'):
        Results(tmp_path).write(bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('names', [['results.jsonl'], ['results.job1of2.jsonl', 'results.job2of2.jsonl']])
def test_a_workdir_of_an_older_version_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text('{"step": 1}\n')
    for use in (Results(tmp_path).check, Results(tmp_path).read):
        with pytest.raises(
            UserError, match=rf'{re.escape(names[0])} is of an older version.* delete it or move it away'
        ):
            use()


def test_there_are_no_rows_yet(tmp_path):
    assert Results(tmp_path).read() == []
    Results(tmp_path).check()
    Results(tmp_path).write_lines()
    assert not list(tmp_path.iterdir())


def test_rows_are_in_one_order_whoever_wrote_them_when(tmp_path):
    rows = [
        row_of(step=step, ema=ema, sampling={'guidance': guidance}, seed=seed, w=w)
        for step in (300, 1200)
        for ema in (True, False)
        for guidance in ('cfg', 'apg', 'cfg_plus_plus')
        for seed in (0, 10)
        for w in (0.0, 0.5, 10.0)
    ]
    write_rows(tmp_path, reversed(rows))
    assert Results(tmp_path).read() == rows
    assert [(row['step'], row['w']) for row in lines(tmp_path)] == [(row.source.step, row.source.w) for row in rows]


def test_the_lines_have_a_row_that_another_process_finished_meanwhile(tmp_path, monkeypatch):
    """The other one reads and writes all rows between our reading and our writing, so that ours is the older state."""
    ours, theirs = row_of(w=1.0), row_of(w=2.0)
    from_json = Row.from_json

    def meanwhile(content, named):
        monkeypatch.undo()
        write_rows(tmp_path, [theirs])
        return from_json(content, named)

    monkeypatch.setattr(Row, 'from_json', meanwhile)
    Results(tmp_path).write(ours)
    assert [row['w'] for row in lines(tmp_path)] == [1.0, 2.0]
