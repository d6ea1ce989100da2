"""The report of a sweep, from fake results: files, page, table, marks, and what happens to damaged input."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfg.data.grids import mosaic
from cfg.modes import report
from cfg.report import gallery, plots, sweep_report
from cfg.report.curves import group_curves
from cfg.report.results import Results
from cfg.report.rows import LATER, Row
from cfg.report.sample_files import load_samples, mixed_order, write_pairs, write_samples
from cfg.report.tables import text_table
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock
from configs import digits
from tests.report.rows import row_of, write_rows

STEPS = (300, 1200)
WS = (0.0, 0.3, 4.0)
FID = {(300, 0.0): 30.0, (300, 0.3): 21.5, (300, 4.0): 19.25, (1200, 0.0): 9.5, (1200, 0.3): 4.125, (1200, 4.0): 11.0}
DRAWS = '5 draws of balanced labels'
SAMPLERS = (('ancestral', 0.0), ('ddim', None))
CLASSES = ('zero', 'one', 'two', '</script><b>')


def _row(step: int, w: float, *, sampling: dict | None = None, **changes: object) -> Row:
    values = {
        'step': step,
        'w': w,
        'fid': FID[step, w],
        'inception_score': 2.0 + step / 1000 + w / 4,
        'num_samples': 1060,
        'features': 'digits-classifier (64 features; not Inception)',
        'accuracy': None if w == 4.0 else 0.875,
        'finite_sample_draws': DRAWS,
        'floor_fid': 1.5,
        'floor_inception_score': 3.9,
        'floor': 'real test half (898) against real training half (899)',
        'reference': 'real training half',
        'params_sha256': f'{step:064d}',
        'samples': f'samples/step{step:08d}_w{w:g}.npz',
        'versions': {'jax': '0.10.2', 'numpy': np.__version__},
    }
    return row_of(sampling={'num_steps': 64} | (sampling or {}), **(values | changes))


def _write_samples(workdir: Path, rows: list[Row], shape: tuple[int, int, int], count: int) -> None:
    (workdir / 'samples').mkdir(exist_ok=True)
    labels = np.arange(count, dtype=np.int32) % len(CLASSES)
    for i, row in enumerate(rows):
        blocks = np.random.default_rng(i).integers(0, 256, (count, 4, 4, shape[2]), dtype=np.uint8)
        images = blocks.repeat(shape[0] // 4, axis=1).repeat(shape[1] // 4, axis=2)
        np.savez(workdir / row.samples, images, labels)


def _report(workdir: Path, **changes: object) -> Path:
    arguments = {
        'class_names': CLASSES,
        'title': 'A <sweep> & more',
        'grid_w': (0.0, 4.0, 17.0),
        'grid_shape': (3, 4),
        'one_class': 2,
    }
    return sweep_report.write_report(workdir, **(arguments | changes))


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    """A workdir of 3 w x 2 steps, in no order, with its report."""
    workdir = tmp_path_factory.mktemp('workdir')
    rows = [_row(step, w) for step in reversed(STEPS) for w in (4.0, 0.0, 0.3)]
    write_rows(workdir, rows)
    _write_samples(workdir, rows, (8, 8, 1), count=230)
    _report(workdir)
    return workdir


class _Page(HTMLParser):
    """What the tests ask of a page: its elements, its text by element, its table, the script's data."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.table: list[list[str]] = []
        self._script = False
        self._script_text = ''
        self._cell = False
        self.text = ''
        self.source = path.read_text(encoding='utf-8')
        self.feed(self.source)
        self.data = json.loads(self._script_text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == 'tr':
            self.table.append([])
        if tag in ('td', 'th'):
            self.table[-1].append('')
            self._cell = True
        self._script = ('id', 'data') in attrs

    def handle_endtag(self, tag):
        if tag in ('td', 'th'):
            self._cell = False
        if tag == 'script':
            self._script = False

    def handle_data(self, data):
        self.text += data
        if self._script:
            self._script_text += data
        if self._cell:
            self.table[-1][-1] += data


def _decode(uri: str) -> np.ndarray:
    head, body = uri.split(',', 1)
    assert head == 'data:image/png;base64'
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def _cells(sheet: dict) -> np.ndarray:
    """The images of a sheet, [N, H, W, C]."""
    picture = _decode(sheet['src'])
    height, width = sheet['height'], sheet['width']
    places = [divmod(i, gallery.COLUMNS) for i in range(len(sheet['labels']))]
    cells = [picture[y * height : (y + 1) * height, x * width : (x + 1) * width] for y, x in places]
    return np.stack(cells).reshape(len(cells), height, width, -1)


def test_files_and_pictures(finished):
    output = finished / 'report'
    pictures = {
        'fid_is_vs_w.png',
        'fid_vs_is.png',
        'grid_random_classes.png',
        'grid_random_classes_step000300.png',
        'grid_one_class.png',
        'grid_one_class_step000300.png',
    }
    assert {path.name for path in output.iterdir()} == pictures | {'index.html', 'table.csv', 'table.tex'}
    for name in pictures:
        with Image.open(output / name) as image:
            image.load()
            assert image.format == 'PNG'
            assert 600 <= image.width <= 3000 and 400 <= image.height <= 3000
            assert len(np.unique(np.asarray(image.convert('L')))) > 10


def test_grid_shows_the_pixels(finished):
    samples = load_samples(finished / _row(1200, 4.0).samples)
    picture = np.asarray(Image.open(finished / 'report' / 'grid_one_class.png').convert('RGB'))
    panel = mosaic(samples.images[samples.labels == 2], (3, 4), width=480)
    height, width = panel.shape[:2]
    bottom, right = picture.shape[0] - 24, picture.shape[1] - 24
    np.testing.assert_array_equal(picture[bottom - height : bottom, right - width : right], panel)


def test_page_is_self_contained(finished):
    parsed = _Page(finished / 'report' / 'index.html')
    assert not re.search(r'https?://', re.sub(r'base64,[A-Za-z0-9+/=]+', '', parsed.source))
    assert '{{' not in parsed.source
    for tag, attributes in parsed.elements:
        assert attributes.get('src', 'data:').startswith('data:'), tag
        assert attributes.get('href', '#').startswith(('#', 'data:')), tag
        if tag == 'img':
            assert attributes['alt']
    labelled = {attributes['for'] for tag, attributes in parsed.elements if tag == 'label'}
    controls = {attributes['id'] for tag, attributes in parsed.elements if tag in ('input', 'select')}
    assert controls == labelled == {'w', 'pick-0', 'class'}
    assert 'A &lt;sweep&gt; &amp; more' in parsed.source
    assert parsed.data['classes'][3] == {'label': 3, 'name': '</script><b>'}


def test_page_has_every_row_and_marks_none_as_best_without_errors(finished):
    parsed = _Page(finished / 'report' / 'index.html')
    expected = [['step', 'w', 'FID \u2193', 'IS \u2191', 'accuracy', 'samples']]
    for step in (300, 1200):
        for w in WS:
            row = _row(step, w)
            fid, score = f'{row.scores.fid:.2f}', f'{row.scores.inception_score:.2f}'
            expected.append([f'{step:,}', f'{w:g}', fid, score, '-' if w == 4.0 else '87.5%', '1,060'])
    expected.append(['Real test half (898) against real training half (899)', '1.50', '3.90', '', ''])
    expected.append([f'Floor: 1,060 real images drawn as the samples, {DRAWS}', '0.25', '', '', ''])
    assert parsed.table == expected
    for text in ('digits-classifier', 'ancestral', 'num_steps 64', 'clip_x yes', 'jax 0.10.2', 'f' * 64):
        assert text in parsed.source


def test_sheets_are_the_samples(finished):
    data = _Page(finished / 'report' / 'index.html').data
    assert [curve['key'] for curve in data['curves']] == ['300', '1200']
    for curve in data['curves']:
        assert [point['w'] for point in curve['points']] == list(WS)
        for point in curve['points']:
            samples = load_samples(finished / _row(int(curve['key']), point['w']).samples)
            sheet = data['sheets'][point['sheet']]
            np.testing.assert_array_equal(_cells(sheet), samples.images[:200])
            assert sheet['labels'] == samples.labels[:200].tolist()


def test_table_is_the_rows(finished):
    with (finished / 'report' / 'table.csv').open(newline='') as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    for line, (step, w) in zip(lines, [(step, w) for step in STEPS for w in WS], strict=True):
        row = _row(step, w).flat
        assert line.keys() == row.keys()
        for key, value in row.items():
            if isinstance(value, dict | tuple):
                assert json.loads(line[key]) == (list(value) if isinstance(value, tuple) else value)
            else:
                assert line[key] == ('' if value is None else str(value))


def test_larger_colour_images(tmp_path):
    rows = [_row(1200, w) for w in WS]
    write_rows(tmp_path, rows)
    _write_samples(tmp_path, rows, (64, 64, 3), count=104)
    data = _Page(_report(tmp_path)).data
    samples = load_samples(tmp_path / rows[1].samples)
    np.testing.assert_array_equal(_cells(data['sheets'][data['curves'][0]['points'][1]['sheet']]), samples.images[:100])
    assert not list((tmp_path / 'report').glob('*_step*'))


def test_a_sample_file_with_a_turned_byte_is_as_good_as_deleted(tmp_path):
    path = tmp_path / write_samples(tmp_path, 'x.npz', np.zeros((40, 8, 8, 1), np.uint8), np.zeros(40, np.int32))
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        load_samples(path)  # None, or what it can be read as where nothing depends on the byte
    path.write_bytes(content[: len(content) // 2])
    assert load_samples(path) is None


def test_deleted_samples_are_told(tmp_path):
    rows = [_row(step, w) for step in STEPS for w in WS]
    write_rows(tmp_path, rows)
    _write_samples(tmp_path, rows[:2], (8, 8, 1), count=12)
    (tmp_path / rows[1].samples).write_bytes((tmp_path / rows[1].samples).read_bytes()[:100])
    parsed = _Page(_report(tmp_path))
    missing = 'their grids are missing (step 300: w = 0.3, 4; step 1,200: w = 0, 0.3, 4).'
    assert missing in parsed.source
    assert [point['sheet'] for curve in parsed.data['curves'] for point in curve['points']] == [0] + [None] * 5
    names = {path.name for path in (tmp_path / 'report').glob('*.png')}
    suffixed = {'grid_random_classes_step000300.png', 'grid_one_class_step000300.png'}
    assert names == {'fid_is_vs_w.png', 'fid_vs_is.png'} | suffixed


def test_numbers_that_are_not(tmp_path):
    write_rows(tmp_path, [_row(1200, 0.0), _row(1200, 0.3, fid=None), _row(1200, 4.0, fid=None, inception_score=None)])
    parsed = _Page(_report(tmp_path))
    assert [point['scores'][0]['text'] for point in parsed.data['curves'][0]['points']] == ['9.50', '-', '-']
    assert '9.50' in parsed.table[1]


def test_the_error_of_kid_is_said_to_be_what_it_is(tmp_path):
    write_rows(tmp_path, [_row(1200, w, kid=0.002, kid_standard_error=0.0001) for w in WS])
    parsed = _Page(_report(tmp_path))
    assert '2.000 ± 0.100' in parsed.table[1]
    assert 'with the standard error of the estimate, which is not the spread over subsets' in parsed.source
    assert 'its mean over subsets' not in parsed.source


def test_fd_dinov2_is_shown_where_it_was_measured(tmp_path):
    """FID is lowest at w = 0.3 and FD-DINOv2 at w = 4: the table, the plot and the text say both."""
    changes = {'dinov2': 'DINOv2 of a test', 'dinov2_sha256': 'd' * 64, 'floor_fd_dinov2': 12.0}
    changes |= {'fd_dinov2_standard_error': 0.25}
    rows = [_row(1200, w, fd_dinov2=200.0 - 10 * w, **changes) for w in WS]
    write_rows(tmp_path, rows)
    parsed = _Page(_report(tmp_path))
    assert 'FD-DINOv2' in ' '.join(parsed.table[0])
    assert 'best 160.00 ± 0.25' in parsed.table[3]
    assert '12.00' in ' '.join(parsed.table[4])
    assert 'DINOv2 of a test' in parsed.source
    figure = plots.figure_against_w(group_curves(rows), None)
    assert [axes.get_ylabel().partition(' ')[0] for axes in figure.axes] == ['FID', 'inception', 'FD-DINOv2']
    (legend,) = figure.legends
    joined = ' '.join(' '.join(text.get_text() for text in legend.get_texts()).split())
    assert 'lowest FD-DINOv2 160.00 at w = 4' in joined
    assert 'lowest FD-DINOv2 of the curve' in joined
    assert 'features: digits-classifier (64 features; not Inception), DINOv2 of a test;' in text_table(rows)
    without = plots.figure_against_w(group_curves([_row(1200, w) for w in WS]), None)
    assert len(without.axes) == 2


def test_the_nearest_pairs_are_drawn_where_they_are_kept(tmp_path):
    rows = [_row(1200, w, near_copies=0.0625, authenticity=0.75, floor_authenticity=0.625) for w in WS]
    write_rows(tmp_path, rows)
    _write_samples(tmp_path, rows, (8, 8, 1), count=40)
    assert 'nearest training images' not in _Page(_report(tmp_path)).source
    assert not (tmp_path / 'report/nearest_pairs.png').exists()
    black, white = np.zeros((16, 8, 8, 1), np.uint8), np.full((16, 8, 8, 1), 255, np.uint8)
    for row in rows:
        write_pairs(tmp_path, row.samples, black, white)
    parsed = _Page(_report(tmp_path, grid_w=(0.3,)))
    assert 'The nearest training images' in parsed.source
    joined = [' '.join(line) for line in parsed.table]
    assert 'authentic near-copies' in joined[0]
    assert '75.0% 6.2%' in joined[1]
    assert '62.5% 5.0%' in joined[4]
    picture = np.asarray(Image.open(tmp_path / 'report/nearest_pairs.png').convert('L'))
    panel = mosaic(np.concatenate([black, white], axis=2), (4, 4), width=480)[..., 0]
    found = picture[-24 - panel.shape[0] : -24, 24 : 24 + panel.shape[1]]
    np.testing.assert_array_equal(found, panel)


def test_rows_of_an_older_version_stand_beside_new_ones_with_a_dash_for_what_they_lack(tmp_path):
    fields = {
        'fid_infinity': 3.5,
        'fid_infinity_standard_error': 0.25,
        'near_copies': 0.0625,
        'floor_authenticity': 0.5,
    }
    new = [_row(1200, w, **fields, finished=f'2026-07-{21 + (w < 4)}T10:00:00.000+00:00') for w in WS]
    write_rows(tmp_path, new)
    path = Results(tmp_path).path(new[-1].identity)
    path.write_text(json.dumps({name: it for name, it in json.loads(path.read_text()).items() if name not in LATER}))
    *_, old = rows = Results(tmp_path).swept()
    assert old.identity == new[-1].identity  # so it is not measured again
    table = _Page(_report(tmp_path)).table
    cells = [[line[table[0].index(head)] for head in ('FID∞ ↓', 'near-copies')] for line in table[1:4]]
    assert cells == [*[['3.50 ± 0.25', '6.2%']] * 2, ['-', '-']]
    assert '5.0%' in table[4]  # of the floor, which newer rows know
    lines = [line.split() for line in text_table(rows).splitlines()]
    assert [line[lines[0].index('near-copies')] for line in lines[1:4]] == ['0.0625', '0.0625', '-']


def test_curves_are_told_apart_by_what_differs():
    other = {'num_steps': 256}
    rows = [_row(1200, 0.3), _row(1200, 0.0), _row(1200, 0.0, sampling=other), _row(1200, 0.0, fid=7.0)]
    curves = group_curves(rows)
    assert [curve.label for curve in curves] == ['T = 64', 'T = 256']
    assert [curve.key for curve in curves] == ['1200', '1200.2']
    assert [(row.source.w, row.scores.fid) for row in curves[0].rows] == [(0.0, 7.0), (0.3, 4.125)]
    assert [curve.label for curve in group_curves([_row(300, 0.0), _row(1200, 0.0)])] == ['step 300', 'step 1,200']
    retrained = group_curves([_row(300, 0.0), _row(300, 0.0, params_sha256='abcdef0123')])
    assert retrained[1].label == 'step 300, params abcdef01'


@pytest.mark.parametrize(
    ('key', 'values', 'labels'),
    [
        ('uncond_params_sha256', (None, 'a' * 64), ('no second model', 'second model aaaaaaaa')),
        ('uncond_params_sha256', ('a' * 64, 'b' * 64), ('second model aaaaaaaa', 'second model bbbbbbbb')),
        ('neighbours_dtype', ('float32', 'float16'), ('precision and recall in float32', '... in float16')),
        ('kid_subsets', (50, 100), ('kid_subsets 50', 'kid_subsets 100')),
        ('kid_subset_size', (500, 1000), ('kid_subset_size 500', 'kid_subset_size 1000')),
        ('num_reference_features', (1000, 10_000), ('1,000 reference images', '10,000 reference images')),
        ('classifier', ('digits classifier', None), ('classes by digits classifier', 'no classifier')),
        ('classifier', ('imported a', 'imported b'), ('classes by imported a', 'classes by imported b')),
        ('features_sha256', ('a' * 64, 'b' * 64), ('features aaaaaaaa', 'features bbbbbbbb')),
        ('reference_sha256', ('a' * 64, 'b' * 64), ('reference aaaaaaaa', 'reference bbbbbbbb')),
        ('dinov2', ('DINOv2', None), ('FD of DINOv2', 'no FD-DINOv2')),
        ('dinov2_sha256', ('a' * 64, 'b' * 64), ('DINOv2 aaaaaaaa', 'DINOv2 bbbbbbbb')),
    ],
)
def test_rows_that_are_other_measurements_are_other_curves(key, values, labels):
    """No row takes the place of another, and a label says what differs and no more."""
    curves = group_curves([_row(1200, w, **{key: value}) for value in values for w in WS])
    assert [[row.flat[key] for row in curve.rows] for curve in curves] == [[value] * 3 for value in values]
    labels = [label.replace('...', 'precision and recall') for label in labels]
    assert [curve.label for curve in curves] == [f'step 1,200, {label}' for label in labels]


def test_labels_name_details_only_where_they_are_needed():
    details = {'num_samples': 50_000, 'num_reference_features': 9, 'classifier': 'x', 'params_sha256': 'b'}
    curves = group_curves([_row(1200, 0.0), _row(1200, 0.0, **details)])
    assert [curve.label for curve in curves] == ['1,060 samples', '50,000 samples']
    curves = group_curves([_row(1200, 0.0, kid_subsets=n, params_sha256=str(n)) for n in (1, 2)])
    assert [curve.label for curve in curves] == ['step 1,200, kid_subsets 1', 'step 1,200, kid_subsets 2']
    curves = group_curves([_row(1200, 0.0), _row(1200, 0.0, label_in='decoder')])
    assert [curve.label for curve in curves] == ['label everywhere', 'label in the decoder']
    curves = group_curves([_row(1200, 0.0, sampling={'sampler': s, 'logvar_interp': v}) for s, v in SAMPLERS])
    assert [curve.label for curve in curves] == ['ancestral, v = 0', 'ddim, no v']


def test_best_is_the_lowest_fid_of_each_curve():
    curves = group_curves([_row(step, w) for step in STEPS for w in WS])
    for curve in curves:
        assert curve.rows[curve.bests['fid']].scores.fid == min(FID[curve.step, w] for w in WS)


def test_the_plots_mark_the_best_fid_and_the_best_inception_score():
    """A filled star and a hollow one on each curve, in both plots; the legend says which is which."""
    curves = group_curves([_row(step, w) for step in STEPS for w in WS])
    against_w, against_is = plots.figure_against_w(curves, None), plots.figure_fid_against_is(curves, None)
    panels = [(axes, 'w', name) for axes, name in zip(against_w.axes, ('fid', 'inception_score'), strict=True)]
    for axes, x, y in [*panels, (against_is.axes[0], 'inception_score', 'fid')]:
        for best, filled in (('fid', True), ('inception_score', False)):
            stars = [
                (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
                for line in axes.lines
                if line.get_marker() == '*' and (line.get_markerfacecolor() != 'white') == filled
            ]
            rows = [curve.rows[curve.bests[best]] for curve in curves]
            assert stars == [(row.flat[x], row.flat[y]) for row in rows], (x, y, best)
    for figure in (against_w, against_is):
        (legend,) = figure.legends
        texts = [text.get_text() for text in legend.get_texts()]
        assert {'lowest FID of the curve', 'highest IS of the curve'} <= set(texts)
        joined = ' '.join(' '.join(texts).split())
        assert 'step 1,200 (lowest FID 4.12 at w = 0.3, highest IS 4.20 at w = 4)' in joined


def test_mixed_order_takes_the_first_of_each_class_first():
    assert mixed_order(np.array([0, 0, 0, 1, 1, 2])).tolist() == [0, 3, 5, 1, 4, 2]
    assert mixed_order(np.arange(30) % 10).tolist() == list(range(30))


def test_no_results(tmp_path):
    with pytest.raises(UserError, match=r'results has no rows: run --mode=eval first'):
        _report(tmp_path)


@pytest.mark.parametrize(
    'rows',
    [
        [{'fid': None}, {'fid': None, 'w': 1.0}],
        [{'inception_score': None}, {'inception_score': None, 'w': 1.0}],
        [{'fid': None, 'inception_score': None}],
        [{}],
        [{'step': 1}, {'step': 2}],  # all w equal
        [{'fid': 0.0}, {'fid': 0.0, 'w': 1.0}],
        [{'floor': 'test', 'floor_fid': 1.0, 'floor_inception_score': 2.0}],
    ],
)
def test_a_report_of_little_is_a_report(tmp_path, rows):
    write_rows(tmp_path, [row_of(**changes) for changes in rows])
    parsed = _Page(_report(tmp_path, paper='table1_imagenet64'))
    assert len(parsed.data['curves'][0]['points']) == len({row.get('w') for row in rows})


HOSTILE = '</script><b onclick="x">&amp;\u2028\''


def test_what_a_row_says_is_escaped(tmp_path):
    changes = dict.fromkeys(('features', 'reference', 'floor', 'classifier', 'device', 'config_sha256'), HOSTILE)
    changes |= {'floor_fid': 1.0, 'floor_inception_score': 1.0, 'warnings': [HOSTILE], 'versions': {HOSTILE: HOSTILE}}
    row = _row(1200, 0.0, sampling={'guidance': HOSTILE}, **changes)
    write_rows(tmp_path, [row, _row(1200, 0.0)])
    _write_samples(tmp_path, [row], (8, 8, 1), count=12)
    parsed = _Page(_report(tmp_path, paper='table1_imagenet64', title=HOSTILE, class_names=[HOSTILE] * 4))
    assert not [attributes for tag, attributes in parsed.elements if tag == 'b' or 'onclick' in attributes]
    assert HOSTILE not in parsed.source
    assert parsed.text.count(HOSTILE) >= 10
    assert parsed.data['classes'][0]['name'] == HOSTILE
    assert HOSTILE in parsed.data['curves'][0]['label'] + parsed.data['curves'][1]['label']


def test_jobs_of_a_sweep_draw_one_after_the_other(tmp_path, monkeypatch):
    def write(workdir, **_):
        with pytest.raises(UserError, match='Another process runs --mode=report'), lock(workdir, 'report'):
            pass
        return workdir

    monkeypatch.setattr(report, 'read_names', lambda *_: ('digits', CLASSES))
    monkeypatch.setattr(sweep_report, 'write_report', write)
    assert report.run(digits.get_config(), tmp_path) == tmp_path


@pytest.mark.parametrize('fid', [2.0, None])
def test_a_table_on_a_terminal_is_no_wider_and_says_the_same(fid):
    rows = [_row(step, w, precision=0.5, recall=0.25, density=1.0, fid=fid) for step in STEPS for w in WS]
    whole = [line.split() for line in text_table(rows).splitlines()[:7]]
    narrow = text_table(rows, width=40).splitlines()
    tables = [narrow[at : at + 7] for at in range(0, len(narrow), 7) if narrow[at].split()[:2] == ['step', 'w']]
    assert len(tables) > 1
    assert max(len(line) for table in tables for line in table) <= 40
    for i, line in enumerate(whole):
        assert line[2:] == [cell for table in tables for cell in table[i].split()[2:]]
