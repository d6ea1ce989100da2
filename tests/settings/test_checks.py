"""The checks of a config: every field has one, of its type and of its range."""

import re
from pathlib import Path

import pytest

from cfg.runtime.errors import UserError
from cfg.settings.checks import check_config
from cfg.settings.table import TABLE
from configs import default
from tests.conftest import small_config


def leaves(config, prefix=''):
    """(name, value) of every field, parts and all."""
    for name, value in config.items():
        if hasattr(value, 'items'):
            yield from leaves(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


FIELDS = {f'{part}.{name}'.strip('.'): check for part, fields in TABLE.items() for name, check in fields.items()}
DEFAULTS = dict(leaves(default.get_config()))


def refused(field, value):
    """Sets a field and checks; the sentence."""
    config = small_config()
    part, _, name = field.rpartition('.')
    with config.unlocked(), config.ignore_type():
        (config[part] if part else config)[name] = value
    with pytest.raises(UserError) as error:
        check_config(config)
    return str(error.value)


def test_every_field_is_in_the_table():
    assert FIELDS.keys() == DEFAULTS.keys()


def test_every_default_passes_its_check():
    wrong = [name for name, check in FIELDS.items() if not check.holds(DEFAULTS[name])]
    assert wrong == ['data.name']  # which has no default


@pytest.mark.parametrize('field', FIELDS)
def test_a_value_of_another_type_is_a_sentence(field):
    """None, which ml_collections lets through everywhere, and what else a config file may say."""
    wrong = [{}] + [None] * (FIELDS[field].read(None, field) is None)
    wrong += [] if isinstance(DEFAULTS[field], bool | float) else [True]  # which becomes a float
    wrong += [] if isinstance(DEFAULTS[field], str | float) else ['x']
    wrong += [3, ({},)] if isinstance(DEFAULTS[field], tuple) else []
    for value in wrong:
        message = refused(field, value)
        assert message.startswith(f'config.{field}=')
        assert ' must be ' in message


PATHS = [field for field, check in FIELDS.items() if check.read(Path('x'), '') == 'x']
BUCKETS = ['data.dir', 'prepare.tfds_dir', 'prepare.manual_dir']


def read(field, value):
    """What a field is after the checks."""
    config = small_config()
    part, _, name = field.rpartition('.')
    with config.unlocked(), config.ignore_type():
        config[part][name] = value
    check_config(config)
    return config[part][name]


def test_every_field_whose_name_is_that_of_a_path_is_one():
    named = [field for field in DEFAULTS if re.search('dir|path|checkpoint$|weights|reference|samples$', field)]
    others = [field for field in named if 'num_samples' in field or not isinstance(DEFAULTS[field], str)]
    assert {*named} - {*others} == {*PATHS}
    assert {*BUCKETS} < {*PATHS}


@pytest.mark.parametrize('field', PATHS)
def test_a_path_is_what_the_user_means(field, monkeypatch):
    monkeypatch.setenv('HOME', '/home/ann')
    monkeypatch.setenv('SCRATCH', '/scratch')
    assert read(field, '~/x.npz') == '/home/ann/x.npz'
    assert read(field, '${SCRATCH}/x.npz') == '/scratch/x.npz'
    assert read(field, Path('x.npz')) == 'x.npz'
    assert read(field, 'None') == read(field, None) == ''
    assert f"config.{field}='$NOWHERE/x': the variable NOWHERE is not set" in refused(field, '$NOWHERE/x')
    if field in BUCKETS:
        assert read(field, 'gs://bucket/x') == 'gs://bucket/x'
    else:
        assert 'must be a path on this machine' in refused(field, 'gs://bucket/x')


def test_each_of_several_folders_is_a_path(monkeypatch):
    monkeypatch.setenv('HOME', '/home/ann')
    assert read('report.workdirs', ('~/a', 'b')) == ('/home/ann/a', 'b')
    for value in ((None,), ('',), ('None',), ('gs://bucket/run',)):
        assert f'config.report.workdirs={value!r} must be' in refused('report.workdirs', value)


@pytest.mark.parametrize('field', ['report.title', 'report.paper'])
def test_none_is_no_text_where_a_text_may_be_missing(field):
    assert read(field, 'None') == read(field, None) == ''


@pytest.mark.parametrize('field', ['seed', 'sampling.seed'])
def test_seeds_that_would_wrap_are_refused(field):
    """A PRNG key is made of 32 bits: 4294967297 would be 1, and 2^70 does not fit at all."""
    for value in (2**32, 2**32 + 1, 2**70, -1):
        message = refused(field, value)
        assert message == f'config.{field}={value} must be a whole number of at least 0 and below 2^32.'
    config = small_config()
    config.update_from_flattened_dict({field: 2**32 - 1})
    check_config(config)


def test_seeds_of_a_sweep_and_of_the_mixture_are_refused_too():
    assert 'below 2^32' in refused('eval.seeds', (1, 2**32 + 1))
    config = small_config()
    config.sampling.seed = 2**32 - 2
    config.mixture.num_seeds = 2
    check_config(config)
    config.mixture.num_seeds = 3
    check_config(config)  # of the digits, which are no study
    config.data.name = 'mixture'
    with pytest.raises(UserError, match='num_seeds=3 must be so few that the last seed, 4294967296, is below'):
        check_config(config)


@pytest.mark.parametrize(
    'field', ['train.num_steps', 'sampling.num_samples', 'eval.num_samples', 'sampling.num_steps', 'sampling.step']
)
def test_counts_that_an_integer_of_the_device_does_not_hold_are_refused(field):
    for value in (2**31, 2**70):
        assert refused(field, value).startswith(f'config.{field}={value} must be ')


@pytest.mark.parametrize(
    ('field', 'value', 'words'),
    [
        ('model.num_heads', 2, 'positive, or else model.head_channels: one of the two'),
        ('model.norm_groups', 3, 'a divisor of 8 channels'),
        ('model.channel_mult', (0.3,), 'positive factors that give whole numbers of channels'),
        ('diffusion.logsnr_min', 20.0, 'smaller than logsnr_max=20.0'),
        ('diffusion.logsnr_max', 21.0, 'within -20 and 20 for float32'),
        ('train.decay_steps', 3, '0, or at least num_steps=6'),
        ('train.learning_rate', float('inf'), 'positive'),
        ('train.p_uncond', float('nan'), 'a probability in [0, 1]'),
        ('train.ema_decay', 1.0, 'in [0, 1)'),
        ('train.kind', 'clasifier', 'one of model, classifier, student, guidance_free'),
        (
            'data.name',
            'cifar',
            'one of digits, cifar10, imagenet_resized32, imagenet_resized64, mixture, imagenet, tfds:NAME, folder:PATH',
        ),
        ('data.split', 'validation', 'one of all, train, test'),
        ('eval.job', '0/1', "'i/n', the i-th of n jobs, from '1/n' to 'n/n'"),
        ('eval.logvar_interp', (1.5,), 'numbers in [0, 1]'),
        ('report.grid_shape', (3,), '(rows, columns), whole numbers of at least 1'),
        ('report.workdirs', ('',), "a tuple of folders, such as ('runs/p02',)"),
        ('mixture.means', ((0.0,),), 'up to 6 points (x, y)'),
        ('mixture.steps', (), 'one or more whole numbers of at least 2'),
        ('mixture.rule_samplers', (), 'at least one sampler'),
        ('sampling.num_steps', 1, "at least 2 with the grid 'paper'"),
        ('eval.num_steps', (4, 1), "at least 2 with the grid 'paper'"),
        ('mixture.guidance', ('one_pass',), 'rules that need no network that takes w'),
        ('train.w', (-1.0, 4.0), 'the least and the largest w, above -1'),
    ],
)
def test_what_a_field_must_be_is_said(field, value, words):
    assert refused(field, value) == f'config.{field}={value!r} must be {words}.'
