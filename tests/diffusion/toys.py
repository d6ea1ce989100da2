"""What tests of sampling share: a network in closed form, and the keys, labels and noise of a few samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Temperature
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.stepping import Guided

SHAPE = (2, 3)
CLASSES = NULL = 5
COUNT = 6


def scales(logsnr):
    """Returns alpha and sigma of Eq. 1 in float64."""
    logsnr = np.float64(logsnr)
    return np.sqrt(scipy.special.expit(logsnr)), np.sqrt(scipy.special.expit(-logsnr))


def keys(count=COUNT):
    """Returns the key of each sample."""
    return jax.random.split(jax.random.key(7), count)


def labels(count=COUNT):
    """Returns the label of each sample."""
    return np.arange(count, dtype=np.int32) % 3


@functools.partial(jax.jit, static_argnums=2)
def normal_of(keys, index, shape):
    """Returns noise number `index` of each key: at the start 0, then one on entering each further level."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


@functools.cache
def normal(index, shape=SHAPE):
    """Returns the noise of `keys()` in float64."""
    return np.float64(normal_of(keys(), index, shape))


def toy_eps(z, logsnr, labels, np_=jnp):
    """Returns an eps that is nonlinear in z, and different for each level and label."""
    level = np_.reshape(logsnr, (-1, 1, 1))  # of one level for all, or of one an example
    return np_.tanh(z + 0.3 * labels[:, None, None]) * (1 + 0.1 * np_.sin(level)) + 0.1 * np_.cos(3 * z)


def worse_eps(z, logsnr, labels, np_=jnp):
    """Returns the eps of another network."""
    return 0.8 * toy_eps(z, logsnr, labels, np_=np_) + 0.1


MODELS = Models(
    Denoiser(toy_eps, CLASSES),
    weaker=Denoiser(worse_eps, CLASSES),
    classifier=lambda z, logsnr: z.reshape(len(z), -1)[:, :CLASSES],
)


def models_of(eps_fn):
    """Returns a network without others beside it."""
    return Models(Denoiser(eps_fn, CLASSES))


def unguided(eps_fn, *, of=None, clip_x=False, w=0.0) -> Guided:
    """Returns what solvers step with where nothing guides; steps add 1 / (1 + w) of their noise."""
    of = labels() if of is None else of
    return Sampler(rule=Temperature(), clip_x=clip_x).guided(models_of(eps_fn), of, w)
