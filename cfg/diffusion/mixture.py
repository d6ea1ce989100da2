"""Diffuses Gaussian mixtures: their exact densities, scores, eps and guided densities.

Component k is class k: p(x | c = k) = N(means[k], covs[k]) and p(c = k) = weights[k]. The process keeps a
mixture a mixture, p(z | c = k) = N(alpha means[k], alpha^2 covs[k] + sigma^2 I), so everything a network
would have to learn is known in closed form here, at any logsnr.

Everywhere z is [N, D], logsnr [] or [N], and labels are int32 [N]. Labels follow the convention of the conditional
networks: 0..K-1 are classes and K, the null label, asks for the whole mixture. Any larger label gives NaN. All of it is
float32-safe, with finite gradients, for |logsnr| <= 20.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion.denoiser import EpsFn
from cfg.diffusion.schedule import alpha_sigma

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Holds K Gaussians in D dimensions, made by `gaussian_mixture`.

    Covariances are kept as covs[k] = axes[k] diag(variances[k]) axes[k]^T: the process changes the variances
    only, so no level needs a factorisation of its own, and adding sigma^2 loses nothing at either end. After
    `diffused` with logsnr [N], means and variances have a leading axis N.
    """

    means: Array  # [K, D]
    variances: Array  # along the columns of `axes`, [K, D]
    axes: Array  # orthonormal columns, [K, D, D]
    weights: Array  # positive, of sum 1, [K]

    @property
    def null_label(self) -> int:
        """Returns K, the label that means the whole mixture."""
        return self.weights.shape[0]


def gaussian_mixture(means: Array, covs: Array, weights: Array) -> GaussianMixture:
    """Checks and decomposes the parameters of a mixture, in float64; the result is float32.

    Args:
      means: [K, D].
      covs: symmetric positive definite, [K, D, D].
      weights: positive, [K]; only their ratios matter, they are scaled to sum 1.

    Raises:
      ValueError: on shapes that do not agree, values that are not finite, a covariance that is not symmetric
        or not (numerically) positive definite, or a weight that is not positive.
    """
    means, covs, weights = (np.asarray(values, np.float64) for values in (means, covs, weights))
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f'means must have shape [K, D], not {list(means.shape)}')
    num_classes, dim = means.shape
    if covs.shape != (num_classes, dim, dim):
        raise ValueError(f'covs must have shape {[num_classes, dim, dim]}, not {list(covs.shape)}')
    if weights.shape != (num_classes,):
        raise ValueError(f'weights must have shape {[num_classes]}, not {list(weights.shape)}')
    for name, values in (('means', means), ('covs', covs), ('weights', weights)):
        if not np.isfinite(values).all():
            raise ValueError(f'{name} must be finite')
    if not (weights > 0.0).all():
        raise ValueError(f'weights must be positive, not {weights.tolist()}')
    transposed = np.swapaxes(covs, 1, 2)
    if not np.allclose(covs, transposed, rtol=1e-6, atol=1e-6 * np.abs(covs).max()):
        raise ValueError('covs must be symmetric')
    variances, axes = np.linalg.eigh(0.5 * (covs + transposed))
    # Below this ratio eigh cannot tell a variance from rounding.
    singular = variances.min(axis=1) <= dim * np.finfo(np.float64).eps * np.abs(variances).max(axis=1)
    if singular.any():
        raise ValueError(
            f'covs must be positive definite; those of classes {np.flatnonzero(singular).tolist()} are not'
        )
    weights = weights / weights.sum()
    return GaussianMixture(*(jnp.asarray(values, jnp.float32) for values in (means, variances, axes, weights)))


def diffused(mixture: GaussianMixture, logsnr: Array) -> GaussianMixture:
    """Returns p(z | c = k) = N(alpha means[k], alpha^2 covs[k] + sigma^2 I), weights unchanged (Eq. 1 marginalised)."""
    alpha, sigma = _scales(logsnr)
    return dataclasses.replace(mixture, means=alpha * mixture.means, variances=alpha**2 * mixture.variances + sigma**2)


def log_density(mixture: GaussianMixture, z: Array, logsnr: Array, labels: Array) -> Array:
    """Returns log p(z | c), and for the null label log p(z) = log sum_c p(c) p(z | c): [N], in nats."""
    each = _log_density_of_each(diffused(mixture, logsnr), z)
    whole = jax.nn.logsumexp(each + jnp.log(mixture.weights), axis=1, keepdims=True)
    return _pick(jnp.concatenate([each, whole], axis=1), labels)


def log_class_posterior(mixture: GaussianMixture, z: Array, logsnr: Array) -> Array:
    """Returns log p(c | z) = log p(c) + log p(z | c) - log p(z), of every class: [N, K]."""
    return jax.nn.log_softmax(_log_density_of_each(diffused(mixture, logsnr), z) + jnp.log(mixture.weights), axis=1)


def guided_log_density(mixture: GaussianMixture, z: Array, logsnr: Array, labels: Array, *, w: Array) -> Array:
    """Returns log p(z | c) + w log p(c | z), up to a constant: the density that guidance of strength w aims at.

    [N], in nats; w is [] or [N]. Its gradient times -sigma is Eq. 6 with exact eps. As log p(c | z) = log p(c) +
    log p(z | c) - log p(z), w = 0 is the conditional density and w = -1 the unconditional one. For the null label there
    is nothing to guide to, and it is log p(z).
    """
    log_posterior = log_class_posterior(mixture, z, logsnr)
    certain = jnp.zeros_like(log_posterior[:, :1])
    log_c = _pick(jnp.concatenate([log_posterior, certain], axis=1), labels)
    return log_density(mixture, z, logsnr, labels) + w * log_c


def score(mixture: GaussianMixture, z: Array, logsnr: Array, labels: Array) -> Array:
    """Returns grad_z log p(z | c) = -(alpha^2 cov + sigma^2 I)^-1 (z - alpha mean), [N, D].

    For the null label it is grad_z log p(z) = sum_c p(c | z) grad_z log p(z | c).
    """
    noisy = diffused(mixture, logsnr)
    each = jnp.einsum('nke,kde->nkd', -_to_axes(noisy, z) / noisy.variances, mixture.axes, precision='highest')
    posterior = jnp.exp(log_class_posterior(mixture, z, logsnr))
    average = jnp.sum(posterior[..., None] * each, axis=1, keepdims=True)
    return _pick(jnp.concatenate([each, average], axis=1), labels)


def eps(mixture: GaussianMixture, z: Array, logsnr: Array, labels: Array) -> Array:
    """Returns E[eps | z, c] = -sigma grad_z log p(z | c), what a perfect network predicts."""
    _, sigma = _scales(logsnr)
    return -sigma[..., 0] * score(mixture, z, logsnr, labels)


def eps_fn(mixture: GaussianMixture) -> EpsFn:
    """Returns the exact eps in the form of a network: (z, logsnr, labels) -> eps [N, D]."""
    return functools.partial(eps, mixture)


def logits_fn(mixture: GaussianMixture) -> Callable[[Array, Array], Array]:
    """Returns the exact classifier as a network: (z, logsnr) -> log p(c | z) [N, K]."""
    return functools.partial(log_class_posterior, mixture)


def _scales(logsnr: Array) -> tuple[Array, Array]:
    """Returns alpha and sigma with two trailing axes, to broadcast against [K, D]."""
    alpha, sigma = alpha_sigma(jnp.asarray(logsnr, jnp.float32))
    return alpha[..., None, None], sigma[..., None, None]


def _to_axes(mixture: GaussianMixture, z: Array) -> Array:
    """Returns z - mean of every class, in the axes of its covariance: [N, K, D]."""
    # Full float32: accelerators would otherwise multiply in fewer bits.
    return jnp.einsum('nkd,kde->nke', z[:, None] - mixture.means, mixture.axes, precision='highest')


def _log_density_of_each(mixture: GaussianMixture, z: Array) -> Array:
    """Returns log N(z; means[k], covs[k]) of every class: [N, K]."""
    squares = jnp.square(_to_axes(mixture, z)) / mixture.variances
    return -0.5 * jnp.sum(squares + jnp.log(mixture.variances) + np.log(2.0 * np.pi), axis=-1)


def _pick(each: Array, labels: Array) -> Array:
    """Returns row labels[n] of each[n]: [N, K + 1, ...] -> [N, ...]; NaN past the null label."""
    index = labels.reshape(labels.shape + (1,) * (each.ndim - 1))
    return jnp.take_along_axis(each, index, axis=1, mode='fill')[:, 0]
