"""Devices and pmap; no other file knows of either.

Arrays for pmap carry the device axis first: a batch of N on D devices of this process is [D, N / D, ...]. Everything
runs on the devices of this process alone, unless it is given those of all processes (`everywhere()`), as the training
step is; then each process holds the arrays of its own devices, and collectives reach all.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfg.runtime.errors import UserError

AXIS = 'devices'

# Those of this process, or of all in the order of `everywhere`; None = all of this process.
Devices = Sequence[jax.Device] | None


def everywhere() -> list[jax.Device]:
    """Returns the devices of all processes; those of a process stand together, the first process's first."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def local_devices(devices: Devices = None) -> list[jax.Device]:
    """Returns those of `devices` that this process drives."""
    if devices is None:
        return jax.local_devices()
    return [device for device in devices if device.process_index == jax.process_index()]


def pmap(
    fn: Callable, *, broadcast: Sequence[int] = (), num_args: int, donate: Sequence[int] = (), devices: Devices = None
):
    """Runs `fn` once a device, compiled; collectives inside use the axis name `AXIS`.

    Args:
      fn: takes and returns per-device arrays, without the device axis.
      broadcast: positions of arguments that every device gets whole.
      num_args: how many positional arguments `fn` takes.
      donate: positions of arguments whose buffers the result may reuse.
    """
    in_axes = tuple(None if i in broadcast else 0 for i in range(num_args))
    devices = jax.local_devices() if devices is None else list(devices)
    return jax.pmap(fn, axis_name=AXIS, in_axes=in_axes, donate_argnums=tuple(donate), devices=devices)


def mean_over_devices(tree: Any) -> Any:
    """Takes the mean over all devices; only inside `pmap`."""
    return jax.lax.pmean(tree, AXIS)


def max_over_devices(tree: Any) -> Any:
    """Takes the largest over all devices; only inside `pmap`."""
    return jax.lax.pmax(tree, AXIS)


def replicate(tree: Any, devices: Devices = None) -> Any:
    """Puts one copy of every array on each device, with the device axis first."""
    if not jax.tree.leaves(tree):  # pmap among several processes takes no function without results
        return tree
    count = len(local_devices(devices))
    copy = pmap(lambda _, x: x, broadcast=(1,), num_args=2, devices=devices)
    return copy(np.zeros(count), tree)


def per_device_shapes(tree: Any, count: int) -> Any:
    """Returns the shapes of one copy of every array on each of `count` devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def number_for_each(value: int, devices: Devices = None) -> np.ndarray:
    """Returns int32 [D], the same number for each device."""
    return np.full(len(local_devices(devices)), value, np.int32)


def replicate_first(tree: Any, devices: Devices = None) -> Any:
    """Applies `replicate` to the first process's arrays; those of the others only tell shapes and types."""
    if devices is None or len(local_devices(devices)) == len(devices):
        return replicate(tree, devices)
    source = np.zeros(len(local_devices(devices)), bool)
    source[0] = jax.process_index() == 0

    def copy(is_source, tree):
        return jax.tree.map(lambda x: jax.lax.psum(jnp.where(is_source, x, jnp.zeros_like(x)), AXIS), tree)

    return pmap(copy, broadcast=(1,), num_args=2, devices=devices)(source, tree)


def unreplicate(tree: Any) -> Any:
    """Returns the first device's copy of every array, as numpy arrays without the device axis.

    They are copies: on the CPU a view would share memory with a buffer that the next step reuses.
    """
    return jax.tree.map(lambda x: np.array(x.addressable_shards[0].data)[0], tree)


def per_device(batch_size: int, what: str, devices: Devices = None) -> int:
    """Returns the share of one of `devices` in a batch over all of them; see `share`."""
    return share(batch_size, len(jax.local_devices() if devices is None else devices), what)


def share(batch_size: int, count: int, what: str) -> int:
    """Returns the share of one of `count` devices in the batch of a config's field.

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
    """Turns [N, ...] of this process into [D, N / D, ...] for every array of the tree."""
    count = len(local_devices(devices))
    return jax.tree.map(lambda x: np.asarray(x).reshape((count, -1, *x.shape[1:])), tree)


def unshard(tree: Any) -> Any:
    """Turns [D, n, ...] into [D * n, ...] numpy, for every array of the tree."""
    return jax.tree.map(lambda x: np.asarray(x).reshape((-1, *x.shape[2:])), tree)


class Prefetched:
    """Batches [N, ...] as sharded arrays on the devices, `ahead` of them under way while earlier ones are used.

    When no more can be read, those that were are still given; `failed` tells of it `ahead` batches before.
    """

    def __init__(self, batches: Iterable[Any], devices: Devices = None, *, ahead: int = 2):
        self._batches, self._devices, self._ahead = iter(batches), devices, ahead
        self._put = pmap(lambda batch: batch, num_args=1, devices=devices)
        self._queue: deque = deque()
        self._ended = False
        self.failed: Exception | None = None  # what reading raised
        self.waited = 0.0  # seconds spent on waiting for batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Returns the next batch; raises what reading raised when nothing is left of what was read before."""
        while not self._ended and len(self._queue) <= self._ahead:
            begin = time.monotonic()
            try:
                batch = next(self._batches)
            except StopIteration:
                self._ended = True
            except Exception as error:
                self._ended, self.failed = True, error
            else:
                self.waited += time.monotonic() - begin
                self._queue.append(self._put(shard(batch, self._devices)))
        if self._queue:
            return self._queue.popleft()
        raise self.failed or StopIteration


def on_this_process(tree: Any) -> Any:
    """Replicates over this process's devices alone what is replicated over those of all processes."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return tree
    return replicate(unreplicate(tree))


def memory() -> dict[str, int]:
    """Returns the bytes in use now and at most so far, of this process's fullest device; {} where none tells (CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = {'device_memory_bytes': 'bytes_in_use', 'device_memory_peak_bytes': 'peak_bytes_in_use'}
    return {ours: max(s[key] for s in stats) for ours, key in names.items() if stats and all(key in s for s in stats)}
