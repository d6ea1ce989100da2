"""What models are refused for: noise levels that they were not trained on, other images."""

from types import SimpleNamespace

import pytest

from cfg.diffusion.sampler import parse_rule
from cfg.runs.companions import open_companions
from cfg.runs.trained import TrainedRun
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
