"""The commands of the documentation and the Makefile: each is taken by its script, up to where its work would begin."""

import argparse
import contextlib
import functools
import importlib
import importlib.metadata
import json
import re
import runpy
import shlex
import subprocess
import sys
from unittest import mock

import pytest

from benchmarks import common
from cfg.runs.trained import MADE, MEANING
from tests import in_process
from tests.command_line import ROOT, SMALL
from tests.test_docs import TEXTS

# What stands for something else in a command, and what it is here.
MEANT = {
    r'^cfg ': 'python main.py ',
    r'^--config\.': 'python main.py --config=configs/digits.py --workdir=ANY --config.',  # fields alone
    r'main\.py \.\.\.': 'main.py --config=configs/imagenet64.py --workdir=runs/imagenet64',
    r'\[(--[^\]]*)\]': r'\1',  # a flag that may be left out
    r'\bi/n\b': '1/2',
    r'\$n\b': '64',
}
# Those of docs/extending.md need its changes (tests/test_extending.py), and one says what all look like.
ELSEWHERE = ('midpoint', 'limited', '=bars', 'configs/NAME.py')


def of_page(text, *, elsewhere=ELSEWHERE):
    """Returns the words after `python` of each command of a page, without those that hold one of some texts."""
    begins = r'(?:python \w|cfg --|--config\.[\w.]+=)'
    text = text.replace('\\\n', '')  # a command may go on in the next line
    found = re.findall(rf'^ *({begins}.*)|`({begins}[^`]*)`|FLAGS="({begins}[^"]*)"', text, re.MULTILINE)
    lines = [''.join(each) for each in found]
    for said, meant in MEANT.items():
        lines = [re.sub(said, meant, line) for line in lines]
    return [tuple(shlex.split(line, comments=True)[1:]) for line in lines if not any(map(line.__contains__, elsewhere))]


def of_makefile():
    """Returns the words of each command that the targets of the README run, as make and the shell put them together."""
    targets = ('digits', 'mixture', 'compare', 'twins', 'students', 'tune', 'accelerator')
    shown = """sh -c 'printf "%s\\t" "$$0" "$$@"; echo'"""
    line = ['make', '--silent', '--old-file=install', f'PY={shown}', 'PEER=guided-diffusion', *targets]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [tuple(each.split('\t')[:-1]) for each in said.splitlines() if '\t' in each]


COMMANDS = dict.fromkeys([words for text in TEXTS.values() for words in of_page(text)] + of_makefile())


def taken(script):
    """Lets a test take each command of a script."""
    found = [pytest.param(words, id=' '.join(words)) for words in COMMANDS if words[0].startswith(script)]
    return pytest.mark.parametrize('words', found)


@functools.cache
def begun(words):
    """Begins a command of main.py, and returns the config with which its mode would run; None for one that has none."""
    given = dict(word.removeprefix('--').partition('=')[::2] for word in words[1:])
    mode = in_process.modes()[given.get('mode', 'train')]
    with (
        mock.patch.object(importlib.import_module(f'cfg.modes.{mode.module}'), 'run', return_value=None) as run,
        mock.patch('cfg.modes.start.check_workdir'),
        mock.patch('cfg.modes.start.check_devices'),
        mock.patch('cfg.modes.start.joined'),
    ):
        done = in_process.main(*words[1:], config=None, small=False)
    assert done.returncode == 0, done.stderr
    run.assert_called_once()
    return run.call_args.args[0] if mode.config else None


@taken('main.py')
def test_a_command_of_main_begins(words):
    begun(words)


@pytest.mark.parametrize('page', TEXTS)
def test_commands_of_one_workdir_mean_one_network(page):
    networks = {}
    for words in of_page(TEXTS[page]):
        workdirs = [word for word in words if word.startswith('--workdir=')]
        if words[0] == 'main.py' and (config := begun(words)) and workdirs not in ([], ['--workdir=ANY']):
            same = {field: config[part][field] for part, field in (*MEANING, *MADE)} | dict(config.model)
            assert networks.setdefault(workdirs[0], same) == same, words


@taken('benchmarks/')
def test_a_command_of_a_benchmark(words):
    def and_end(read):
        def reads(*arguments):
            read(*arguments)
            sys.exit(0)

        return reads

    with (
        mock.patch.object(common, 'read_config', and_end(common.read_config)),
        mock.patch.object(argparse.ArgumentParser, 'parse_args', and_end(argparse.ArgumentParser.parse_args)),
    ):
        done = in_process.run(*words)
    assert done.returncode == 0, done.stderr


def test_the_extras_that_pip_installs_exist():
    with mock.patch('setuptools.setup') as setup, contextlib.chdir(ROOT):
        runpy.run_path('setup.py')
    ours = setup.call_args.kwargs['extras_require']
    named = re.findall(r'["\']([\w.-]+)\[(\w+)\]["\']', '\n'.join([*TEXTS.values(), repr(ours)]))
    assert {('.', 'train'), ('.', 'cuda'), ('jax', 'cuda13')} <= set(named)
    for package, extra in named:
        assert extra in (ours if package == '.' else importlib.metadata.metadata(package).get_all('Provides-Extra'))


def test_the_commands_of_the_readme_one_after_the_other(tmp_path, digits_classifier):
    """Runs what trains, scores, samples and reports `runs/mine`, with a small network and few samples."""
    digits_classifier(tmp_path / 'cache')
    # A tuple that is given twice would be both, so the page's own are not among these.
    few = [flag for flag in SMALL if '.eval.' not in flag]
    few += ['--config.train.num_steps=6', '--config.eval.steps=()', f'--config.eval.cache_dir={tmp_path}/cache']
    sizes = {'num_samples': 20, 'is_split_size': 20, 'kid_subsets': 1, 'kid_subset_size': 20, 'keep_samples': 0}
    few += [f'--config.eval.{name}={size}' for name, size in sizes.items()]
    commands = [words for words in of_page(TEXTS['README.md']) if '--workdir=runs/mine' in words]
    for _, config, workdir, *own in commands:
        workdir = workdir.replace('runs', str(tmp_path))
        done = in_process.main(config, workdir, *few, *own, config=None, small=False)
        assert done.returncode == 0, done.stderr
    rows = (tmp_path / 'mine' / 'results.jsonl').read_text().splitlines()
    assert [json.loads(row)['w'] for row in rows] == [0.0, 0.3, 1.0]
    assert len(list((tmp_path / 'mine' / 'samples').glob('sample_*.npz'))) == 2
    assert done.stdout.strip() == str(tmp_path / 'mine' / 'report' / 'index.html')
