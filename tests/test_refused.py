"""What a refused command leaves behind: nothing. Every mode is refused in several ways, on new and on used workdirs."""

import http.client
import shutil
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from tests import in_process


@pytest.fixture(scope='module', name='trained')
def trained_fixture(tmp_path_factory):
    """A finished run, and nothing else."""
    workdir = tmp_path_factory.mktemp('trained') / 'run'
    done = in_process.main('--mode=train', f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(name='place')
def place_fixture(trained, tmp_path, monkeypatch):
    """A folder with a used workdir, an empty one, some wrong inputs, and a cache that is not there yet."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    shutil.copytree(trained, tmp_path / 'used')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').write_text('no archive')
    for name, shape in (('grey', (4, 8, 8)), ('tiny', (4, 2, 2, 3)), ('digits', (4, 8, 8, 1))):
        np.savez(tmp_path / f'{name}.npz', arr_0=np.zeros(shape, np.uint8))
    (tmp_path / 'pictures' / 'train' / 'a').mkdir(parents=True)
    (tmp_path / 'pictures' / 'train' / 'a' / 'x.png').write_text('no picture')
    (tmp_path / 'nothing').mkdir()
    return tmp_path


def tree(folder):
    """{name: content} of all that is below a folder; None for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


NEW, EMPTY, USED = 'new/run', 'empty', 'used'
MIXTURE = 'configs/mixture.py'
IMAGENET = 'configs/imagenet64.py'
INCEPTION = '--config.eval.features=inception'
# (mode, workdir, fields, what the sentence says); 'PLACE' stands for the folder of `place`.
REFUSALS = [
    ('prepare_data', None, [], 'needs no preparation'),
    ('prepare_data', None, ['data.name=folder:/nowhere', 'data.dir=PLACE/data'], 'is not a folder'),
    ('prepare_data', None, ['data.name=folder:PLACE/nothing', 'data.dir=PLACE/data'], 'nothing'),
    ('prepare_data', None, ['data.name=folder:PLACE/file', 'data.dir=PLACE/data'], 'file'),
    ('prepare_data', None, ['data.name=tfds:no_such_set', 'data.dir=PLACE/data'], 'no_such_set'),
    ('train', NEW, ['train.num_steps=0'], 'train.num_steps=0'),
    ('train', NEW, ['train.batch_size=18'], '4 devices'),
    ('train', EMPTY, ['sampling.batch_size=30'], '4 devices'),
    ('train', NEW, ['model.channel_mult=(1, 1, 1, 1, 1)'], 'channel_mult'),
    ('train', NEW, ['data.name=folder:PLACE/pictures', 'data.dir=PLACE/data'], 'not prepared'),
    ('train', NEW, [MIXTURE], '--mode=report'),
    ('train', USED, ['seed=7'], 'config.seed=0, not 7'),
    ('train', USED, ['train.kind=classifier', 'classifier.attention_resolutions=(8,)'], 'holds a model'),
    ('train', 'file/run', [], 'cannot be written'),
    ('sample', NEW, [], 'does not exist'),
    ('sample', EMPTY, [], 'no checkpoints'),
    ('sample', USED, ['sampling.labels=(3, 10)'], 'holds 10'),
    ('sample', USED, ['sampling.step=2'], 'step 2 is not among'),
    ('sample', USED, ["sampling.guidance=autoguidance(workdir='PLACE/empty')"], 'no checkpoint'),
    ('sample', EMPTY, [MIXTURE], 'no checkpoints'),
    ('eval', NEW, [MIXTURE], 'does not exist'),
    ('eval', EMPTY, [MIXTURE], '--mode=report'),
    ('eval', EMPTY, [], 'no checkpoints'),
    ('eval', USED, ['sampling.batch_size=30'], '4 devices'),
    ('eval', USED, ['eval.steps=(2,)'], 'step 2 is not among'),
    ('eval', USED, [INCEPTION], '3 channels'),
    ('eval', USED, ['eval.job=1/3', 'eval.reference=PLACE/file'], 'file'),
    ('report', NEW, [], 'does not exist'),
    ('report', EMPTY, [], '--mode=eval'),
    ('report', USED, [], '--mode=eval'),
    ('report', USED, ['report.one_class=10'], 'report.one_class=10'),
    ('report', NEW, [MIXTURE, 'mixture.stddev=0.0'], 'mixture.stddev'),
    ('compare', EMPTY, ["report.workdirs=('/nowhere',)"], '/nowhere'),
    ('compare', EMPTY, [], 'no checkpoints'),
    ('compare', USED, ['eval.steps=(2,)'], 'step 2 is not among'),
    ('compare', USED, ["report.workdirs=('PLACE/empty', 'PLACE/file')"], 'file'),
    ('merge', NEW, [], 'report.workdirs is empty'),
    ('merge', NEW, ["report.workdirs=('PLACE/nothing',)"], 'nothing/results has no rows'),
    ('merge', USED, ["report.workdirs=('PLACE/nothing',)"], 'holds a run already'),
    ('tune', NEW, [], 'does not exist'),
    ('tune', EMPTY, [], 'no checkpoints'),
    ('tune', USED, ["tune.guidance=('apg', 'cgf')"], "tune.guidance='cgf'"),
    ('tune', USED, ['tune.steps=(2,)'], 'step 2 is not among'),
    ('tune', USED, ["tune.guidance=('autoguidance',)"], 'which model is the weaker one'),
    ('tune', USED, ['tune.samples=1000'], 'tune.samples=1000 is too small'),
    ('status', NEW, [], 'does not exist'),
    ('status', EMPTY, [], 'no run'),
    ('describe', None, ['train.batch_size=18'], '4 devices'),
    ('describe', None, [MIXTURE], '--mode=report'),
    ('plan', None, [], '--target'),
    ('plan', NEW, [], 'does not exist'),
    ('plan', EMPTY, [], 'holds no run of this network'),
    ('import_adm', NEW, [], 'adm.checkpoint is missing'),
    ('import_adm', NEW, ['adm.checkpoint=PLACE/none.pt'], 'none.pt'),
    ('import_adm', EMPTY, ['adm.checkpoint=PLACE/file'], 'file'),
    ('import_adm', USED, ['adm.checkpoint=PLACE/file'], 'holds a run already'),
    ('export', NEW, [], 'does not exist'),
    ('export', EMPTY, [], 'no checkpoints'),
    ('export', USED, ['sampling.step=2'], 'step 2 is not among'),
    ('import_export', NEW, [], 'export.dir is missing'),
    ('import_export', NEW, ['export.dir=PLACE/nothing'], 'model.safetensors does not exist'),
    ('import_export', USED, ['export.dir=PLACE/nothing'], 'holds a run already'),
    ('stats', None, ['stats.path=PLACE/deep/stats.txt'], 'must end in .npz'),
    ('stats', None, ['stats.path=PLACE/deep/stats.npz', INCEPTION], '3 channels'),
    ('stats', None, [INCEPTION], '3 channels'),
    ('stats', None, [MIXTURE], '--mode=report'),
    ('evaluate_npz', NEW, [], 'eval.samples is missing'),
    ('evaluate_npz', NEW, ['eval.samples=PLACE/none.npz', 'eval.reference=PLACE/file'], 'none.npz'),
    ('evaluate_npz', EMPTY, ['eval.samples=PLACE/grey.npz', 'eval.reference=PLACE/file'], 'grey.npz'),
    ('evaluate_npz', NEW, ['eval.samples=PLACE/digits.npz', 'eval.reference=PLACE/file'], 'file'),
    (
        'evaluate_npz',
        NEW,
        ['eval.samples=PLACE/tiny.npz', 'eval.reference=PLACE/tiny.npz', INCEPTION],
        'weights of Inception',
    ),
    ('fetch_weights', None, [], 'cannot be downloaded'),
    ('fetch_weights', None, ['eval.cache_dir=PLACE/deep/cache'], 'cannot be downloaded'),
]


@pytest.mark.parametrize(
    ('mode', 'workdir', 'fields', 'expected'),
    REFUSALS,
    ids=lambda value: ' '.join(value) if isinstance(value, list) else value,
)
def test_a_refused_command_leaves_everything_as_it_was(place, mode, workdir, fields, expected):
    configs = [field for field in fields if field.startswith('configs/')]
    named = [field if field.startswith('-') else f'--config.{field}' for field in fields if field not in configs]
    arguments = [f'--mode={mode}', *(word.replace('PLACE', str(place)) for word in named)]
    if workdir is not None:
        arguments.append(f'--workdir={place / workdir}')
    config = {'config': configs[0], 'small': False} if configs else {}
    before = tree(place)
    gone = mock.patch('urllib.request.urlopen', side_effect=http.client.HTTPException('no network here'))
    with gone:
        sentence = in_process.refused(*arguments, **config)
    assert expected in sentence
    assert tree(place) == before


def test_so_does_one_whose_disk_is_full(place):
    before = tree(place)
    with mock.patch('shutil.disk_usage', return_value=SimpleNamespace(free=0)):
        assert '0 MiB free' in in_process.refused('--mode=train', f'--workdir={place / NEW}')
    assert tree(place) == before


def test_every_mode_is_refused_in_some_way():
    assert {mode for mode, *_ in REFUSALS} == in_process.modes().keys()


def test_what_was_done_before_a_mistake_stays(place):
    """A run whose disk is full, say, tells of it where others look."""
    done = in_process.main('--mode=status', f'--workdir={place / USED}', config=None, small=False)
    assert 'heartbeat: train, process 0' in done.stdout
    assert ': finished, train 24/24 steps' in done.stdout
