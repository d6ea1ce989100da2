import collections
import multiprocessing
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfg.data.pipeline import Order, Share, epoch_order, train_batches
from cfg.data.source import ArraySource
from cfg.runtime.errors import UserError


def marked_source(n):
    """Images of two pixels that tell their index, and whether they are mirrored: (i, i + 100)."""
    pixels = np.arange(n, dtype=np.uint8)
    images = np.stack([pixels, pixels + 100], axis=1).reshape(n, 1, 2, 1)
    return ArraySource('marked', images, np.arange(n, dtype=np.int32) % 7, [str(i) for i in range(7)])


def read(batch):
    """[(index, mirrored)] of a batch of marked images."""
    left, right = batch['image'][:, 0, 0, 0].astype(int), batch['image'][:, 0, 1, 0].astype(int)
    assert np.array_equal(np.abs(left - right), np.full(len(left), 100))
    assert np.array_equal(batch['label'], np.minimum(left, right) % 7)
    return list(zip(np.minimum(left, right).tolist(), (left > right).tolist(), strict=True))


def sequence(n, batch_size, steps, *, processes=1, start=0, **options):
    """What all processes together read at each place of the global batches."""
    source = marked_source(n)
    readers = [
        train_batches(source, batch_size=batch_size, start_step=start, share=Share(k, processes), flip=True, **options)
        for k in range(processes)
    ]
    result = []
    for _ in range(steps):
        batches = [next(reader) for reader in readers]
        assert np.array_equal(np.concatenate([batch['index'] for batch in batches]), np.arange(batch_size))
        result += [item for batch in batches for item in read(batch)]
    for reader in readers:
        reader.close()
    return result


@pytest.mark.parametrize('processes', [1, 2, 4])
@settings(max_examples=15)
@given(n=st.integers(1, 60), share=st.integers(1, 6))
def test_two_epochs_hold_each_index_once(processes, n, share):
    """Also where neither the batch nor the number of processes divides the data set."""
    batch_size = share * processes
    seen = sequence(n, batch_size, -(-2 * n // batch_size), processes=processes, seed=3)
    for epoch in range(2):
        assert sorted(index for index, _ in seen[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize('processes', [2, 4])
def test_any_number_of_processes_reads_the_same(processes):
    assert sequence(50, 8, 20, processes=processes, seed=1) == sequence(50, 8, 20, seed=1)


@pytest.mark.parametrize('workers', [1, 3])
def test_any_number_of_workers_reads_the_same(workers):
    expected = sequence(50, 8, 20, seed=1)
    assert sequence(50, 8, 20, seed=1, workers=workers) == expected
    assert sequence(50, 8, 13, seed=1, workers=workers, start=7) == expected[7 * 8 :]


def test_order_is_what_is_read():
    indices, flips = Order(50, 1, True).at(np.arange(160))
    assert list(zip(indices.tolist(), flips.tolist(), strict=True)) == sequence(50, 8, 20, seed=1)


def test_flips_are_a_fair_coin_anew_each_epoch():
    order = Order(2000, 0, True)
    first, second = (order.at(np.arange(e * 2000, (e + 1) * 2000)) for e in (0, 1))
    for _, flips in (first, second):
        assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    by_index = [flips[np.argsort(indices)] for indices, flips in (first, second)]
    assert 0.4 < np.mean(by_index[0] == by_index[1]) < 0.6
    assert not Order(2000, 0, False).at(np.arange(2000))[1].any()


def test_a_shuffle_is_uniform():
    """Each example comes to each place of an epoch equally often, over many seeds."""
    n, seeds = 4, 4000
    counts = collections.Counter(
        (place, index) for seed in range(seeds) for place, index in enumerate(epoch_order(n, seed=seed, epoch=0))
    )
    expected = seeds / n
    assert all(abs(counts[place, index] - expected) < 5 * np.sqrt(expected) for place in range(n) for index in range(n))


def test_a_batch_must_divide_over_processes():
    with pytest.raises(ValueError, match='9 does not divide over 2 processes'):
        next(train_batches(marked_source(5), batch_size=9, seed=0, start_step=0, share=Share(0, 2)))


def test_closing_ends_the_workers():
    before = set(multiprocessing.active_children())
    batches = train_batches(marked_source(20), batch_size=4, seed=0, start_step=0, workers=2)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    batches.close()
    deadline = time.monotonic() + 20
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(worker.is_alive() for worker in workers)


class Broken(ArraySource):
    """A source whose files cannot be read."""

    def fetch(self, indices):
        raise UserError('/data cannot be read')


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_of_the_source_arrives(workers):
    source = Broken('x', np.zeros((3, 1, 1, 1), np.uint8), np.zeros(3, np.int32), ['a'])
    batches = train_batches(source, batch_size=2, seed=0, start_step=0, workers=workers)
    with pytest.raises(UserError, match='/data cannot be read'):
        next(batches)


def test_a_worker_that_dies_is_one_sentence():
    batches = train_batches(marked_source(20), batch_size=4, seed=0, start_step=0, workers=1)
    before = set(multiprocessing.active_children())
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    with pytest.raises(UserError, match=r'config\.data\.workers'):
        for _ in range(50):
            next(batches)
