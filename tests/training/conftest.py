"""What runs of one file share."""

import json

import pytest

from cfg.settings.values import config_dict
from cfg.training import loop
from tests.kept import keep

# These say how long and how often, and change no step.
CADENCE = ('num_steps', 'log_every', 'sample_every', 'checkpoint_every', 'keep_every', 'keep_last')


def of_step(config, network, _, teacher):
    """Returns all that a config says of a step, and the network."""
    said = config_dict(config)
    train = {name: value for name, value in said['train'].items() if name not in CADENCE}
    return network, json.dumps([train, *(said[part] for part in ('seed', 'model', 'classifier', 'diffusion'))])


def of_params(network, source, *, seed):
    return network, tuple(source.image_shape), seed


@pytest.fixture(scope='module')
def kept_training():
    """Runs of one network that take the same steps share the compiled step and the first parameters."""
    with pytest.MonkeyPatch.context() as patch:
        keep(patch, loop, step_of=of_step, init_params=of_params)
        yield
