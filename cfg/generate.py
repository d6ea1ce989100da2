"""Guided samples from a network, in batches, over all local devices.

A sample is a function of (seed, sample index, label, w) and the parameters: its noise comes from its own key, so
batch size and device count do not change it, and the same index shows the same noise at every w.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg import parallel
from cfg.data.images import to_uint8
from cfg.diffusion import guidance, process, sampling, schedule
from cfg.errors import UserError

Array = jax.Array


@dataclass(frozen=True)
class SamplerSettings:
    """The settings of Alg. 2.

    Attributes:
      num_steps: T.
      logvar_interp: the paper's v.
      clip_x: whether the estimate of x is clipped to [-1, 1] at every step.
      logsnr_min, logsnr_max: the ends of the grid.
      rounding: to whole grey levels, see `cfg.data.images.to_uint8`.
    """

    num_steps: int
    logvar_interp: float
    clip_x: bool
    logsnr_min: float
    logsnr_max: float
    rounding: str = 'round'


class Samples(NamedTuple):
    """A finished batch: where it starts in the sequence, and uint8 [n, H, W, C] images with int32 [n] labels."""

    start: int
    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Model:
    """A network as the sampler sees it.

    Attributes:
      apply: (params, z [N, H, W, C], logsnr, labels) -> [N, H, W, at least C]. Channels past the first C are learned
        variances (ADM), which this method does not use.
      prediction: what the network predicts: eps, x or v.
      null_label: the label of its unconditional prediction.
    """

    apply: Callable
    prediction: str
    null_label: int

    def eps_fn(self, params: Any) -> guidance.EpsFn:
        """The eps function with these parameters."""

        def eps_fn(z, logsnr, labels):
            output = self.apply(params, z, logsnr, labels)[..., : z.shape[-1]]
            return process.from_output(output, z, logsnr, prediction=self.prediction).eps

        return eps_fn


def sample_keys(key: Array, index: Array) -> Array:
    """One PRNG key a sample, from the key of the seed and the sample's index."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


class Generator:
    """Alg. 2 with Eq. 6, compiled once for every w, seed, number of samples and set of parameters.

    Args:
      model: gives eps; with `uncond`, only the conditional one.
      uncond: a second model for the unconditional eps of Eq. 6, instead of the null label of the first.
      image_shape: (H, W, C).
      settings: of the sampler.
      seed: of the noise, unless a call gives another.
      batch_size: samples at a time over all devices.
      devices: all local ones by default.
    """

    def __init__(
        self,
        model: Model,
        *,
        uncond: Model | None = None,
        image_shape: tuple[int, ...],
        settings: SamplerSettings,
        seed: int,
        batch_size: int,
        devices: parallel.Devices = None,
    ):
        parallel.per_device(batch_size, 'config.sampling.batch_size', devices)

        def sample(params, key_data, index, labels, w):
            if uncond is None:
                eps_fn = guidance.classifier_free_eps_fn(model.eps_fn(params), w, null_label=model.null_label)
            else:
                eps_fn = guidance.two_model_eps_fn(
                    model.eps_fn(params[0]), uncond.eps_fn(params[1]), w, null_label=uncond.null_label
                )
            grid = schedule.sampling_grid(
                settings.num_steps, logsnr_min=settings.logsnr_min, logsnr_max=settings.logsnr_max
            )
            x = sampling.ancestral(
                eps_fn,
                sample_keys(jax.random.wrap_key_data(key_data), index),
                labels,
                grid,
                shape=image_shape,
                logvar_interp=settings.logvar_interp,
                clip_x=settings.clip_x,
            )
            finite = jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
            return to_uint8(x, settings.rounding), finite

        self._sample = parallel.pmap(sample, num_args=5, broadcast=(1,), devices=devices)
        self._seed = seed
        self._devices = devices
        self._batch_size = batch_size

    def __call__(
        self, params: Any, labels: np.ndarray, w: float | np.ndarray, *, seed: int | None = None, start: int = 0
    ) -> Iterator[Samples]:
        """Samples start..n-1 in order.

        Args:
          params: replicated over the devices; with a second model the pair (params, params of the second).
          labels: int32 [n], one a sample.
          w: one number for all, or float [n].
          seed: of the noise; None = the constructor's.
          start: index of the first sample; the ones before it are not drawn.

        Raises:
          UserError: when a sample is not finite; it names the sample and w.
        """
        labels = np.asarray(labels, np.int32)
        w = np.broadcast_to(np.asarray(w, np.float32), labels.shape)
        key_data = jax.random.key_data(jax.random.key(self._seed if seed is None else seed))
        for first in range(start, len(labels), self._batch_size):
            index = np.arange(first, first + self._batch_size)
            # The last batch is filled up with repetitions of its last sample, so that every batch compiles to the same.
            take = np.minimum(index, len(labels) - 1)
            inputs = parallel.shard((index.astype(np.uint32), labels[take], w[take]), self._devices)
            images, finite = parallel.unshard(self._sample(params, key_data, *inputs))
            count = min(self._batch_size, len(labels) - first)
            if not finite[:count].all():
                bad = first + int(np.argmin(finite[:count]))
                raise UserError(
                    f'Sample {bad} at w={w[bad]:g} is not finite: the checkpoint has diverged, or the guidance is too '
                    'strong for a sampler that does not clip x (config.sampling.clip_x).'
                )
            yield Samples(first, images[:count], labels[first : first + count])


def draw_labels(kind: str, *, num_samples: int, num_classes: int, seed: int) -> np.ndarray:
    """The labels of a set of samples, int32 [num_samples].

    Args:
      kind: 'balanced' repeats 0, 1, ..., num_classes - 1; 'random' draws each uniformly.
      seed: of the random draw.
    """
    if kind == 'balanced':
        return (np.arange(num_samples) % num_classes).astype(np.int32)
    if kind == 'random':
        return np.random.default_rng(seed).integers(0, num_classes, num_samples).astype(np.int32)
    raise UserError(f"How labels are drawn must be 'balanced' or 'random', not {kind!r}.")
