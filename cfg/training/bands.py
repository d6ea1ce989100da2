"""Measures the accuracy of a classifier of noisy images by noise level."""

import itertools

import jax
import jax.numpy as jnp

from cfg.diffusion.schedule import logsnr_from_u

Array = jax.Array

COUNT = 4


def band_names(*, logsnr_min: float, logsnr_max: float) -> list[str]:
    """Returns 'LOW_to_HIGH' in logsnr of `COUNT` bands, equally probable under p(logsnr), from data to noise."""
    edges = logsnr_from_u(jnp.linspace(0.0, 1.0, COUNT + 1), logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    texts = [f'{edge + 0.0:.1f}' for edge in edges.round(1).tolist()]  # + 0.0: there is no -0.0
    return [f'{low}_to_{high}' for high, low in itertools.pairwise(texts)]


def accuracies(correct: Array, u_time: Array, names: list[str]) -> dict[str, tuple[Array, Array]]:
    """Returns {name: (correct x weight, weight)}, of all and of each band; an accuracy is the quotient of the sums.

    Args:
      correct: 0 or 1, [N].
      u_time: the time of each example in [0, 1], [N]; the bands are equal parts of it.
      names: see `band_names`.
    """
    band = jnp.minimum(jnp.floor(len(names) * u_time), len(names) - 1)
    found = {'accuracy': (correct, jnp.ones_like(correct))}
    for number, name in enumerate(names):
        inside = (band == number).astype(correct.dtype)
        found[f'accuracy_logsnr_{name}'] = correct * inside, inside
    return found
