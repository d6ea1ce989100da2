"""What the documentation names exists, and its Python runs."""

import importlib
import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import default
from tests.command_line import ROOT

BESIDE = ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'benchmarks/README.md')
PAGES = [*(ROOT / name for name in BESIDE), *sorted((ROOT / 'docs').glob('*.md'))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
pages = pytest.mark.parametrize('page', TEXTS)


def anchors(text):
    """Those of the headings of a page, as GitHub makes them."""
    heads = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@pages
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', TEXTS[page]):
        path, _, anchor = ''.join(target).partition('#')
        if path.startswith('http'):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def test_the_picture_of_the_code_names_what_is_there():
    picture = (ROOT / 'docs' / 'images' / 'flow.svg').read_text()
    found = ', '.join(re.findall(r'class="path">([^<]+)<', picture)).split(', ')
    assert len(found) == 13
    for name in found:
        assert (ROOT / 'cfg' / name).exists(), name


def has(config, field):
    for name in field.split('.'):
        if not isinstance(config, ConfigDict) or name not in config:
            return False
        config = config[name]
    return True


@pages
def test_fields_of_the_config_exist(page):
    config = default.get_config()
    parts = '|'.join(config)
    named = re.findall(r'\bconfig\.([a-z_]+(?:\.\w+)?)', TEXTS[page])
    named += re.findall(rf'`((?:{parts})\.\w+)[`=]', TEXTS[page])
    for field in named:
        if not field.endswith(('py', 'json')):  # config.json, and files and functions of modules named as a part is
            assert has(config, field) or is_function(field), field


def is_function(name):
    """Whether it is one of the paper's modules, such as `mixture.eps_fn`."""
    module, _, function = name.partition('.')
    return (ROOT / f'cfg/diffusion/{module}.py').exists() and hasattr(
        importlib.import_module(f'cfg.diffusion.{module}'), function
    )


@pages
def test_files_and_targets_of_commands_exist(page):
    """Those of make and of the shell; tests/test_commands.py begins those of Python."""
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for target in re.findall(r'(?:^|`)make ([\w-]+)', TEXTS[page], re.MULTILINE):
        assert target in targets
    for file in re.findall(r'\b(?:benchmarks|configs|launch)/\w+\.\w+', TEXTS[page]):
        assert (ROOT / file).exists() or file == 'configs/NAME.py', file


@pytest.mark.parametrize('page', ['README.md', 'docs/api.md'])
def test_the_python_of_a_page_draws_samples(page, small_run):
    code, names = '\n'.join(re.findall(r'```python\n(.*?)```', TEXTS[page], re.DOTALL)), {}
    assert "'runs/digits'" in code
    exec(code.replace("'runs/digits'", repr(str(small_run))), names)
    assert names['images'].shape == (16, 8, 8, 1)
    assert names['images'].dtype == 'uint8'
    assert names['images'].std() > 0
    if page == 'docs/api.md':
        assert names['same'] == pytest.approx(names['ours'], abs=1e-3)
        assert np.isfinite(names['slope']).all()
        assert 0 < names['fid'] < 1
        assert np.isfinite(names['gradient']).all()
        assert names['x'].shape == (2, 1)
