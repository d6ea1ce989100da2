"""Devices and pmap. No other file knows of either. One process drives all devices.

Arrays for pmap carry the device axis first: a batch of N on D local devices is [D, N / D, ...].
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from cfg.errors import UserError

AXIS = 'devices'

Devices = Sequence[jax.Device] | None


def local_devices(devices: Devices = None) -> list[jax.Device]:
    """The devices to use: all of this process unless some are given.

    Raises:
      UserError: when JAX runs as several processes, whose data and files would have to be divided.
    """
    if jax.process_count() > 1:
        raise UserError(
            f'JAX runs as {jax.process_count()} processes: start one process, which drives all local devices.'
        )
    return list(devices) if devices is not None else jax.local_devices()


def process() -> tuple[int, int]:
    """(the number of this process, how many there are)."""
    return jax.process_index(), jax.process_count()


def pmap(
    fn: Callable, *, broadcast: Sequence[int] = (), num_args: int, donate: Sequence[int] = (), devices: Devices = None
):
    """Runs `fn` once a device, compiled; collectives inside use the axis name `AXIS`.

    Args:
      fn: takes and returns per-device arrays, without the device axis.
      broadcast: positions of arguments that every device gets whole.
      num_args: how many positional arguments `fn` takes.
      donate: positions of arguments whose buffers the result may reuse.
      devices: the devices to use; all local ones by default.
    """
    in_axes = tuple(None if i in broadcast else 0 for i in range(num_args))
    return jax.pmap(fn, axis_name=AXIS, in_axes=in_axes, donate_argnums=tuple(donate), devices=local_devices(devices))


def mean_over_devices(tree: Any) -> Any:
    """The mean over all devices; only inside `pmap`."""
    return jax.lax.pmean(tree, AXIS)


def replicate(tree: Any, devices: Devices = None) -> Any:
    """One copy of every array on each device, with the device axis first."""
    count = len(local_devices(devices))
    copy = pmap(lambda _, x: x, broadcast=(1,), num_args=2, devices=devices)
    return copy(np.zeros(count), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of every array, as numpy arrays without the device axis.

    They are copies: on the CPU a view would share memory with a buffer that the next step reuses.
    """
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data)[0], tree)


def per_device(batch_size: int, what: str, devices: Devices = None) -> int:
    """The share of one device.

    Raises:
      UserError: when the batch does not divide over the devices.
    """
    return share(batch_size, len(local_devices(devices)), what)


def share(batch_size: int, count: int, what: str) -> int:
    """The share of one of `count` devices.

    Raises:
      UserError: when the batch does not divide over the devices.
    """
    if batch_size % count:
        raise UserError(
            f'{what}={batch_size} does not divide over {count} devices: '
            f'use {max(batch_size - batch_size % count, count)} or another multiple of {count}.'
        )
    return batch_size // count


def shard(tree: Any, devices: Devices = None) -> Any:
    """[N, ...] -> [D, N / D, ...] for every array of the tree."""
    count = len(local_devices(devices))
    return jax.tree.map(lambda x: np.asarray(x).reshape((count, -1, *x.shape[1:])), tree)


def unshard(tree: Any) -> Any:
    """[D, n, ...] -> [D * n, ...] numpy, for every array of the tree."""
    return jax.tree.map(lambda x: np.asarray(x).reshape((-1, *x.shape[2:])), tree)


def prefetch(batches: Iterable[Any], devices: Devices = None, *, ahead: int = 2) -> Iterator[Any]:
    """Batches [N, ...] as sharded arrays on the devices, `ahead` of them under way while earlier ones are used."""
    put = pmap(lambda batch: batch, num_args=1, devices=devices)
    queue: deque = deque()
    for batch in batches:
        queue.append(put(shard(batch, devices)))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
