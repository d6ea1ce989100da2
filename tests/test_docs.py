"""What the documentation names exists, and its Python runs."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from cfg.training import loop
from configs import default
from tests.command_line import ROOT
from tests.conftest import small_config

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), ROOT / 'benchmarks' / 'README.md']
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
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    text = TEXTS[page].replace('\\\n', '')  # a command may go on in the next line
    for line in re.findall(r'^(?:python|make) .*$|`(?:python|make) [^`]*`', text, re.MULTILINE):
        words = shlex.split(line.strip('`'), comments=True)
        if words[0] == 'make':
            assert words[1] in targets
        elif words[1].endswith('.py'):
            assert (ROOT / words[1]).exists()
        for word in words:
            if word.startswith('--config=') and not word.isupper() and 'NAME' not in word:
                assert (ROOT / word.removeprefix('--config=').partition(':')[0]).exists(), word


def test_the_python_of_the_readme_draws_samples(tmp_path):
    (code,) = re.findall(r'```python\n(.*?)```', TEXTS['README.md'], re.DOTALL)
    loop.train(small_config(), tmp_path)
    for old, new in (("Path('runs/digits')", 'tmp_path'), ('digits.get_config()', 'small_config()')):
        assert old in code
        code = code.replace(old, new)
    names = {'tmp_path': Path(tmp_path), 'small_config': small_config}
    exec(code, names)
    assert names['images'].shape == (100, 8, 8, 1)
    assert names['images'].dtype == 'uint8'
    assert names['images'].std() > 0
