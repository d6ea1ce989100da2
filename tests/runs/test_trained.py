"""A trained run: its parameters, and what it is refused for: other noise levels, images and classes."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cfg.diffusion.sampler import parse_rule
from cfg.modes import sample
from cfg.runs.checkpoints import Checkpoints
from cfg.runs.companions import open_companions
from cfg.runs.run_files import sealed
from cfg.runs.trained import TrainedRun, newest_meta, read_names
from cfg.runtime.digest import sha256
from cfg.runtime.errors import UserError
from cfg.settings.data import spec_of
from cfg.training import loop
from tests.conftest import small_config


@pytest.fixture(scope='module', name='narrow')
def narrow_fixture(tmp_path_factory):
    """A run that was trained up to logsnr 10."""
    workdir = tmp_path_factory.mktemp('narrow')
    config = small_config()
    config.diffusion.logsnr_max = 10.0
    config.train.num_steps = config.train.checkpoint_every = 2
    loop.train(config, workdir)
    return workdir


def open_beside(config, workdir, kind):
    """The weaker or the second model of a workdir, beside a model of the config."""
    text = 'cfg'
    if kind == 'uncond':
        config.sampling.uncond_workdir = str(workdir)
    else:
        text = f'autoguidance(workdir={str(workdir)!r})'
    model = SimpleNamespace(workdir=workdir, spec=spec_of(config), ema=True)
    return open_companions(config, model, parse_rule(text))


def sampled_to(logsnr_max):
    config = small_config()
    config.diffusion.logsnr_max = logsnr_max
    return config


@pytest.mark.parametrize('kind', ['uncond', 'weaker'])
def test_the_workdir_of_another_model_is_a_path_as_the_user_means_it(kind):
    with pytest.raises(UserError, match=f'workdir={Path.home()}/nowhere does not exist'):
        open_beside(small_config(), '~/nowhere', kind)


def test_a_model_is_not_sampled_at_levels_that_it_was_not_trained_on(narrow):
    message = (
        r'The checkpoint of step 2 was trained on logsnr from -20 to 10, and the model is sampled from -20 to 20: '
    )
    with pytest.raises(UserError, match=message):
        TrainedRun.of_config(sampled_to(20.0), narrow)
    for logsnr_max in (9.0, 10.0):
        assert TrainedRun.of_config(sampled_to(logsnr_max), narrow).step == 2


@pytest.mark.parametrize(
    ('kind', 'what'),
    [('uncond', r'config\.sampling\.uncond_workdir='), ('weaker', "The guidance 'autoguidance': workdir=")],
)
def test_a_model_beside_it_knows_its_levels_and_images(narrow, kind, what):
    with pytest.raises(
        UserError, match=what + r'.* was trained on logsnr from -20 to 10, and the model is sampled from'
    ):
        open_beside(sampled_to(20.0), narrow, kind)
    assert list(open_beside(sampled_to(9.0), narrow, kind)) == [kind]
    other = sampled_to(9.0)
    other.data.crop = 'adm'
    with pytest.raises(UserError, match=what + r".* config\.data\.crop='area', not 'adm': give one of the same images"):
        open_beside(other, narrow, kind)


def test_labels_that_are_no_classes_are_named(narrow):
    config = sampled_to(9.0)
    config.sampling.labels = (3, 10)
    with pytest.raises(UserError, match=r'config\.sampling\.labels holds 10, but the classes of digits are 0 to 9'):
        sample.run(config, narrow)


def test_parameters_are_those_that_were_saved_and_are_not_kept(narrow):
    """Read anew each time, so that nothing holds them; and their digest needs no reading."""
    for ema in (True, False):
        run = TrainedRun.of_config(sampled_to(10.0), narrow, ema=ema)
        params = run.params()
        assert sha256(params) == run.sha256
        with Checkpoints(narrow, read_only=True) as checkpoints:
            saved = checkpoints.restore_params(2, ema=ema)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(saved), strict=True):
            np.testing.assert_array_equal(a, b)
        kept = weakref.ref(jax.tree.leaves(params)[0])
        del params, a
        gc.collect()
        assert kept() is None


def test_another_architecture_is_named_before_parameters_are_read(narrow, monkeypatch):
    monkeypatch.setattr(Checkpoints, 'restore_params', lambda *_, **__: pytest.fail('they were read'))
    config = sampled_to(10.0)
    config.model.channels = 16
    with pytest.raises(UserError, match=r'is of another architecture than config\.model: .* has shape'):
        TrainedRun.of_config(config, narrow)


def test_a_damaged_checkpoint_is_named_when_it_is_read(narrow, tmp_path):
    shutil.copytree(narrow, tmp_path / 'run')
    run = TrainedRun.of_config(sampled_to(10.0), tmp_path / 'run')
    path = tmp_path / 'run' / 'checkpoints' / '2' / 'meta' / 'metadata'
    meta = json.loads(path.read_text().replace(run.sha256, '0' * 64))
    path.write_text(json.dumps(sealed(meta)))
    with pytest.raises(UserError, match='is damaged: its ema_params are not those that were saved'):
        run.params()


def test_the_names_of_classes_need_no_data(narrow):
    name, classes = read_names(sampled_to(10.0), narrow)
    assert (name, list(classes)) == ('digits/all', [str(digit) for digit in range(10)])
    assert newest_meta(narrow)['config']['diffusion']['logsnr_max'] == 10.0
