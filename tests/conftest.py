"""Four CPU devices for the whole suite, and the small run that many tests share."""

import os

# Before JAX starts. Tests of one device take the first of the four.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=4'.strip()
os.environ['JAX_PLATFORMS'] = 'cpu'

import pytest

from configs import digits


def small_config():
    """The digits config with a network that compiles in seconds and a run of a few steps."""
    config = digits.get_config()
    config.model.channels = 8
    config.model.num_res_blocks = 1
    config.model.head_channels = 8
    config.model.norm_groups = 4
    config.train.num_steps = 6
    config.train.batch_size = 16
    config.train.log_every = 2
    config.train.sample_every = 0
    config.train.checkpoint_every = 2
    config.train.keep_every = 2
    config.sampling.num_steps = 4
    config.sampling.batch_size = 20
    config.sampling.num_samples = 20
    config.eval.steps = ()
    config.eval.w = (0.0, 1.0)
    config.eval.num_samples = 80
    return config


@pytest.fixture(name='small_config')
def small_config_fixture():
    return small_config()
