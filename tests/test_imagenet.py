"""ImageNet from its archives to a report, as a user runs it, on a miniature in the real layout."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cfg.data.crop import area
from cfg.runs.trained import TrainedRun, read_names
from configs import imagenet64
from tests import forked, in_process
from tests.command_line import sentence
from tests.miniature import CLASSES, CMYK_NAME, PNG_NAME, TRUNCATED, picture, write_tars

# Several times what the longest needs on a machine that does nothing else.
pytestmark = [pytest.mark.chaos, pytest.mark.xdist_group('imagenet'), pytest.mark.timeout(1500)]

NETWORK = [
    '--config.data.image_size=8',
    '--config.data.workers=2',
    '--config.model.channels=8',
    '--config.model.channel_mult=(1, 2)',
    '--config.model.num_res_blocks=1',
    '--config.model.head_channels=8',
    '--config.model.norm_groups=4',
    '--config.model.attention_resolutions=()',
    '--config.model.dtype=float32',
    '--config.train.num_steps=20',
    '--config.train.batch_size=8',
    '--config.train.learning_rate=1e-3',
    '--config.train.ema_decay=0.5',
    '--config.train.sample_every=0',
    '--config.train.log_every=5',
    '--config.train.checkpoint_every=5',
    '--config.sampling.num_steps=4',
    '--config.sampling.batch_size=40',
    '--config.eval.num_samples=80',
    '--config.eval.w=(0.0, 2.0)',
    '--config.eval.features=small_classifier',
]


def imagenet(*arguments):
    return {'config': 'configs/imagenet64.py', 'small': False}, (*NETWORK, *arguments)


def run(*arguments):
    kwargs, named = imagenet(*arguments)
    return forked.main(*named, **kwargs)


def ok(*arguments, run=run):
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def here(*arguments):
    """Runs main.py in this process, which costs less where little is done."""
    kwargs, named = imagenet(*arguments)
    return in_process.main(*named, **kwargs)


def refused(*arguments):
    return sentence(here(*arguments))


def start(*arguments, output):
    kwargs, named = imagenet(*arguments)
    return forked.Run(*named, output=output, session=True, **kwargs)


def group_is_gone(group):
    """Whether no process of a group is left: the workers of a process that was killed."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def kill(run):
    """kill -9, and no worker stays behind."""
    run.signal(signal.SIGKILL)
    run.wait()
    forked.wait_until(lambda: group_is_gone(run.process.pid))


@pytest.fixture(scope='module', name='data')
def data_fixture(tmp_path_factory):
    """The archives, prepared by a command that was killed in its middle and started again."""
    folder = tmp_path_factory.mktemp('imagenet')
    write_tars(folder / 'downloads' / 'manual')
    prepare = (f'--config.data.dir={folder}', '--mode=prepare_data')
    message = sentence(run(*prepare))
    assert TRUNCATED in message
    assert 'truncated' in message
    assert '--config.prepare.on_error=skip' in message
    part = folder / '.preparing' / 'imagenet2012_8_area' / 'train-00000.npz'
    manifest = folder / 'prepared_images/imagenet2012_8_area/1.0.0/manifest.json'
    while not part.exists() or manifest.exists():  # until it is in its middle
        for name in ('.preparing', 'prepared_images'):
            shutil.rmtree(folder / name, ignore_errors=True)
        killed = start(*prepare, '--config.prepare.on_error=skip', output=folder / 'log')
        forked.wait_until(lambda: part.exists() or not killed.process.is_alive())  # noqa: B023
        kill(killed)
    report = ok(*prepare, '--config.prepare.on_error=skip')
    assert 'train: 25 images (24 JPEG RGB, 1 JPEG L; 1 enlarged)' in report
    assert 'validation: 20 images' in report
    return folder


@pytest.fixture(scope='module', name='trained')
def trained_fixture(data, tmp_path_factory):
    """A run that was killed in the middle of an epoch, and one that was not."""
    folder = tmp_path_factory.mktemp('runs')
    unbroken, killed = folder / 'unbroken', folder / 'killed'
    ok(f'--config.data.dir={data}', f'--workdir={unbroken}')
    saved = killed / 'checkpoints' / '5'
    while not killed.exists() or (killed / 'checkpoints' / '20').exists():  # until it is in the middle of the run
        shutil.rmtree(killed, ignore_errors=True)
        first = start(f'--config.data.dir={data}', f'--workdir={killed}', output=folder / 'log')
        forked.wait_until(lambda: saved.exists() or not first.process.is_alive())  # noqa: B023
        kill(first)
    # Another number of workers: what is read depends on none of them.
    ok(f'--config.data.dir={data}', f'--workdir={killed}', '--config.data.workers=0')
    return unbroken, killed


def test_the_manifest_says_what_became_of_every_image(data):
    manifest = json.loads((data / 'prepared_images/imagenet2012_8_area/1.0.0/manifest.json').read_text())
    assert manifest['source'] == 'tfds:imagenet2012'
    assert manifest['input'].startswith('imagenet2012/5.1.0, files ')
    (skipped,) = manifest['skipped']
    assert (skipped['split'], skipped['file']) == ('train', TRUNCATED)
    assert len(manifest['class_names']) == 1000
    assert len(manifest['empty_classes']) == 1000 - len(CLASSES)
    assert not set(CLASSES) & set(manifest['empty_classes'])


def test_colours_survive_every_format(data):
    """The CMYK file, the PNG named JPEG and a plain one hold the picture that they were made from."""
    folder = data / 'prepared_images/imagenet2012_8_area/1.0.0'
    made_from = {CMYK_NAME: picture(7), PNG_NAME: picture(8), f'{CLASSES[0]}_2.JPEG': picture(2, (110, 70))}
    found = {
        example['file_name'].decode(): example
        for example in tfds.builder_from_directory(folder).as_data_source('train')
    }
    for name, original in made_from.items():
        expected = area(np.asarray(original), 8).astype(int)
        assert np.abs(found[name]['image'] - expected).mean() < 2
    assert {example['label'] for example in found.values()} == {0, 1, 59, 230}  # as in all of ImageNet


def test_killed_and_resumed_is_the_same_bit_for_bit(trained):
    """So the resumed run read what it would have read: the same examples at the same places, mirrored alike."""
    digests = []
    for workdir in trained:
        text = ok(f'--workdir={workdir}', '--mode=status', run=here)
        lines = dict(line.split(': ', 1) for line in text.splitlines())
        assert lines['step'] == '20'
        assert lines['epoch'] == '6, 10 of 25 images read'
        assert lines['data'].startswith('imagenet2012_8_area/train, fingerprint ')
        digests.append((lines['params_sha256'], lines['ema_params_sha256']))
    assert digests[0] == digests[1]


def test_the_checkpoint_holds_the_place_in_the_data(trained):
    meta = json.loads((trained[1] / 'checkpoints/20/meta/metadata').read_text())
    assert meta['data']['examples_read'] == 160
    assert (meta['data']['epoch'], meta['data']['place_in_epoch']) == (6, 10)
    assert meta['data']['num_examples'] == 25


def test_a_scheduler_that_signals_every_process(data, tmp_path):
    """The readers leave SIGTERM to their parent, which saves the step in progress."""
    arguments = (f'--config.data.dir={data}', f'--workdir={tmp_path}/run', '--config.train.num_steps=100000')
    stopped = start(*arguments, output=tmp_path / 'log')
    forked.wait_until(lambda: (tmp_path / 'run' / 'checkpoints' / '5').exists())
    os.killpg(stopped.process.pid, signal.SIGTERM)
    assert stopped.wait() == 128 + signal.SIGTERM
    saved = ok(f'--workdir={tmp_path}/run', '--mode=status', run=here)
    step = int(saved.split('step: ')[1].split()[0])
    assert step > 5
    forked.wait_until(lambda: group_is_gone(stopped.process.pid))


def test_an_evaluation_and_its_report(data, trained, tmp_path):
    workdir, _ = trained
    table = ok(f'--config.data.dir={data}', f'--workdir={workdir}', '--mode=eval')
    assert 'not Inception' in table
    assert 'imagenet2012_8_area/validation (20)' in table
    again = here(f'--config.data.dir={data}', f'--workdir={workdir}', '--mode=eval')
    assert again.stdout == table
    assert 'real images of' not in again.stderr  # nothing is to be done, so nothing is measured
    rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
    assert [row['w'] for row in rows] == [0.0, 2.0]
    assert np.isfinite([row['fid'] for row in rows]).all()
    with np.load(workdir / rows[0]['samples'], allow_pickle=False) as file:
        assert file['arr_0'].shape == (80, 8, 8, 3)
    page = ok(
        f'--config.data.dir={tmp_path}', f'--workdir={workdir}', '--mode=report', run=here
    ).strip()  # needs no data
    assert 'n01440764' in Path(page).read_text()


def test_samples_need_no_data(trained, tmp_path):
    nowhere = f'--config.data.dir={tmp_path}'
    written = ok(nowhere, f'--workdir={trained[0]}', '--mode=sample', '--config.sampling.w=(1.0,)')
    assert len(written.split()) == 2


def test_the_checkpoint_knows_its_data(trained):
    config = imagenet64.get_config()
    config.data.name = 'folder:/nowhere/imagenet2012'  # nothing but the checkpoint can say what that is
    spec = TrainedRun.beside(config, trained[0], what='it', kind='model').spec
    assert (spec.num_classes, spec.image_shape) == (1000, (8, 8, 3))
    name, classes = read_names(config, trained[0])
    assert (name, classes[59]) == ('imagenet2012_8_area/train', 'n01739381')


def test_other_images_of_the_same_name_are_refused(data, trained, tmp_path):
    shutil.copytree(data / 'prepared_images', tmp_path / 'prepared_images')
    path = tmp_path / 'prepared_images/imagenet2012_8_area/1.0.0/manifest.json'
    manifest = json.loads(path.read_text())
    manifest['splits']['train']['content_sha256'] = '0' * 64
    path.write_text(json.dumps(manifest))
    for mode in ('--config.train.num_steps=21', '--mode=eval'):
        message = refused(f'--config.data.dir={tmp_path}', f'--workdir={trained[1]}', mode)
        assert 'other images' in message
    message = refused(f'--workdir={trained[1]}', '--mode=sample', '--config.data.crop=adm')
    assert "was trained with config.data.crop='area', not 'adm'" in message


def test_what_is_missing_is_named(data, tmp_path):
    message = refused(f'--config.data.dir={tmp_path}', '--mode=prepare_data')
    assert f'{tmp_path}/downloads/manual lacks ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar' in message
    message = refused(f'--config.data.dir={tmp_path}', f'--workdir={tmp_path}/run')
    assert 'is not prepared at 8 pixels' in message
    assert '--mode=prepare_data' in message
    assert not (tmp_path / 'run' / 'checkpoints').exists()
    message = refused(f'--config.data.dir={data}', f'--workdir={tmp_path}/run', '--config.data.split=test')
    assert "config.data.split='test' must be one of train, validation" in message
