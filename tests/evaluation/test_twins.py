"""Twins in the sweep: what is measured of each row, which rows are made of it, and that nothing is done twice."""

import json
import shutil

import pytest

from cfg.evaluation import sweep, twins
from cfg.modes import compare
from cfg.report import strengths
from cfg.report.results import Results
from cfg.runtime.errors import UserError
from cfg.settings.checks import check_config
from cfg.training import loop
from tests.conftest import guided_config

pytestmark = pytest.mark.usefixtures('kept_sampling')
RULES = ('cfg', 'power(alpha=0.0)', 'apg', 'scaled_score')


def config_of(**changes):
    config = guided_config(**({'guidance': RULES, 'w': (2.0,)} | changes))
    config.report.twin_samples = 8
    check_config(config)
    return config


@pytest.fixture(scope='module', name='compared')
def compared_fixture(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('twins') / 'run'
    workdir.mkdir()
    loop.train(config_of(), workdir)
    compare.run(config_of(), workdir)
    return workdir


@pytest.fixture(name='workdir')
def workdir_fixture(compared, tmp_path):
    return shutil.copytree(compared, tmp_path / 'run')


def by_rule(workdir):
    """The row and the strength of each rule."""
    results = Results(workdir)
    return {row.source.sampling.guidance: (row, strengths.read(workdir, row.identity)) for row in results.swept()}


def test_each_rule_has_a_twin_as_strong(compared):
    found, rows = by_rule(compared), {row.identity: row for row in Results(compared).read()}
    assert list(found) == ['cfg', 'apg', 'power(alpha=0.0)', 'scaled_score']
    of_cfg = found['cfg'][1]
    assert (of_cfg.num_samples, of_cfg.twin, of_cfg.w_eff, of_cfg.remainder) == (0, None, [2.0] * 4, [0.0] * 4)
    # At alpha = 0 it is Eq. 6, which its text does not tell: so is its twin, to the last grey level or nearly.
    row, strength = found['power(alpha=0.0)']
    assert strength.num_samples == 8
    assert strength.w_eff == pytest.approx([2.0] * 4, rel=1e-4)
    assert strength.remainder == pytest.approx([0.0] * 4, abs=1e-5)
    twin = rows[strength.twin_row]
    assert twin.apart
    assert twin.source.w == 1.0
    assert twin.source.sampling.guidance == strength.twin
    assert (twin.source.seed, twin.evaluations) == (row.source.seed, row.evaluations)
    assert twin.scores.fid == pytest.approx(row.scores.fid, rel=1e-3)
    # A rule of one prediction does not know d.
    assert min(found['scaled_score'][1].remainder) > 0.25
    assert len(rows) == 4 + 3


def test_twins_are_on_the_page_and_on_no_curve(compared):
    folder = compared / 'compare'
    head, *lines = (folder / 'twins.csv').read_text().splitlines()
    assert head.startswith('guidance,w,w_eff,remainder,cost,')
    assert [line.split(',')[0] for line in lines] == ['apg', 'power(alpha=0.0)', 'scaled_score']
    assert (folder / 'strength.png').read_bytes().startswith(b'\x89PNG')
    assert 'no spread is known' in (folder / 'index.html').read_text()
    assert len((folder / 'points.csv').read_text().splitlines()) == 1 + 4


def test_nothing_is_measured_twice(workdir, monkeypatch):
    def fails(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(twins, '_measured', fails)
    monkeypatch.setattr(sweep.Sweep, '_measure', fails)
    compare.run(config_of(), workdir)


def test_a_strength_of_other_samples_is_measured_anew(workdir):
    config = config_of(guidance=('apg',))
    config.report.twin_samples = 4
    compare.run(config, workdir)
    assert by_rule(workdir)['apg'][1].num_samples == 4


def test_a_comparison_goes_on_after_a_kill_at_a_twin(workdir, monkeypatch):
    _, strength = by_rule(workdir)['apg']
    before = Results(workdir).read()
    Results(workdir).path(strength.twin_row).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(twins, '_measured', None)  # the strength is there
        compare.run(config_of(), workdir)
    scores = {row.identity: row.scores for row in Results(workdir).read()}
    assert scores == {row.identity: row.scores for row in before}


def test_a_damaged_strength_is_named(workdir):
    path = workdir / strengths.FOLDER / f'{by_rule(workdir)["apg"][0].identity}.json'
    for damage in (b'{', b'{"w": 1}', b'[]', json.dumps(json.loads(path.read_bytes()) | {'w_eff': [1.0]}).encode()):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r'does not hold the strength of a row: delete that file, and'):
            strengths.read(workdir, path.stem)


def test_without_twins_there_are_none(workdir):
    config = config_of(guidance=('scaled_score',), w=(1.0,))
    config.report.twin_samples = 0
    compare.run(config, workdir)
    assert sum(not row.apart for row in Results(workdir).read()) == 5
    assert len(list((workdir / strengths.FOLDER).iterdir())) == 4
