"""Says what a step towards clean data is, and what a solver: a frozen dataclass whose fields are its options.

All solvers give the estimate of x at the last level of the grid, so that the last step adds no noise, and each is one
scan. Steps go from logsnr_t to logsnr_s > logsnr_t.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import options, process
from cfg.diffusion.grids import Grid
from cfg.diffusion.process import Prediction
from cfg.diffusion.rules.base import Rule

Array = jax.Array


class Guided(NamedTuple):
    """A `Guided` is what a solver steps with: a rule with its networks, labels and strengths."""

    init: Callable[[Array, Array], Any]  # (keys [N], z [N, ...]) -> state
    # (z [N, ...], logsnr [] or [N], state, share=1.0) -> (prediction, state), for every evaluation. A solver may ask
    # for a share [] of w, and about K particles of every sample, z [N K, ...] with those of a sample together.
    predict: Callable[..., tuple[Prediction, Any]]
    renoises: bool = False  # whether the eps of a prediction is not the one of its x
    noise_factor: Array | float = 1.0  # of the noise that steps add, [] or [N]; below 1 it blurs (Section 3)

    def origin(self, z: Array, prediction: Prediction, logsnr: Array) -> Array:
        """Returns where a step starts: z, or alpha x + sigma eps if the rule renoises with another eps."""
        return process.diffuse(prediction.x, prediction.eps, logsnr) if self.renoises else z


class Step(NamedTuple):
    """A `Step` is one step over a grid [T], or all of them."""

    index: Array  # 1..T
    logsnr_t: Array  # where the step starts
    logsnr_s: Array  # where it goes
    logsnr_after: Array  # the level after that; inf, which is clean data, after the last
    last: Array  # whether this is the last level, whose estimate of x is the sample


def steps(logsnrs: Array) -> Step:
    """Returns all steps of a grid. The last level has no next one; any cleaner one will do, as it is not used."""
    index = jnp.arange(1, logsnrs.shape[0] + 1)
    following = jnp.concatenate([logsnrs[1:], logsnrs[-1:] + 1.0])
    after = jnp.concatenate([logsnrs[2:], jnp.full(2, jnp.inf, logsnrs.dtype)])[: logsnrs.shape[0]]
    return Step(index, logsnrs, following, after, index == logsnrs.shape[0])


def noise(keys: Array, index: Array, shape: tuple[int, ...]) -> Array:
    """Returns standard normal noise number `index` of each key, [N, *shape]. Number 0 is the start at logsnr_min."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)


@dataclass(frozen=True, kw_only=True)
class Solver(options.Described):
    """A way from noise to a sample; subclasses say what a step is.

    Attributes:
      tilts: whether it aims at p(z | c) p(c | z)^w itself, which only Eq. 6 with a constant w and w >= -1 has.
      logsnr: a level where it begins anew, which must lie on the grid's way; None for none.
    """

    tilts: ClassVar[bool] = False
    logsnr = None

    def sample(self, guided: Guided, keys: Array, logsnrs: Array, *, shape: tuple[int, ...]) -> Array:
        """Draws samples [N, *shape]: starts from N(0, I) at the first of the increasing levels [T].

        `keys` are [N] typed PRNG keys, one a sample; a sample depends on nothing else.
        """
        return self.run(guided, keys, logsnrs, shape=shape)[0]

    def run(self, guided: Guided, keys: Array, logsnrs: Array, *, shape: tuple[int, ...]) -> tuple[Array, Any]:
        """Draws samples as `sample` does; returns them, and the state after the last evaluation."""

        def step(carry, at):
            return self.step(guided, at, *carry, functools.partial(noise, keys, at.index, shape)), None

        z = noise(keys, 0, shape)
        start = (z, guided.init(keys, z), self.memory(z, logsnrs.shape[0]))
        (x, state, _), _ = jax.lax.scan(step, start, self.steps(logsnrs))
        return x, state

    def step(
        self, guided: Guided, at: Step, z: Array, state: Any, memory: Any, noise: Callable[[], Array]
    ) -> tuple[Array, Any, Any]:
        """Returns z at the next level, or at the last one the estimate of x; and the next state and memory.

        The state is the rule's, the memory the solver's. `noise` gives this step's standard normal noise, [N, *shape].
        """
        raise NotImplementedError

    def memory(self, z: Array, num_steps: int) -> Any:
        """Returns what the solver remembers before the first of its steps."""
        return ()

    def steps(self, logsnrs: Array) -> Step:
        """Returns all steps over the levels [T]."""
        return steps(logsnrs)

    def takes(self, num_steps: int, grid: Grid) -> bool:
        """Tells whether a number of steps is enough, on each of its ways, for a grid."""
        return num_steps >= grid.least_steps

    def levels(self, grid: Grid, num_steps: int, *, logsnr_min: float, logsnr_max: float) -> Array:
        """Returns the levels [T] of its way, or ways, for a model of these ends."""
        return grid.levels(num_steps, logsnr_min=logsnr_min, logsnr_max=logsnr_max)

    def visits(self, logsnrs: np.ndarray) -> np.ndarray:
        """Returns the level of every evaluation on the levels [T], in order."""
        return logsnrs

    def shares(self, logsnrs: np.ndarray) -> np.ndarray | float:
        """Returns the share of w that every evaluation has, in the order of `visits`, or the same one for all."""
        return 1.0

    def weighted(self, rule: Rule) -> Rule:
        """Returns what it steps with in the place of a rule, and remembers what this solver must know."""
        return rule

    @property
    def adds_noise(self) -> bool:
        """Tells whether steps add noise that a rule may scale."""
        return False
