"""Networks of other conventions, as this project's samplers see them: `adapt`.

Here z = alpha x + sigma eps with alpha^2 + sigma^2 = 1, and the level is logsnr = log(alpha^2 / sigma^2). With
s = e^(-logsnr / 2) = sigma / alpha, the noise of a network that is told sigma (EDM, variance exploding) is s itself, on
z / alpha = x + s eps. Flow matching's time is t = s / (1 + s), on (1 - t) x + t eps = z / (alpha + sigma).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfg.diffusion import process
from cfg.diffusion.denoiser import Denoiser, EpsFn, check_output
from cfg.diffusion.schedule import alpha_sigma, sigma_from_logsnr
from cfg.runtime.errors import UserError

Array = jax.Array
TRACED = (
    'JAX traces it: it must be of jax.numpy, and may not change a state, so a module of nnx that has dropout or batch '
    'norm needs its eval() before.'
)


class Convention(NamedTuple):
    """A convention says what a network is given, and how its answer is read."""

    prediction: str  # what `read` returns: eps, x or v
    scale: Callable[[Array, Array], Array]  # (alpha, sigma) -> the factor of z that the network sees
    level: Callable[[Array], Array]  # logsnr -> what it is told of the level
    read: Callable[[Array, Array, Array, Array], Array]  # (its answer, what it saw, alpha, sigma) -> the prediction


def time_of(logsnr: Array) -> Array:
    """Returns the time t of (1 - t) x + t eps, in [0, 1]: 0 is data, 1 is noise (Liu 2022, arXiv 2209.03003)."""
    return jax.nn.sigmoid(-0.5 * logsnr)


def v_of_velocity(velocity: Array, seen: Array, alpha: Array, sigma: Array) -> Array:
    """Returns v = alpha eps - sigma x of a velocity eps - x.

    With y = (1 - t) x + t eps, x is y - t velocity and eps is y + (1 - t) velocity, where t = sigma / (alpha + sigma).
    """
    return (alpha - sigma) * seen + velocity / (alpha + sigma)


def _one(alpha, sigma):
    return jnp.ones_like(alpha)


def _as_it_is(value, *others):
    return value


def _to_data(alpha, sigma):
    return 1.0 / alpha


CONVENTIONS = {name: Convention(name, _one, _as_it_is, _as_it_is) for name in process.PREDICTIONS} | {
    'sigma_eps': Convention('eps', _to_data, sigma_from_logsnr, _as_it_is),
    'sigma_x': Convention('x', _to_data, sigma_from_logsnr, _as_it_is),
    'flow': Convention('v', lambda alpha, sigma: 1.0 / (alpha + sigma), time_of, v_of_velocity),
}


def adapt(fn: EpsFn, convention: str, *, num_classes: int) -> Denoiser:
    """Returns a function of another convention as a `Denoiser`.

    Args:
      fn: (what it sees [N, ...], level [N], labels int32 [N]) -> [N, ...]. Labels are 0 to num_classes - 1, and
        num_classes is the null label, for the unconditional prediction. With the rule 'one_pass' w [N] is a fourth.
      convention: what it is given and returns.
        'eps', 'x', 'v': z and logsnr -> eps, x, or v = alpha eps - sigma x.
        'sigma_eps', 'sigma_x': x + sigma eps and sigma -> eps or x. EDM's denoiser D(x; sigma) is 'sigma_x'.
        'flow': (1 - t) x + t eps and t -> eps - x. t = 0 is data; where t = 1 is, give `fn` 1 - t and negate it.

    Raises:
      UserError: on any other convention, and on what is no function.
    """
    if not callable(fn):
        raise UserError(f'The network must be a function, not {type(fn).__name__}.')
    if convention not in CONVENTIONS:
        raise UserError(f'convention must be one of {", ".join(map(repr, CONVENTIONS))}, not {convention!r}.')
    how = CONVENTIONS[convention]

    def adapted(z, logsnr, labels, *w, **told):
        logsnr = jnp.broadcast_to(logsnr, labels.shape)
        alpha, sigma = (process.expand(each, z) for each in alpha_sigma(logsnr))
        seen = how.scale(alpha, sigma) * z
        try:
            output = fn(seen, how.level(logsnr), labels, *w, **told)
        except Exception as error:
            names = ', '.join([*('z', 'level', 'labels', 'w')[: 3 + len(w)], *told])
            error.add_note(f'The network was called by cfg with ({names}), z of the shape {z.shape}. {TRACED}')
            raise
        check_output(output, seen)
        return how.read(output, seen, alpha, sigma)

    return Denoiser(adapted, num_classes, how.prediction)
