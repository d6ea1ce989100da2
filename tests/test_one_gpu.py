"""The commands of docs/one_gpu.md, on TFDS's own stand-in for its data and tiny networks."""

import functools
import json
import re
import shlex
import types

import pytest
import tensorflow_datasets as tfds

from cfg.features import small_classifier
from cfg.runs.run_files import checkpoint_steps
from tests import in_process
from tests.command_line import ROOT

# One mark where the configs have four, and a checkpoint on the way.
TINY = [
    '--config.data.workers=0',
    '--config.model.channels=4',
    '--config.model.channel_mult=(1,)',
    '--config.model.num_res_blocks=1',
    '--config.model.attention_resolutions=()',
    '--config.model.head_channels=4',
    '--config.model.norm_groups=2',
    '--config.model.dtype=float32',
    '--config.train.batch_size=8',
    '--config.train.grad_accum=1',
    '--config.train.checkpoint_every=2',
    '--config.train.keep_every=2',
    '--config.train.sample_every=0',
    '--config.train.warmup_steps=1',
    '--config.sampling.num_steps=2',
    '--config.sampling.batch_size=8',
    '--config.eval.num_samples=8',
    '--config.eval.w=(0.0, 1.0)',
    '--config.eval.batch_size=8',
    '--config.eval.features=small_classifier',
    '--config.eval.kid_subset_size=4',
    '--config.report.grid_shape=(2, 2)',
    '--config.eval.keep_samples=4',
    '--config.report.w=(0.0, 1.0)',
]
CONFIGS = ('cifar10', 'imagenet32', 'imagenet64_small')


@pytest.fixture(autouse=True)
def mocked(monkeypatch):
    quick = functools.partial(small_classifier._train, num_steps=2, batch_size=8)
    monkeypatch.setattr(small_classifier, '_train', quick)
    with tfds.testing.mock_data(num_examples=16):
        yield


def commands():
    """The words of every command of the page after `python main.py`."""
    text = (ROOT / 'docs/one_gpu.md').read_text().replace('\\\n', '')
    return [shlex.split(line)[2:] for line in re.findall(r'^python main.py .*$', text, re.MULTILINE)]


@pytest.mark.chaos
@pytest.mark.parametrize('name', CONFIGS)
def test_every_command_of_the_page(name, tmp_path, monkeypatch):
    fetched = []  # there is no network here, and no compiler
    bound = types.SimpleNamespace(bound_seconds=1.0, memory=0)
    monkeypatch.setattr('cfg.modes.plan.compile_part', lambda *arguments: bound)
    monkeypatch.setattr('cfg.modes.fetch_weights.fetch_weights', lambda cache, public: fetched.append(public) or cache)
    workdir, seen = tmp_path / 'run', set()

    def run(words, *, steps):
        words = [word.replace('cifar10', name).replace(f'runs/{name}', str(workdir)) for word in words]
        words = [word.replace('(97600,)', '(2,)') for word in words]
        tiny = [option for option in TINY if option.partition('=')[0] not in {word.partition('=')[0] for word in words}]
        options = (*tiny, f'--config.data.dir={tmp_path}', f'--config.eval.cache_dir={tmp_path}')
        return in_process.main(*words, *options, f'--config.train.num_steps={steps}', config=None, small=False)

    whole = name == 'cifar10'  # of the others what leads to the curve
    for words in commands() if whole else commands()[:4]:
        mode = next((word.partition('=')[2] for word in words if word.startswith('--mode=')), 'train')
        seen.add(mode)
        for steps in (2, 4) if mode == 'train' else (4,):  # stopped in its middle
            done = run(words, steps=steps)
            assert done.returncode == 0, done.stderr
    assert fetched
    assert seen == {'train', 'fetch_weights', 'eval', 'report'} | ({'stats', 'plan'} if whole else set())
    assert checkpoint_steps(workdir) == [2, 4]
    rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
    assert {(row['step'], row['w']) for row in rows} == {
        (step, w) for step in ((2, 4) if whole else (4,)) for w in (0.0, 1.0)
    }
    assert (workdir / 'report' / 'index.html').exists()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    def train(folder, steps):
        names = ('--config=configs/cifar10.py', f'--workdir={folder}', f'--config.train.num_steps={steps}')
        done = in_process.main(*names, *TINY, f'--config.data.dir={tmp_path}', config=None, small=False)
        assert done.returncode == 0, done.stderr
        return in_process.main('--mode=status', f'--workdir={folder}', config=None, small=False).stdout

    train(tmp_path / 'parts', 4)
    whole, parts = (re.search('[0-9a-f]{64}', train(tmp_path / name, 6))[0] for name in ('whole', 'parts'))
    assert whole == parts
