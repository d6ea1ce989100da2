import itertools

import jax
import numpy as np
import pytest

from cfg.runtime import parallel
from cfg.runtime.errors import UserError


@pytest.mark.parametrize('devices', [1, 4])
@pytest.mark.parametrize('count', [0, 1, 5])
def test_prefetched_batches_are_the_batches_in_order_on_the_devices(devices, count):
    devices = jax.local_devices()[:devices]
    batches = [{'x': np.arange(8) + 10 * i} for i in range(count)]
    fetched = list(parallel.Prefetched(iter(batches), devices))
    assert len(fetched) == count
    for got, batch in zip(fetched, batches, strict=True):
        assert got['x'].shape == (len(devices), 8 // len(devices))
        assert got['x'].sharding.device_set == set(devices)
        assert np.array_equal(parallel.unshard(got)['x'], batch['x'])


def test_endless_batches_are_read_a_few_ahead():
    read = []

    def batches():
        for i in itertools.count():
            read.append(i)
            yield np.full(4, i)

    fetched = parallel.Prefetched(batches(), ahead=2)
    assert np.array_equal(parallel.unshard(next(fetched)), np.zeros(4))
    assert read == [0, 1, 2]


def test_what_was_read_before_an_error_is_given_and_the_error_is_announced():
    def batches():
        for i in range(5):
            yield np.full(4, i)
        raise UserError('no more')

    fetched = parallel.Prefetched(batches(), ahead=3)
    seen = []
    with pytest.raises(UserError, match='no more'):
        while True:
            seen.append((int(parallel.unshard(next(fetched))[0]), fetched.failed is not None))
    assert seen == [(0, False), (1, False), (2, True), (3, True), (4, True)]


def test_a_share_must_be_whole():
    assert parallel.share(12, 4, 'x') == 3
    with pytest.raises(UserError, match='x=10 does not divide over 4 devices: use 8 or another multiple of 4'):
        parallel.share(10, 4, 'x')
