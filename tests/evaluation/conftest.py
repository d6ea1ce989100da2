"""What sweeps of one file share."""

import pytest

from cfg.evaluation import drawing
from tests.kept import keep, of_generator


@pytest.fixture(scope='module')
def kept_sampling():
    """Sweeps with the same networks and sampler share what is compiled of them."""
    with pytest.MonkeyPatch.context() as patch:
        keep(patch, drawing, make_generator=of_generator, guided_flops=lambda network, shape: (network, tuple(shape)))
        yield
