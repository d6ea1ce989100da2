"""Samplers that aim at the tilted density itself, p(z | c) p(c | z)^w, where those of `solvers` with Eq. 6 do not end.

One weights particles, the other goes back and forth between the data and a level of noise. Both step as solvers do.
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import options, process, stepping
from cfg.diffusion.rules import Cfg
from cfg.diffusion.solvers import Ddim, DpmSolver2M, Heun
from cfg.diffusion.stepping import Solver, Step

Array = jax.Array

# Separate what is drawn here from the noise of the steps, which is numbered from 0.
_PARTICLES, _RESAMPLING = 0x464B4300, 0x464B5200
_SDE = DpmSolver2M(stochastic=True)
_INNER = {solver.text: solver for solver in (Heun(), Ddim(), DpmSolver2M(), _SDE)}


class Weighted(Cfg):
    """This is Eq. 6, whose memory is the rate of a particle's weight, w (1 + w) |eps_cond - eps_uncond|^2, [N]."""

    def memory(self, z):
        return jnp.zeros(len(z), z.dtype)

    def combine(self, at, cond, other, memory):
        prediction, _ = super().combine(at, cond, other, ())
        difference = at.read(cond).eps - at.read(other).eps
        return prediction, at.w * (1.0 + at.w) * jnp.sum(jnp.square(difference).reshape(len(at.z), -1), axis=1)


@dataclass(frozen=True, kw_only=True)
class FeynmanKac(Solver):
    """Feynman-Kac correctors weight particles that follow Eq. 6 (Skreta et al. 2025, arXiv 2503.02819).

    At no level do such particles have the tilted density. Weights make up for it that grow along the way by
    d log weight = w (1 + w) |eps_cond - eps_uncond|^2 d logsnr / 2, for a w that is the same at all levels. After every
    step but the last the particles are drawn anew, systematically, and count alike again. The steps are those of
    DPM-Solver++ 2M's SDE form, in place of Euler's. The released code also bounds the change of a weight and the
    smallest weight; that is left out, as it changes the density.

    A sample is one of `particles` of its own, so that it depends on no other one, and costs `particles` times T
    evaluations. The tilted density is met as their number and T grow. One particle is the SDE form itself.
    """

    name: ClassVar[str] = 'feynman_kac'
    tilts: ClassVar[bool] = True
    particles: int = options.whole(16, 1, 'a whole number, 1 or more')

    def weighted(self, rule):
        return Weighted()

    def sample(self, guided, keys, logsnrs, *, shape):
        count, places = self.particles, jnp.arange(self.particles)
        # Which particle becomes the sample: drawn before, as drawing anew makes some places better than others. It has
        # the noise that the sample has with other solvers.
        chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(_fold(keys, _PARTICLES))
        number = (places - chosen[:, None]) % count
        others = jax.vmap(_fold)(jnp.broadcast_to(keys[:, None], number.shape), _PARTICLES + number)
        own = jnp.where(number == 0, keys[:, None], others).reshape(-1)  # [N particles], those of a sample together
        streams = _fold(keys, _RESAMPLING)

        def step(carry, at):
            noise = functools.partial(stepping.noise, own, at.index, shape)
            z, state, memory = _SDE.step(guided, at, *carry, noise)
            change = jnp.where(at.last, 0.0, 0.5 * (at.logsnr_s - at.logsnr_t)) * state.memory
            u = jax.vmap(jax.random.uniform)(_fold(streams, at.index))
            drawn = systematic(change.reshape(number.shape), u) + count * jnp.arange(len(keys))[:, None]
            # The keys of the rule stay with the place. Of the memory, the estimate of x goes with z.
            x, h = memory
            return (z[drawn.reshape(-1)], state, (x[drawn.reshape(-1)], h)), None

        z = stepping.noise(own, 0, shape)
        start = z, guided.init(own, z), _SDE.memory(z, len(logsnrs))
        (z, *_), _ = jax.lax.scan(step, start, self.steps(logsnrs))
        return z[chosen + count * jnp.arange(len(keys))]

    def visits(self, logsnrs):
        return np.repeat(logsnrs, self.particles)


def systematic(log_weights: Array, u: Array) -> Array:
    """Draws as many particles as there are: one of share p of the weight floor(K p) or ceil(K p) times.

    Args:
      log_weights: up to a constant of each sample, [N, K].
      u: uniform in [0, 1), one for each sample, [N].

    Returns:
      The places of the particles drawn, in order, int [N, K]; where all weights are the same each is drawn once.
    """
    count = log_weights.shape[1]
    places = jnp.arange(count)
    ends = jnp.cumsum(jax.nn.softmax(log_weights, axis=1), axis=1)
    drawn = jax.vmap(functools.partial(jnp.searchsorted, side='right'))(ends, (places + u[:, None]) / count)
    same = jnp.all(log_weights == log_weights[:, :1], axis=1, keepdims=True)
    return jnp.where(same, places, jnp.minimum(drawn, count - 1))  # rounding may leave the last end below 1


@dataclass(frozen=True, kw_only=True)
class Gibbs(Solver):
    """The Gibbs-like sampler draws at w = 0, and then adds noise and denoises with w (Moufad et al. 2025, 2505.21101).

    The share `first` of the T steps, and what is left over, draws from p(z | c). The others are `repeats` runs of the
    same length. Each adds noise up to the level `logsnr`, where EDM's sigma is sigma* = e^(-logsnr / 2), and denoises
    from there. For small sigma* a run is nearly a step of Langevin dynamics of length sigma*^2 on the tilted density:
    what Eq. 6 lacks vanishes with the noise. So that density is met where sigma*^2 is small, and sigma*^2 `repeats`
    large, beside the variance of the data. The defaults are those released for images: sigma* = 1, Heun's method, and
    12 of 32 steps before two runs.
    """

    name: ClassVar[str] = 'gibbs'
    tilts: ClassVar[bool] = True
    repeats: int = options.whole(2, 1, 'a whole number, 1 or more')
    logsnr: float = options.number(0.0, -20.0, 20.0)
    first: float = options.number(0.375, 0.01, 0.99)
    solver: str = options.choice(*_INNER)

    @property
    def _inner(self) -> Solver:
        return _INNER[self.solver]

    def runs(self, num_steps: int) -> tuple[int, int]:
        """Returns the numbers of levels of the first run, and of each later one."""
        each = (num_steps - math.floor(self.first * num_steps + 0.5)) // self.repeats
        return num_steps - each * self.repeats, each

    def takes(self, num_steps, grid):
        return min(self.runs(num_steps)) >= grid.least_steps

    def levels(self, grid, num_steps, **ends):
        first, each = self.runs(num_steps)
        again = grid.between(each, **(grid.ends(**ends) | {'logsnr_min': self.logsnr}))
        return jnp.concatenate([grid.levels(first, **ends), *[again] * self.repeats])

    def steps(self, logsnrs):
        runs = [self._inner.steps(run) for run in self._split(logsnrs)]
        steps = jax.tree.map(lambda *of_runs: jnp.concatenate(of_runs), *runs)
        # After the last level of a run comes the first one of the next; after all of them clean data, without noise.
        after = jnp.concatenate([logsnrs[1:], jnp.full(1, jnp.inf)])
        index = jnp.arange(1, len(logsnrs) + 1)
        return steps._replace(index=index, logsnr_after=jnp.where(steps.last, after, steps.logsnr_after))

    def memory(self, z, num_steps):
        return self.runs(num_steps)[0], self._inner.memory(z, num_steps)

    def step(self, guided, at: Step, z, state, memory, noise):
        first, inner = memory
        share = jnp.where(at.index > first, 1.0, 0.0)
        strong = guided._replace(predict=functools.partial(guided.predict, share=share))
        z, state, inner = self._inner.step(strong, at, z, state, inner, noise)
        z = jnp.where(at.last, process.diffuse(z, noise(), at.logsnr_after), z)
        fresh = self._inner.memory(z, 1)  # none of them has churn, for which the number would matter
        return z, state, (first, jax.tree.map(lambda new, old: jnp.where(at.last, new, old), fresh, inner))

    def visits(self, logsnrs):
        return np.concatenate([self._inner.visits(run) for run in self._split(logsnrs)])

    def shares(self, logsnrs):
        plain, *_ = self._split(logsnrs)
        return np.arange(len(self.visits(logsnrs))) >= len(self._inner.visits(plain))

    def _split(self, logsnrs):
        first, each = self.runs(len(logsnrs))
        return [logsnrs[:first], *(logsnrs[start : start + each] for start in range(first, len(logsnrs), each))]


def _fold(keys: Array, number: Array | int) -> Array:
    """Returns another key of each [N]; `number` is one for all, or one each."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(number, keys.shape))
