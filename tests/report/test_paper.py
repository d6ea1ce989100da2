"""The paper's tables, and the report that sets our numbers beside them."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from cfg.report import beside_paper, plots, sweep_report, tables
from cfg.report.curves import group_curves
from cfg.report.paper import paper_table
from cfg.runtime.errors import UserError
from cfg.settings.table import TABLES
from tests.report.rows import row_of, write_rows


def row(w, **changes):
    """A row as a sweep of Inception writes it."""
    errors = {'fid_standard_error': 0.01, 'inception_score_standard_error': 0.1}
    scores = {'fid': 2.5 + w, 'inception_score': 50 + 10 * w}
    return row_of(**({'step': 400_000, 'w': w} | scores | errors | changes))


def write_report(workdir, **changes):
    options = {'class_names': ['a', 'b'], 'title': 't', 'grid_w': (0.0,), 'grid_shape': (2, 2), 'one_class': 0}
    return sweep_report.write_report(workdir, **(options | changes)).read_text()


def test_the_tables_of_the_config_are_those_of_the_package():
    folder = Path(sweep_report.__file__).with_name('paper_tables')
    assert set(TABLES) == {path.stem for path in folder.iterdir()}


def test_numbers_that_the_paper_states_in_its_text():
    """Best FID 1.55 at w = 0.1 (64x64, p_uncond = 0.1), 2.43 at w = 0.3 (128x128); best IS at w = 4."""
    table = paper_table('table1_imagenet64')
    first = table.curves[0]
    assert (first.setting, first.fid[first.bests['fid']], first.w[first.bests['fid']]) == (0.1, 1.55, 0.1)
    assert [curve.setting for curve in table.curves] == [0.1, 0.2, 0.5]
    for name in TABLES:
        for curve in paper_table(name).curves:
            assert np.array_equal(curve.w, [*np.arange(10) / 10, 1, 2, 3, 4])
            assert curve.w[curve.bests['inception_score']] == 4
    table = paper_table('table2_imagenet128')
    assert [curve.setting for curve in table.curves] == [128, 256, 1024]
    assert [(c.fid[c.bests['fid']], c.w[c.bests['fid']]) for c in table.curves[1:]] == [(2.43, 0.3)] * 2
    assert table.curves[1].inception_score[-1] == 421.03


@pytest.mark.parametrize(
    ('name', 'changes', 'setting'),
    [
        ('table1_imagenet64', {}, 0.1),
        ('table1_imagenet64', {'p_uncond': 0.5}, 0.5),
        ('table1_imagenet64', {'p_uncond': 0.3}, None),
        ('table2_imagenet128', {}, 256.0),
        ('table2_imagenet128', {'sampling': {'num_steps': 64}}, None),
        ('table1_imagenet64', {'sampling': {'sampler': 'ddim', 'num_steps': 256}}, None),
        ('table2_imagenet128', {'sampling': {'guidance': 'apg'}}, None),
        ('table2_imagenet128', {'sampling': {'grid': 'uniform'}}, None),
        ('table2_imagenet128', {'sampling': {'num_steps': 256, 'guidance': 'cfg', 'grid': 'paper'}}, 256.0),
    ],
)
def test_a_curve_of_ours_is_beside_that_of_the_same_setting(name, changes, setting):
    table = paper_table(name)
    (curve,) = group_curves([row(0.1, **changes)])
    match = table.match(curve)
    assert (match and match.setting) == setting
    compared = beside_paper.compare(table, [curve])
    differences = [column for column in compared.columns if column.whose == 'difference']
    assert len(differences) == (0 if setting is None else 2)
    for column, paper in zip(differences, (match and match.fid, match and match.inception_score), strict=False):
        at = compared.w.tolist().index(0.1)
        ours = curve.rows[0].flat['fid' if column.metric == 'FID' else 'inception_score']
        assert column.values[at] == pytest.approx(ours - paper[1])
        assert np.isnan(np.delete(column.values, at)).all()


def test_the_table_has_every_w_and_marks_the_best():
    curves = group_curves([row(w) for w in (0.0, 0.1, 0.25, 4.0)])  # 0.25 is not in the paper
    compared = beside_paper.compare(paper_table('table1_imagenet64'), curves)
    assert compared.w.tolist() == [0, 0.1, 0.2, 0.25, *(i / 10 for i in range(3, 10)), 1, 2, 3, 4]
    (ours,) = [column for column in compared.columns if (column.metric, column.whose) == ('FID', 'ours')]
    assert np.flatnonzero(np.isfinite(ours.values)).tolist() == [0, 1, 3, 14]
    assert ours.best == 0
    paper = compared.columns[0]
    assert (paper.whose, paper.values[paper.best]) == ('paper', 1.55)
    assert np.isnan(paper.values[3])


def test_files_of_the_comparison(tmp_path):
    write_rows(tmp_path, [row(w) for w in (0.0, 0.1, 4.0)])
    page = write_report(tmp_path, paper='table1_imagenet64')
    with (tmp_path / 'report' / 'paper_table.csv').open(newline='') as file:
        lines = {float(line['w']): line for line in csv.DictReader(file)}
    assert len(lines) == 14
    assert lines[0.1]['FID paper (p_uncond = 0.1)'] == '1.55'
    assert float(lines[0.1]['FID ours (step 400,000)']) == 2.6
    assert float(lines[0.1]['FID difference (step 400,000)']) == pytest.approx(1.05)
    assert lines[0.2]['IS ours (step 400,000)'] == ''
    assert float(lines[4.0]['IS paper (p_uncond = 0.5)']) == 225.1
    assert 'Table 1, ImageNet 64x64: the paper and ours' in page
    assert '+1.05' in page
    assert 'step 400,000 minus the paper at p_uncond = 0.1' in page
    assert 'cannot be compared' not in page
    assert page.count('<td class="paper best">') == 6
    assert page.count('<td class="ours best">') == 2
    assert_valid_tabular((tmp_path / 'report' / 'paper_table.tex').read_text())
    assert r'\textbf{1.55}' in (tmp_path / 'report' / 'paper_table.tex').read_text()
    assert '$+1.05$' in (tmp_path / 'report' / 'paper_table.tex').read_text()
    assert_valid_tabular((tmp_path / 'report' / 'table.tex').read_text())


@pytest.mark.parametrize(
    ('changes', 'reasons'),
    [
        ({'num_samples': 10_000}, ['not of 50,000 samples']),
        ({'features': 'digits-classifier (64 features; not Inception)'}, ['not those of Inception']),
        ({'num_samples': 10, 'features': 'other'}, ['not of 50,000 samples', 'not those of Inception']),
        (
            {'sampling': {'sampler': 'ddim', 'guidance': 'apg', 'num_steps': 16}},
            ['not drawn as there but with guidance apg, sampler ddim', 'T = 16; the paper does not state'],
        ),
    ],
)
def test_what_cannot_be_compared_says_so(tmp_path, changes, reasons):
    write_rows(tmp_path, [row(0.0, **changes)])
    page = write_report(tmp_path, paper='table1_imagenet64')
    assert 'cannot be compared with those of the paper' in page
    assert all(reason in page for reason in reasons)


def test_a_t_that_the_paper_does_not_state_is_named():
    table = paper_table('table1_imagenet64')
    for num_steps, named in ((16, True), (256, False)):
        curves = group_curves([row(0.0, sampling={'num_steps': num_steps})])
        notes = ' '.join(beside_paper.compare(table, curves).notes)
        assert ('the paper does not state its own' in notes) == named
        assert 'minus the paper at p_uncond = 0.1' in notes


def test_without_a_table_nothing_speaks_of_the_paper(tmp_path):
    write_rows(tmp_path, [row(0.0)])
    page = write_report(tmp_path)
    assert 'id="paper"' not in page
    assert 'No samples were kept' in page
    assert not list((tmp_path / 'report').glob('paper*'))


def test_the_figures_hold_the_papers_points():
    table = paper_table('table2_imagenet128')
    curves = group_curves([row(w) for w in (0.0, 0.3, 1.0)])
    (axes,) = plots.figure_fid_against_is(curves, table).axes
    fid_axes, score_axes = plots.figure_against_w(curves, table).axes
    for paper in table.curves:
        label = f'paper, {paper.label}'
        for shown, x, y in (
            (axes, paper.inception_score, paper.fid),
            (fid_axes, paper.w, paper.fid),
            (score_axes, paper.w, paper.inception_score),
        ):
            (line,) = [line for line in shown.lines if line.get_label() == label]
            np.testing.assert_array_equal(line.get_xydata(), np.stack([x, y], axis=1))
    ours = axes.lines[0]
    (same,) = [line for line in axes.lines if line.get_label() == 'paper, T = 256']
    assert same.get_color() == ours.get_color()  # the same setting, the same colour
    assert not [line for line in plots.figure_against_w(curves, None).axes[0].lines if 'paper' in line.get_label()]


def test_a_report_over_several_runs(tmp_path):
    """Fig. 4 is of three models: three workdirs."""
    write_rows(tmp_path / 'a', [row(0.0, samples='samples/x.npz'), row(1.0)])
    write_rows(tmp_path / 'b', [row(0.0, p_uncond=0.5, params_sha256='b', samples='samples/x.npz')])
    for name, level in (('a', 10), ('b', 200)):
        (tmp_path / name / 'samples').mkdir()
        images = np.full((4, 8, 8, 3), level, np.uint8)
        np.savez(tmp_path / name / 'samples' / 'x.npz', arr_0=images, arr_1=np.arange(4, dtype=np.int32) % 2)
    page = write_report(tmp_path / 'a', others=[tmp_path / 'b'], paper='table1_imagenet64')
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert [curve['label'] for curve in data['curves']] == ['p_uncond = 0.5', 'p_uncond = 0.1']
    assert [len(data['sheets']), data['curves'][0]['points'][0]['sheet']] == [2, 0]
    with (tmp_path / 'a' / 'report' / 'paper_table.csv').open(newline='') as file:
        head = next(csv.reader(file))
    assert 'FID difference (p_uncond = 0.5)' in head
    with pytest.raises(UserError, match='nowhere/results has no rows'):
        write_report(tmp_path / 'a', others=[tmp_path / 'nowhere'])


def test_every_metric_and_warning_is_on_the_page(tmp_path):
    scores = {
        'sfid': 3.25,
        'precision': 0.7104,
        'recall': 0.5,
        'kid': 0.00123,
        'kid_standard_error': 0.00002,
        'finite_sample_fid': 0.321,
        'finite_sample_draws': '5 draws of balanced labels',
    }
    write_rows(
        tmp_path,
        [row(0.0, **scores, warnings=['few', 'both']), row(1.0, sfid=None, warnings=['both'])],
    )
    page = write_report(tmp_path)
    for text in (
        'sFID ↓',
        '3.25',
        '0.710',
        '0.500',
        '1.230 ± 0.020',
        'Floor: 50,000 real images',
        '5 draws of balanced',
        '0.321',
    ):
        assert text in page
    notices = re.findall('<p class="notice">(.*?)</p>', page)
    assert 'both' in notices
    assert 'few (step 400,000: w = 0)' in notices
    table = re.search('<table>.*?</table>', page, re.S)[0]
    counts = {line.count('<td') + 2 * line.count('colspan="2"') for line in table.split('<tr')[2:]}
    assert len({count for count in counts if count}) <= 2
    assert 'accuracy' not in table  # no row has one
    tex = (tmp_path / 'report' / 'table.tex').read_text()
    assert_valid_tabular(tex)
    assert r'1.230 $\pm$ 0.020' in tex


def test_text_for_latex():
    assert tables.escape('p_uncond = 10% & more ~ {x}') == r'p\_uncond = 10\% \& more \textasciitilde{} \{x\}'
    assert tables.escape('a\\b') == r'a\textbackslash{}b'
    assert tables.escape('-1.25') == '$-1.25$'


def assert_valid_tabular(tex):
    """Braces balance, and every line fills exactly the declared columns."""
    body = '\n'.join(line for line in tex.splitlines() if not line.startswith('%'))
    plain = re.sub(r'\\[\\{}&%$#_]', lambda match: r'\\' if match[0] == r'\\' else '', body)
    assert plain.count('{') == plain.count('}')
    assert plain.count('$') % 2 == 0
    columns = len(re.search(r'begin\{tabular\}\{([lrc]+)\}', tex)[1])
    lines = [line for line in plain.splitlines() if line.endswith(r'\\')]
    assert len(lines) > 1
    for line in lines:
        spans = [int(span) - 1 for span in re.findall(r'multicolumn\{(\d+)\}', line)]
        assert line.count('&') + 1 + sum(spans) == columns, line
