"""Draws guided samples from a network, in batches, over the devices of one process or of all.

A sample is a function of (seed, sample index, label, w) and the parameters: its noise comes from its own key, so
batch size, devices and processes do not change it, and the same index shows the same noise at every w.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.data.images import to_uint8
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.strength import Given
from cfg.models.unet import UNet
from cfg.runtime import parallel, processes
from cfg.runtime.errors import UserError

Array = jax.Array


class Samples(NamedTuple):
    """Holds a finished batch: where it starts, images [n, H, W, C], uint8 or as drawn, and int32 [n] labels."""

    start: int
    images: np.ndarray
    labels: np.ndarray


def binder(network: UNet, prediction: str) -> Callable[[Any], Denoiser]:
    """Returns params -> the network with these parameters, as guidance sees it; it predicts eps, x or v."""

    def bind(params):
        apply = functools.partial(network.apply, {'params': params})
        if network.takes_w:
            return Denoiser(lambda *inputs: apply(*inputs[:3], w=inputs[3]), network.num_classes, prediction)
        both = functools.partial(apply, method='both') if network.label_in == 'decoder' else None

        def perturbed(perturbation):
            return functools.partial(network.clone(perturbation=perturbation).apply, {'params': params})

        return Denoiser(apply, network.num_classes, prediction, both, perturbed)

    return bind


def sample_keys(key: Array, index: Array) -> Array:
    """Returns one PRNG key a sample, from the key of the seed and the sample's index."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


class Generator:
    """Compiles a sampler with its networks once for every w, seed, number of samples and set of parameters.

    Args:
      networks: {field of `Models`: parameters -> what the field holds}, those that the rule needs.
      image_shape: (H, W, C).
      rounding: to whole grey levels, see `cfg.data.images.to_uint8`; None keeps samples float32.
      batch_size: samples at a time over all devices.
      shared: every process draws its share of each batch, and all hold the whole of it; then every process must
        call in the same way.
    """

    def __init__(
        self,
        networks: Mapping[str, Callable[[Any], Any]],
        sampler: Sampler,
        *,
        image_shape: tuple[int, ...],
        batch_size: int,
        rounding: str | None = 'round',
        devices: parallel.Devices = None,
        shared: bool = False,
    ):
        self._shared = shared and processes.count() > 1
        over = parallel.everywhere() if self._shared else devices
        parallel.per_device(batch_size, 'config.sampling.batch_size', over)

        def sample(params, run, index, labels, w):
            key_data, schedule = run
            models = Models(**{name: bind(params[name]) for name, bind in networks.items()})
            keys = sample_keys(jax.random.wrap_key_data(key_data), index)
            strength = w if schedule is None else Given(*schedule, w)
            x = sampler.sample(models, keys, labels, strength, shape=image_shape)
            finite = jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
            return x if rounding is None else to_uint8(x, rounding), finite

        self._sample = parallel.pmap(sample, num_args=5, broadcast=(1,), devices=devices)
        self._devices = devices
        self._batch_size = batch_size

    def lower(self, params: Any) -> jax.stages.Lowered:
        """Lowers what draws a batch, to be compiled and looked at.

        Args:
          params: shapes of those of each network, without the device axis.
        """
        count = len(self._devices)
        share = (count, self._batch_size // count)
        inputs = [jax.ShapeDtypeStruct(share, dtype) for dtype in (np.uint32, np.int32, np.float32)]
        key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        return self._sample.lower(parallel.per_device_shapes(params, count), (key_data, None), *inputs)

    def __call__(
        self,
        params: Any,
        labels: np.ndarray,
        w: float | np.ndarray,
        *,
        seed: int,
        start: int = 0,
        schedule: Sequence[tuple[float, float]] | None = None,
    ) -> Iterator[Samples]:
        """Yields samples start..n-1 in order, in batches.

        Args:
          params: those of each network, by its name in `networks`, replicated over the devices.
          labels: int32 [n], one a sample.
          w: one number for all, or float [n].
          start: index of the first sample; the ones before it are not drawn.
          schedule: pairs (logsnr, factor of w), as many for every call; see `strength.Given`.

        Raises:
          UserError: when a sample is not finite; it names the sample and w.
        """
        labels = np.asarray(labels, np.int32)
        w = np.broadcast_to(np.asarray(w, np.float32), labels.shape)
        given = None if schedule is None else np.float32(schedule).T
        run = jax.random.key_data(jax.random.key(seed)), given
        share = self._batch_size // (processes.count() if self._shared else 1)
        own = share * (processes.index() if self._shared else 0)
        for first in range(start, len(labels), self._batch_size):
            index = first + own + np.arange(share)
            # The last batch is filled up with repetitions of its last sample, so that every batch compiles to the same.
            take = np.minimum(index, len(labels) - 1)
            inputs = parallel.shard((index.astype(np.uint32), labels[take], w[take]), self._devices)
            images, finite = parallel.unshard(self._sample(params, run, *inputs))
            if self._shared:
                images, finite = processes.gather((images, finite))
            count = min(self._batch_size, len(labels) - first)
            if not finite[:count].all():
                bad = first + int(np.argmin(finite[:count]))
                raise UserError(
                    f'Sample {bad} at w={w[bad]:g} is not finite: the network has diverged or does not have the label, '
                    'or the guidance is too strong for a sampler that does not clip x (clip_x).'
                )
            yield Samples(first, images[:count], labels[first : first + count])


def draw_labels(kind: str, *, num_samples: int, num_classes: int, seed: int) -> np.ndarray:
    """Draws the labels of a set of samples, int32 [num_samples].

    'balanced' repeats 0, 1, ..., num_classes - 1; 'random' draws each uniformly.
    """
    if kind == 'balanced':
        return (np.arange(num_samples) % num_classes).astype(np.int32)
    if kind == 'random':
        return np.random.default_rng(seed).integers(0, num_classes, num_samples).astype(np.int32)
    raise UserError(f"How labels are drawn must be 'balanced' or 'random', not {kind!r}.")
