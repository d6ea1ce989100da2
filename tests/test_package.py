"""The package as pip installs it: every file is in it, and its command finds the configs."""

import subprocess
import sys
import zipfile

import pytest

from tests.command_line import ROOT, sentence

BUILD = 'import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])'


@pytest.fixture(scope='module', name='installed')
def installed_fixture(tmp_path_factory):
    """A folder with the package alone, from a wheel of what git would commit."""
    folder = tmp_path_factory.mktemp('package')
    source, wheels, site = (folder / name for name in ('source', 'wheels', 'site'))
    names = ('cfg', 'configs', 'LICENSE', 'README.md', 'MANIFEST.in', 'pyproject.toml', 'setup.py')
    listed = ['git', 'ls-files', '--cached', '--others', '--exclude-standard', *names, 'requirements-*.txt']
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, '-c', BUILD, wheels], cwd=source, capture_output=True, check=True)
    (wheel,) = wheels.glob('*.whl')
    zipfile.ZipFile(wheel).extractall(site)
    return source, site


def test_every_file_is_in_it(installed):
    source, site = installed
    ours = {file.relative_to(source) for part in ('cfg', 'configs') for file in (source / part).rglob('*')}
    files = {file if file.parts[0] == 'cfg' else 'cfg' / file for file in ours if (source / file).is_file()}
    assert {file for file in files if not (site / file).exists()} == set()
    assert [folder.name for folder in site.iterdir() if folder.suffix != '.dist-info'] == ['cfg']


def test_its_command_finds_the_configs_from_anywhere_and_so_does_a_config_of_ones_own(installed, tmp_path):
    _, site = installed
    code = f'import sys; sys.path[:] = [{str(site)!r}, *sys.path[1:]]; from cfg.__main__ import main; main()'
    line = [
        sys.executable,
        '-E',
        '-c',
        code,
        '--config=configs/digits_compare.py:steps',
        '--mode=sample',
        '--workdir=none',
    ]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert 'none does not exist' in sentence(done)
    code = code.replace('*sys.path[1:]', '*sys.path[1:], ""')  # as for python -m cfg
    (tmp_path / 'configs').mkdir()
    for name, base in (('mine.py', 'digits'), ('configs/own.py', 'digits'), ('configs/more.py', 'own')):
        (tmp_path / name).write_text(
            f'from configs import {base}\n\n\ndef get_config():\n    return {base}.get_config()\n'
        )
    for name in ('mine.py', 'configs/more.py', 'configs/digits.py'):
        line = [sys.executable, '-E', '-c', code, '--config', name, '--mode=sample', '--workdir=none']
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert 'none does not exist' in sentence(done)


def test_a_command_that_needs_more_than_the_core_says_what_to_install(installed, tmp_path):
    _, site = installed
    code = f'import sys; sys.path[:] = [{str(site)!r}, *sys.path[1:]]; sys.modules["PIL"] = None\n'
    line = [sys.executable, '-E', '-c', code + 'from cfg.__main__ import main; main()', '--config=configs/digits.py']
    done = subprocess.run([*line, '--workdir=run'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert 'pip install ".[train]"' in sentence(done)
