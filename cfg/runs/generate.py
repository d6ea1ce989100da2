"""Guided samples from a network, in batches, over the devices of one process or of all.

A sample is a function of (seed, sample index, label, w) and the parameters: its noise comes from its own key, so
batch size, devices and processes do not change it, and the same index shows the same noise at every w.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.data.images import to_uint8
from cfg.diffusion import guidance, pairs, process, recipes
from cfg.runtime import parallel, processes
from cfg.runtime.errors import UserError

Array = jax.Array


@dataclass(frozen=True)
class SamplerSettings:
    """How samples are drawn: by Alg. 2 with Eq. 6, unless the texts of `cfg.diffusion.recipes` say otherwise.

    Attributes:
      num_steps: T.
      logvar_interp: the paper's v.
      clip_x: whether the estimate of x is clipped to [-1, 1] at every step.
      logsnr_min, logsnr_max: the ends of the model's levels.
      rounding: to whole grey levels, see `cfg.data.images.to_uint8`.
      guidance, sampler, grid: recipes.
    """

    num_steps: int
    logvar_interp: float
    clip_x: bool
    logsnr_min: float
    logsnr_max: float
    rounding: str = 'round'
    guidance: str = recipes.USUAL['guidance']
    sampler: str = recipes.USUAL['sampler']
    grid: str = recipes.USUAL['grid']

    @property
    def parsed(self) -> dict[str, recipes.Recipe]:
        """The recipes, parsed, as `recipes.sample` and `recipes.count_passes` take them."""
        return {
            'guidance_recipe': recipes.parse_guidance(self.guidance),
            'sampler': recipes.parse_sampler(self.sampler),
            'grid': recipes.parse_grid(self.grid),
        }

    @property
    def texts(self) -> dict[str, str]:
        """The canonical texts of guidance, sampler and grid."""
        return {name: recipe.text for name, recipe in zip(recipes.USUAL, self.parsed.values(), strict=True)}

    def count_passes(self, w: float, *, second_uncond: bool = False) -> recipes.Passes:
        """The network evaluations for one sample at w, see `recipes.count_passes`."""
        return recipes.count_passes(
            **self.parsed,
            w=w,
            num_steps=self.num_steps,
            logsnr_min=self.logsnr_min,
            logsnr_max=self.logsnr_max,
            second_uncond=second_uncond,
        )


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
      apply_both: (params, z, logsnr, labels, other_labels) -> two of what `apply` returns, cheaper than with two
        evaluations; None if there is no such way.
    """

    apply: Callable
    prediction: str
    null_label: int
    apply_both: Callable | None = None

    def eps_fn(self, params: Any) -> guidance.EpsFn:
        """The eps function with these parameters."""

        def eps_fn(z, logsnr, labels):
            return self._eps(self.apply(params, z, logsnr, labels), z, logsnr)

        return eps_fn

    def both_fn(self, params: Any) -> pairs.BothFn | None:
        """(z, logsnr, labels, other_labels) -> (eps, other eps) with these parameters, or None if `apply_both` is."""
        if self.apply_both is None:
            return None

        def both_fn(z, logsnr, labels, other_labels):
            output, other = self.apply_both(params, z, logsnr, labels, other_labels)
            return self._eps(output, z, logsnr), self._eps(other, z, logsnr)

        return both_fn

    def _eps(self, output: Array, z: Array, logsnr: Array) -> Array:
        return process.from_output(output[..., : z.shape[-1]], z, logsnr, prediction=self.prediction).eps


@dataclass(frozen=True)
class Networks:
    """All networks that samples come from. Their parameters are a dict with the names of those that are there.

    Attributes:
      model: what is guided.
      num_classes: labels are 0..num_classes - 1.
      uncond: a second model for the unconditional eps, instead of the null label of the first.
      weaker: the model that autoguidance compares with.
      classifier: (params, z, logsnr) -> logits, of noisy images.
    """

    model: Model
    num_classes: int
    uncond: Model | None = None
    weaker: Model | None = None
    classifier: Callable[..., Array] | None = None

    def parts(self, params: dict[str, Any]) -> recipes.Parts:
        """The networks with these parameters, as guidance takes them."""
        return recipes.Parts(
            eps_fn=self.model.eps_fn(params['model']),
            null_label=self.model.null_label,
            num_classes=self.num_classes,
            both_fn=self.model.both_fn(params['model']),
            uncond_eps_fn=self.uncond and self.uncond.eps_fn(params['uncond']),
            uncond_null_label=self.uncond and self.uncond.null_label,
            weaker_eps_fn=self.weaker and self.weaker.eps_fn(params['weaker']),
            logits_fn=self.classifier and (lambda z, logsnr: self.classifier(params['classifier'], z, logsnr)),
        )


def sample_keys(key: Array, index: Array) -> Array:
    """One PRNG key a sample, from the key of the seed and the sample's index."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


class Generator:
    """A sampler with its guidance, compiled once for every w, seed, number of samples and set of parameters.

    Args:
      networks: with those that the guidance needs.
      image_shape: (H, W, C).
      settings: of the sampler.
      seed: of the noise, unless a call gives another.
      batch_size: samples at a time over all devices.
      devices: all local ones by default.
      shared: every process draws its share of each batch, and all hold the whole of it; then every process must
        call in the same way.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        image_shape: tuple[int, ...],
        settings: SamplerSettings,
        seed: int,
        batch_size: int,
        devices: parallel.Devices = None,
        shared: bool = False,
    ):
        self._shared = shared and processes.count() > 1
        over = parallel.everywhere() if self._shared else devices
        parallel.per_device(batch_size, 'config.sampling.batch_size', over)

        def sample(params, key_data, index, labels, w):
            x = recipes.sample(
                networks.parts(params),
                sample_keys(jax.random.wrap_key_data(key_data), index),
                labels,
                w,
                **settings.parsed,
                num_steps=settings.num_steps,
                logvar_interp=settings.logvar_interp,
                clip_x=settings.clip_x,
                logsnr_min=settings.logsnr_min,
                logsnr_max=settings.logsnr_max,
                shape=image_shape,
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
          params: those of each network, by its name in `Networks`, replicated over the devices.
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
        share = self._batch_size // (processes.count() if self._shared else 1)
        own = share * (processes.index() if self._shared else 0)
        for first in range(start, len(labels), self._batch_size):
            index = first + own + np.arange(share)
            # The last batch is filled up with repetitions of its last sample, so that every batch compiles to the same.
            take = np.minimum(index, len(labels) - 1)
            inputs = parallel.shard((index.astype(np.uint32), labels[take], w[take]), self._devices)
            images, finite = parallel.unshard(self._sample(params, key_data, *inputs))
            if self._shared:
                images, finite = processes.gather((images, finite))
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
