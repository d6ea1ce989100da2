"""What a careless user types: one sentence each, before any long work.

All are typed to main.py in this process; a few besides to one of its own, as a user does.
"""

from pathlib import Path

import pytest

from tests import command_line
from tests.in_process import refused


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--config.train.num_step=3'], ['config.train.num_step does not exist', 'did you mean num_steps?']),
        (['--config.train.nope=3'], ['config.train.nope does not exist', 'configs/default.py']),
        (['--config.seed=3', '--config.nope.x=3'], ['config.nope.x does not exist', 'configs/default.py']),
        (['--config.seed.x=3'], ['config.seed.x does not exist', 'configs/default.py']),
        (['--config.sampling.guidance.eta=0'], ['config.sampling.guidance.eta does not exist', 'apg(eta=0.0)']),
        (['--config.train.num_steps.x=0'], ['config.train.num_steps.x does not exist']),
        (['--config.train.num_steps=many'], ['num_steps', 'many']),
        (['--config.train.p_uncond=1.5'], ['config.train.p_uncond=1.5', '[0, 1]']),
        (['--config.eval.job=3/2', '--mode=eval'], ["config.eval.job='3/2'"]),
        (['--config.eval.job=half', '--mode=eval'], ["config.eval.job='half'", 'i/n']),
        (['--config.eval.num_samples=1', '--mode=eval'], ['config.eval.num_samples=1']),
        (
            ['--config.eval.features=vgg', '--mode=eval'],
            ["features='vgg'", 'inception, small_classifier'],
        ),
        (['--config.report.paper=table3', '--mode=report'], ["config.report.paper='table3'", 'table1_imagenet64']),
        (['--mode=evaluate_npz'], ['config.eval.samples']),
        (['--config.data.name=cifar'], ['config.data.name', 'cifar', 'digits']),
        (['--config.model.norm_groups=3'], ['config.model.norm_groups=3', '8 channels']),
        (['--config.model.channel_mult=(1, 1, 1, 1, 1)'], ['channel_mult', '8x8']),
        (['--config.train.batch_size=18'], ['config.train.batch_size=18', '4 devices', '16']),
        (['--config.sampling.labels=(3.5,)', '--mode=sample'], ['config.sampling.labels=(3.5,)', 'whole numbers']),
        (['--config.sampling.w=()', '--mode=sample'], ['config.sampling.w=()', 'finite numbers']),
        (['--config.model.attention_resolutions=(5,)'], ['attention_resolutions=(5,)', '[8]']),
        (['--config.sampling.batch_size=30'], ['config.sampling.batch_size=30', '4 devices', '28']),
        (['--config.model.label_in=encoder'], ["config.model.label_in='encoder'", 'everywhere, decoder']),
        (['--config.data.crop=middle'], ["config.data.crop='middle'", 'area, adm']),
        (['--config.data.workers=-1'], ['config.data.workers=-1', 'at least 0']),
        (['--config.data.name=folder:'], ['config.data.name', 'folder:PATH']),
        (['--config.prepare.on_error=ignore'], ["config.prepare.on_error='ignore'", "'stop' or 'skip'"]),
        (['--mode=prepare_data'], ["config.data.name='digits'", 'no preparation']),
        (['--mode=prepare_data', '--config.data.name=folder:/nowhere'], ['/nowhere is not a folder']),
        (
            ['--config.sampling.sampler=bogus', "--config.eval.sampler=('ddim',)"],
            ['config.sampling.sampler', 'ancestral, ddim'],
        ),
        (
            [
                '--config.sampling.grid=uniform',
                '--config.diffusion.logsnr_max=5',
                "--config.eval.grid=('rho(logsnr_max=9)',)",
            ],
            ["config.eval.grid='rho(logsnr_max=9.0)'", 'within -20 and 5'],
        ),
        (['--mode=trian'], ['trian', 'train']),
        (['train'], ["'train'", '--config.field=value']),
        (['--mode=eval'], ['no checkpoints', '--mode=train']),
        (['--workdir=gs://bucket/run'], ['gs://bucket/run', 'local folder']),
        (['--workdir=/nowhere/run', '--mode=eval'], ['/nowhere/run does not exist']),
        (['--workdir=~/nowhere', '--mode=status'], [f'--workdir={Path.home()}/nowhere does not exist']),
        (['--workdir=~nobody.here/run'], ["--workdir='~nobody.here/run': no home folder is known for ~nobody.here"]),
        (['--workdir=$NOWHERE/run'], ['the variable NOWHERE is not set']),
        (['--workdir=None'], ['--workdir is missing']),
        (['--workdir='], ['--workdir is missing']),  # which was the current folder
        (['--workdir=run\r'], ["--workdir='run\\r' has a control character"]),
        (['--config=~/nowhere.py'], [f'{Path.home()}/nowhere.py']),
        (['--config.stats.path=~/nowhere.txt', '--mode=stats'], [f'{Path.home()}/nowhere.txt must end in .npz']),
        (
            ['--config.eval.samples=~/x.npz', '--mode=evaluate_npz', '--config.eval.reference=~/y.npz'],
            [f'config.eval.samples={Path.home()}/x.npz does not exist'],
        ),
        (['--mode=report'], ['results has no rows', '--mode=eval']),
        (['--mode=status'], ['no run']),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_sentence(tmp_path, arguments, expected):
    message = refused(f'--workdir={tmp_path}', *arguments)
    assert all(part in message for part in expected), message
    assert not list(tmp_path.glob('results*'))


def test_a_workdir_that_cannot_be_written(tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    message = refused(f'--workdir={file}/run')
    assert f'--workdir={file}/run cannot be written' in message


def test_missing_arguments(tmp_path):
    assert '--workdir is missing' in refused()
    assert '--config is missing' in refused(f'--workdir={tmp_path}', config='', small=False)
    assert '--config is missing' in refused(f'--workdir={tmp_path}', config='None', small=False)
    message = refused(f'--workdir={tmp_path}', config='configs/nothing.py', small=False)
    assert 'configs/nothing.py' in message and 'digits_classifier' in message


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('config.train.num_steps = several', "mine.py, line 4: NameError: name 'several' is not defined"),
        ('config.train.num_steps = (3', "mine.py, line 4: SyntaxError: '(' was never closed"),
        ('import nowhere', "mine.py, line 4: ModuleNotFoundError: No module named 'nowhere'"),
        ('config.train.num_step = 3', 'mine.py, line 4: config.num_step does not exist: every field of a config is in'),
        ('config.trian.num_steps = 3', 'mine.py, line 4: config.trian does not exist'),
        ('config.seed.x = 3', "mine.py, line 4: AttributeError: 'int' object has no attribute 'x'"),
        ("config.train.num_steps = 'many'", "mine.py, line 4: Could not override field 'num_steps'"),
        ("open('/nowhere/x')", '--config cannot be loaded ([Errno 2] No such file or directory: '),
        ('return None', 'mine.py returns no config: end it with return config'),
        ('return {}', 'mine.py returns no config: end it with return config'),
    ],
)
def test_what_is_wrong_in_a_config_of_ones_own_is_said_with_its_line(tmp_path, line, expected):
    file = tmp_path / 'mine.py'
    body = ['config = digits.get_config()', line, 'return config']
    file.write_text('\n    '.join(['from configs import digits\ndef get_config():', *body]))
    assert expected in refused(f'--workdir={tmp_path}', config=file, small=False)


def test_a_config_without_get_config_and_one_without_parts(tmp_path):
    (tmp_path / 'mine.py').write_text('config = None')
    assert 'mine.py has no function get_config()' in command_line.refused(config=tmp_path / 'mine.py', small=False)
    assert 'configs/digits.py has no parts' in refused(config='configs/digits.py:steps', small=False)


def test_a_mixture_has_nothing_to_train(tmp_path):
    message = refused(f'--workdir={tmp_path}', config='configs/mixture.py', small=False)
    assert '--mode=report' in message


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--config.train.num_step=3'], 'config.train.num_step does not exist'),  # while the flags are parsed
        (['--config.train.p_uncond=1.5'], 'config.train.p_uncond=1.5'),  # while the config is checked
        (['--mode=eval', '--workdir=/nowhere/run'], '/nowhere/run does not exist'),
    ],
)
def test_a_process_says_one_line_ends_with_2_and_leaves_nothing(tmp_path, arguments, expected):
    workdir = tmp_path / 'run'
    done = command_line.main(f'--workdir={workdir}', *arguments)
    assert (done.returncode, done.stdout) == (2, '')
    (line,) = done.stderr.splitlines()
    assert line.startswith('error: ')
    assert expected in line
    assert not workdir.exists()


def test_help_shows_every_flag_of_the_command():
    text = command_line.main('--help', config=None, small=False).stdout
    for flag in ('config', 'workdir', 'mode', 'coordinator', 'num_processes', 'process_id'):
        assert f'--{flag}: ' in text
