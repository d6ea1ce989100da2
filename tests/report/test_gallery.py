"""The gallery of a report: its sheets, its numbers, and the page in a browser, with real clicks and keys."""

import io
import itertools
import os
import shutil

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import sync_playwright

from cfg.report import compare, gallery, html, sweep_report, tuned
from cfg.report.frontier import Run
from cfg.report.sample_files import Samples
from tests.report.rows import row_of, write_rows

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
WS = (0.0, 0.3, 1.0, 4.0)
CLASSES = ('cat', 'dog', 'owl')
RULES = {'cfg': ('ancestral', 'ddim'), 'apg': ('ddim',)}


def grey(curve, w, place):
    """The grey of a sample, by which a picture of the page tells which one it shows."""
    return 40 + 60 * curve + 15 * w + place


@pytest.fixture(scope='module')
def page_file(tmp_path_factory):
    """A report of three curves at four w; every sample is of one grey."""
    workdir, rows = tmp_path_factory.mktemp('gallery'), []
    (workdir / 'samples').mkdir()
    settings = [(rule, sampler) for rule, samplers in RULES.items() for sampler in samplers]
    for curve, (rule, sampler) in enumerate(settings):
        for at, w in enumerate(WS):
            sampling = {'guidance': rule, 'sampler': sampler, 'logvar_interp': 0.3 if sampler == 'ancestral' else None}
            values = {'fid': 3.0 + (at - 1) ** 2 + curve, 'fid_standard_error': 0.1, 'inception_score': 9.0 + at}
            values |= {
                'accuracy': 0.5 + at / 10,
                'inception_score_standard_error': 0.05,
                'num_samples': 1000,
                'seed': 7,
            }
            rows.append(row_of(w=w, sampling=sampling, samples=f'samples/{curve}_{at}.npz', **values))
            images = np.stack([np.full((8, 8, 1), grey(curve, at, place), np.uint8) for place in range(12)])
            np.savez(workdir / rows[-1].samples, images, np.arange(12, dtype=np.int32) % 3)
    write_rows(workdir, rows)
    return report(workdir)


def report(workdir, **changes):
    arguments = {'class_names': CLASSES, 'title': 'A sweep', 'grid_w': WS, 'grid_shape': (2, 2), 'one_class': 1}
    return sweep_report.write_report(workdir, **(arguments | changes))


@pytest.fixture(scope='module')
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        (pytest.fail if 'CI' in os.environ else pytest.skip)('no Chromium here: apt-get install chromium')
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=['--no-sandbox'])
        yield started
        started.close()


@pytest.fixture
def opened(browser, page_file):
    """Opens the page from its file; what goes wrong in its script, or reaches for the network, is an error."""
    pages, problems = [], []

    def open_page(fragment='', of=page_file, **options):
        pages.append(page := browser.new_page(**({'viewport': {'width': 1280, 'height': 900}} | options)))
        page.on('pageerror', lambda error: problems.append(str(error)))
        page.on('console', lambda message: message.type == 'error' and problems.append(message.text))
        page.on('request', lambda it: it.url.startswith(('file:', 'data:', 'blob:')) or problems.append(it.url))
        page.goto(of.as_uri() + fragment)
        if options.get('java_script_enabled', page.locator('#sheet').count()):
            page.wait_for_selector('#sheet .cell, #absent:not([hidden])')
        return page

    yield open_page
    for page in pages:
        page.close()
    assert problems == []


def shows(page, selector, wanted):
    """Whether the middle of an element has a grey on the screen, at once or soon."""
    for _ in range(50):
        image = np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert('L'))
        if image[image.shape[0] // 2, image.shape[1] // 2] == wanted:
            return True
        page.wait_for_timeout(100)
    return False


def told(page):
    """The state that a link to the page keeps, and the values of its pickers."""
    state = dict(part.split('=') for part in page.evaluate('location.hash.slice(1)').split('&'))
    return state, [page.locator(f'#{name}').input_value() for name in ('pick-0', 'pick-1')]


def accessible(page):
    """Raises with axe's words where a rule is violated."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_the_slider_shows_the_same_seeds_at_another_w(opened):
    page = opened()
    assert page.locator('#w-text').inner_text() == 'w = 0 (not guided)'
    for at, w in enumerate(WS):
        assert shows(page, '#sample-5', grey(0, at, 5))
        assert page.locator('#fid').inner_text().split('\n')[0] == f'{3.0 + (at - 1) ** 2:.2f}'
        assert page.locator('#w').get_attribute('aria-valuetext') == f'w = {w:g}' + ' (not guided)' * (w == 0)
        page.focus('#w')
        page.keyboard.press('ArrowRight')
    assert told(page)[0] == {'step': '1200', 'w': '4'}
    page.keyboard.press('Home')
    assert shows(page, '#sample-5', grey(0, 0, 5))


def test_arrow_keys_change_w_wherever_they_do_nothing_else(opened):
    page = opened('#step=1200&w=0.3')
    page.keyboard.press('ArrowRight')
    assert told(page)[0]['w'] == '1'
    page.keyboard.press('ArrowLeft')
    page.keyboard.press('ArrowLeft')
    page.keyboard.press('ArrowLeft')
    assert told(page)[0]['w'] == '0'
    page.focus('#class')
    page.keyboard.press('ArrowRight')
    assert told(page)[0]['w'] == '0'


def test_rules_and_samplers_are_picked_and_what_was_not_measured_cannot_be(opened):
    page = opened('#step=1200&w=1')
    assert told(page)[1] == ['cfg', 'ancestral']
    page.select_option('#pick-1', 'ddim')
    assert shows(page, '#sample-4', grey(1, 2, 4))
    page.select_option('#pick-0', 'apg')
    assert told(page) == ({'step': '1200.3', 'w': '1'}, ['apg', 'ddim'])
    assert shows(page, '#sample-4', grey(2, 2, 4))
    page.select_option('#pick-1', 'ancestral')  # was measured with cfg alone
    assert told(page)[1] == ['cfg', 'ancestral']
    assert shows(page, '#sample-4', grey(0, 2, 4))


def test_a_class_has_its_samples_alone(opened):
    page = opened()
    assert page.locator('#sheet .cell').count() == 12
    page.select_option('#class', label='dog')
    assert [cell.get_attribute('id') for cell in page.locator('#sheet .cell').all()] == [
        f'sample-{place}' for place in (1, 4, 7, 10)
    ]
    assert (
        page.locator('#sheet').get_attribute('aria-label') == '4 samples of class dog, cfg, ancestral, v = 0.3, w = 0'
    )


def test_a_sample_says_its_seed_under_the_pointer_until_escape(opened):
    page = opened()
    assert not page.locator('#tip').is_visible()
    page.hover('#sample-4')
    assert page.locator('#tip').inner_text() == 'seed 7, sample 4, class dog'
    page.hover('#sample-11')
    assert page.locator('#tip').inner_text() == 'seed 7, sample 11, class owl'
    page.keyboard.press('Escape')
    assert not page.locator('#tip').is_visible()
    page.hover('h1')
    page.hover('#sample-4')
    page.hover('h1')
    assert not page.locator('#tip').is_visible()


def test_keys_go_from_sample_to_sample(opened):
    page = opened()
    page.focus('#sheet')
    columns = int(page.locator('#sheet').get_attribute('data-columns'))
    ways = {'ArrowRight': 1, 'ArrowDown': 1 + columns, 'ArrowUp': 1, 'ArrowLeft': 0, 'End': 11, 'Home': 0}
    for key, place in ways.items():
        page.keyboard.press(key)
        active = f'sample-{place}'
        page.wait_for_selector(f'#sheet[aria-activedescendant={active}]')
        assert page.locator('#sheet [aria-selected=true]').get_attribute('id') == active
        assert page.locator('#tip').inner_text() == page.locator(f'#{active}').get_attribute('aria-label')
    page.keyboard.press('ArrowLeft')  # there is none before the first
    page.keyboard.press(']')
    page.keyboard.press(']')
    page.keyboard.press('[')
    assert told(page)[0] == {'step': '1200', 'w': '0.3', 'sample': '0'}


def test_the_chosen_sample_is_shown_at_every_w(opened):
    page = opened()
    page.click('#sample-7')
    assert page.locator('#chosen-title').inner_text() == 'Seed 7, sample 7, class dog, at every w'
    assert page.locator('#strip button').all_inner_texts() == ['w = 0', 'w = 0.3', 'w = 1', 'w = 4']
    for at in range(len(WS)):
        assert shows(page, f'#strip button:nth-child({at + 1}) .cell', grey(0, at, 7))
    page.click('#strip button:nth-child(4)')
    assert told(page)[0] == {'step': '1200', 'w': '4', 'sample': '7'}
    assert page.evaluate('document.activeElement.textContent') == 'w = 4'  # the keys go on from there
    assert page.locator('#strip [aria-pressed=true]').all_inner_texts() == ['w = 4']
    page.click('text=Draw it again in Python')
    assert page.locator('#call').inner_text().splitlines()[2:] == [
        'model = cfg.load(workdir, step=1200)  # the folder of the run',
        "images = cfg.sample(model, [1] * 8, w=4.0, guidance='cfg', "
        'sampler=cfg.solvers.Ancestral(logvar_interp=0.3), '
        "grid='paper', steps=256, clip_x=True, seed=7)",
        'image = images[7]',
    ]


def test_a_link_and_the_table_lead_to_what_they_say(opened):
    page = opened('#step=1200.2&w=0.9&class=2&sample=5')  # w is near 1
    assert (told(page)[1], page.locator('#class').input_value()) == (['cfg', 'ddim'], '2')
    assert page.locator('#w-text').inner_text() == 'w = 1'
    assert page.locator('#sheet').get_attribute('aria-activedescendant') == 'sample-5'
    page.click('table a[href="#step=1200.3&w=4"]')
    assert shows(page, '#sample-5', grey(2, 3, 5))
    for wrong in ('#step=9&w=x&class=77&sample=z', '#w=', '#%'):
        assert opened(wrong).locator('#sheet .cell').count() == 12


def test_scores_have_intervals_and_are_told_to_screen_readers(opened):
    page = opened('#step=1200&w=0.3')
    text, interval, *_ = page.locator('#fid').inner_text().split('\n')
    assert (text, interval) == ('3.00', '2.80 to 3.20')  # 1.96 standard errors of 0.1
    assert page.locator('#fid .badge').count() == 1
    assert page.locator('#inception_score').inner_text().startswith('10.00\n9.90 to 10.10')
    assert page.locator('#accuracy').inner_text() == '60.0%'
    assert page.locator('#told').inner_text() == 'cfg, ancestral, v = 0.3, w = 0.3: FID 3.00, IS 10.00'


def test_without_scripts_the_numbers_are_there(opened):
    page = opened(java_script_enabled=False)
    assert 'needs JavaScript' in page.locator('.notice').first.inner_text()
    assert page.locator('table tbody tr').count() == 12


LOOKS = {'light': {}, 'dark': {'color_scheme': 'dark'}, 'phone': {'viewport': {'width': 360, 'height': 740}}}


@pytest.mark.parametrize('look', LOOKS)
def test_axe_finds_nothing(opened, look):
    page = opened(**LOOKS[look])
    page.click('text=Draw it again in Python')
    page.hover('#sample-4')
    accessible(page)
    dark = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (dark == 'rgb(20, 23, 27)') == (look == 'dark')


@pytest.mark.parametrize('width', [320, 360, 800])
def test_nothing_is_wider_than_a_phone_or_too_small_for_a_finger(opened, width):
    page = opened(viewport={'width': width, 'height': 740}, has_touch=True)
    assert page.evaluate('document.documentElement.scrollWidth') == width
    page.tap('#sample-4')
    assert page.locator('#chosen-title').inner_text().startswith('Seed 7, sample 4')
    for selector in ('#sheet .cell', '#strip button', 'select', '#w'):
        box = page.locator(selector).first.bounding_box()
        assert min(box['width'], box['height']) >= 24


def test_the_pages_of_a_comparison_and_of_a_search_are_accessible_too(opened, tmp_path):
    write_rows(tmp_path, [row_of(w=w, sampling={'guidance': rule}) for w in WS for rule in RULES])
    search = {
        'heads': tuned.HEADS,
        'table': [['chosen', '', '', '']],
        'verdict': 'better',
        'of': '5 seeds',
        'text': 'x = 1\n',
    }
    search |= {
        'flags': '--config.x=1',
        'notes': ['A note.'],
        'rounds': [{'words': ['a', 'b'], 'samples': 10, 'kept': 1}],
    }
    for page in (compare.write([Run(tmp_path)]), html.write(tmp_path / 'tune.html', 'tune.html', **search)):
        for look in LOOKS.values():
            accessible(shown := opened(of=page, **look))
            assert shown.evaluate('document.documentElement.scrollWidth') == shown.viewport_size['width']


def shown_of(images):
    return gallery.Shown(Samples(images, np.zeros(len(images), np.int32)), np.arange(len(images)))


def test_sheets_have_the_room_they_are_given():
    """Noise, which cannot be made small: every value is kept while there is room, then samples are left out."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 16, 16, 3), dtype=np.uint8)
    shown = {str(i): shown_of(images) for i, images in enumerate(noise)}
    rooms = (200_000, 30_000, 10_000, 0)
    found = [gallery.sheets(shown, room) for room in rooms]
    counts = [[len(one.index) for one in kept.values()] for kept, _ in found]
    assert counts[0] == [40] * 3
    assert all(a > b for a, b in itertools.pairwise(counts))
    assert counts[-1] == [1] * 3
    for room, (kept, made) in zip(rooms[:-1], found[:-1], strict=True):
        assert sum(map(len, made.values())) <= room
        assert all(
            (one.samples.images == images[: len(one.index)]).all()
            for one, images in zip(kept.values(), noise, strict=True)
        )
    assert {text.partition(';')[0] for _, made in found for text in made.values()} == {
        'data:image/png',
        'data:image/webp',
    }


def test_a_page_of_larger_images_is_below_5_mb(opened, tmp_path):
    (tmp_path / 'samples').mkdir()
    rows = [row_of(w=w / 4, samples=f'samples/{w}.npz', fid=2.0 + w) for w in range(12)]
    rng = np.random.default_rng(0)
    for row in rows:
        np.savez(tmp_path / row.samples, rng.integers(0, 256, (100, 64, 64, 3), dtype=np.uint8), np.arange(100) % 3)
    write_rows(tmp_path, rows)
    written = report(tmp_path)
    assert written.stat().st_size < 5e6
    page = opened(of=written)
    assert 10 <= page.locator('#sheet .cell').count() <= 100
    accessible(page)


def test_a_row_without_samples_of_the_class_says_so(opened, tmp_path):
    (tmp_path / 'samples').mkdir()
    rows = [row_of(w=w, samples=f'samples/{w:g}.npz') for w in (0.0, 1.0)]
    for row, labels in zip(rows, ([0, 1], [0, 2]), strict=True):
        np.savez(tmp_path / row.samples, np.zeros((2, 8, 8, 1), np.uint8), np.array(labels, np.int32))
    write_rows(tmp_path, rows)
    page = opened(of=report(tmp_path))
    page.select_option('#class', label='dog')
    assert page.locator('#chosen-title').inner_text() == 'Seed 0, sample 1, class dog, at every w'
    page.focus('#w')
    page.keyboard.press('ArrowRight')
    assert 'of this class' in page.locator('#absent').inner_text()
    assert not page.locator('#frame, #chosen').filter(visible=True).count()
    page.select_option('#class', label='all classes')
    page.wait_for_selector('#sheet .cell')
    assert not page.locator('#absent').is_visible()


LITTLE = {
    'one row without samples': [{}],
    'no numbers': [{'fid': None, 'inception_score': None}, {'fid': None, 'inception_score': None, 'w': 1.0}],
    'no errors': [{}, {'w': 1.0, 'fid': 3.0}],
    'two steps, of which the last has another w': [{'step': 1}, {'step': 2, 'w': 4.0}],
    'alike but for their parameters': [{'params_sha256': 'a'}, {'params_sha256': 'b'}],
    'told apart by features and by their digests': [
        {'features': 'one'},
        {'features_sha256': 'a' * 64},
        {'features_sha256': 'b' * 64},
    ],
}


@pytest.mark.parametrize('rows', LITTLE.values(), ids=LITTLE)
def test_a_gallery_of_little_is_a_gallery(opened, tmp_path, rows):
    write_rows(tmp_path, [row_of(**changes) for changes in rows])
    page = opened(of=report(tmp_path))
    assert page.locator('#absent').is_visible()
    assert not page.locator('#frame').is_visible()
    for key in ('ArrowRight', 'ArrowRight', 'ArrowLeft'):
        page.keyboard.press(key)
    for picker in page.locator('select[id^=pick-]').all():
        picker.select_option(index=0)
        picker.select_option(index=1)
    wanted = '-' if rows[-1].get('fid', 2.5) is None else f'{rows[-1].get("fid", 2.5):.2f}'
    page.focus('#w')
    page.keyboard.press('End')
    assert page.locator('#fid').inner_text() == wanted
    accessible(page)
