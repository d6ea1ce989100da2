"""What sweeps of one file share."""

import pytest

from cfg.evaluation import sweep
from tests.kept import keep


def of_generator(config, networks, sampler):
    """Returns all that a generator depends on."""
    bound = [(name, run.network, run.kind, run.config['diffusion']['prediction']) for name, run in networks.items()]
    shape, options = networks['model'].spec.image_shape, config.sampling
    return sampler, tuple(shape), options.batch_size, options.rounding, *bound


@pytest.fixture(scope='module')
def kept_sampling():
    """Sweeps with the same networks and sampler share what is compiled of them."""
    with pytest.MonkeyPatch.context() as patch:
        keep(patch, sweep, make_generator=of_generator, guided_flops=lambda network, shape: (network, tuple(shape)))
        yield
