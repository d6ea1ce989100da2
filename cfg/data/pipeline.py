"""The order in which training reads a data set, and grain to read it, in threads or processes ahead of the device."""

import contextlib
import functools
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from cfg.data.source import Source
from cfg.data.workers import begin_worker
from cfg.runtime.errors import UserError

Batch = dict[str, np.ndarray]


@functools.lru_cache(maxsize=8)
def epoch_order(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the order of one epoch: a permutation of 0..num_examples-1 that depends on (seed, epoch) alone."""
    order = np.random.default_rng((seed, epoch)).permutation(num_examples)
    order.flags.writeable = False  # it is shared by all who ask again
    return order


@functools.lru_cache(maxsize=8)
def epoch_flips(num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Tells which places of an epoch show their example mirrored: bool [num_examples], from (seed, epoch) alone."""
    flips = np.random.default_rng((seed, epoch, 1)).random(num_examples) < 0.5
    flips.flags.writeable = False
    return flips


class Order(NamedTuple):
    """The order in which training reads its endless sequence, which is epochs laid end to end."""

    num_examples: int  # of the data set
    seed: int
    flip: bool  # whether half of the examples are mirrored, drawn anew each epoch

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (index of the example int64 [k], whether it is mirrored bool [k]) at `positions` int [k]."""
        epochs, places = np.divmod(np.asarray(positions, np.int64), self.num_examples)
        indices, flips = np.zeros(len(epochs), np.int64), np.zeros(len(epochs), bool)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = epoch_order(self.num_examples, seed=self.seed, epoch=epoch)[places[here]]
            if self.flip:
                flips[here] = epoch_flips(self.num_examples, seed=self.seed, epoch=epoch)[places[here]]
        return indices, flips


class Share(NamedTuple):
    """A share is the part of every batch that one process reads."""

    process: int  # its number
    count: int  # of processes

    def places(self, batch_size: int) -> np.ndarray:
        """Returns its places in the global batch, int32 [batch_size / count]: those of the devices that it drives."""
        if batch_size % self.count:
            raise ValueError(f'a batch of {batch_size} does not divide over {self.count} processes')
        size = batch_size // self.count
        return np.arange(self.process * size, (self.process + 1) * size, dtype=np.int32)


def _read(step: int, *, source: Source, order: Order, batch_size: int, places: np.ndarray) -> Batch:
    """Reads what is at these places of the batch of a step."""
    indices, flips = order.at(step * batch_size + places.astype(np.int64))
    batch = source.fetch(indices)
    if flips.any():
        batch['image'] = np.where(flips[:, None, None, None], batch['image'][:, :, ::-1], batch['image'])
    return batch | {'index': places}


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    flip: bool = False,
    share: Share | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Reads endless training batches, from the one of step `start_step` on.

    Epochs follow each other without a gap: a batch may end one and begin the next, so each example is seen
    exactly once an epoch, whatever the sizes. What is at a place of the batch of a step is a function of
    (seed, step, place): a resumed run reads on where it stopped, and any number of processes read the same.

    Close the generator to end its workers.

    Args:
      batch_size: of all processes together.
      flip: whether half of the examples are mirrored.
      share: the part of each batch that is read here; all of it unless given.
      workers: processes that read and decode, two batches ahead each; 0 = two threads of this process.

    Yields:
      {'image': uint8 [B, H, W, C], 'label': int32 [B], 'index': int32 [B]}; B is this process's share, and 'index'
      the place in the global batch, which seeds the example's randomness.
    """
    places = (share or Share(0, 1)).places(batch_size)
    order = Order(len(source), seed, flip)
    read = functools.partial(_read, source=source, order=order, batch_size=batch_size, places=places)
    steps = grain.MapDataset.range(start_step, 2**62).map(read)
    ahead = grain.ReadOptions(num_threads=2 if workers == 0 else 1, prefetch_buffer_size=2)
    batches = steps.to_iter_dataset(ahead)
    if workers:
        if not flags.FLAGS.is_parsed():  # outside of a command line: grain reads its own flags, and defaults will do
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options, worker_init_fn=begin_worker)
    iterator = iter(batches)
    with contextlib.closing(iterator):
        try:
            yield from iterator
        except RuntimeError as error:
            if 'Worker process was terminated' not in str(error):
                raise
            raise UserError(
                'A process that reads the data died, most likely because memory or /dev/shm ran out: set a smaller '
                'config.data.workers (0 = none); the same command goes on from the last checkpoint.'
            ) from error
