"""Draws samples: a guidance rule, a solver, a grid and a number of steps are together one `Sampler`.

Without options it is the paper's: Eq. 6, Alg. 2, a grid uniform in u. The texts of a config are read by `parse_rule`,
`parse_solver` and `parse_grid`; what they read prints itself as `text`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import corrections, options, process, strength
from cfg.diffusion.denoiser import Models
from cfg.diffusion.grids import GRIDS, Grid, Paper
from cfg.diffusion.process import Prediction
from cfg.diffusion.rules import RULES, Cfg
from cfg.diffusion.rules.base import Passes, Rule
from cfg.diffusion.solvers import SOLVERS, Ancestral
from cfg.diffusion.stepping import Guided, Solver
from cfg.diffusion.tilted import FeynmanKac, Gibbs
from cfg.runtime.errors import UserError

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler says how samples are drawn."""

    rule: Rule = field(default_factory=Cfg)  # the guidance
    solver: Solver = field(default_factory=Ancestral)  # the way from noise to a sample
    grid: Grid = field(default_factory=Paper)  # the levels that it visits
    num_steps: int = 256  # T
    clip_x: bool = True  # whether the estimate of x is clipped to [-1, 1] at every step (not stated in the paper)
    logsnr_min: float = -20.0  # the ends of the model's levels
    logsnr_max: float = 20.0

    @property
    def _ends(self) -> dict[str, float]:
        return {'logsnr_min': self.logsnr_min, 'logsnr_max': self.logsnr_max}

    def sample(
        self, models: Models, keys: Array, labels: Array, w: Array | strength.Given, *, shape: tuple[int, ...]
    ) -> Array:
        """Draws samples [N, *shape], float32.

        Args:
          models: with those that the rule needs.
          keys: [N] typed PRNG keys, one a sample; a sample depends on nothing else.
          labels: int32 [N].
          w: the paper's guidance strength, [] or [N], or one given over the levels; it may be traced, so that a sweep
            compiles once.
        """
        return self.solver.sample(self.guided(models, labels, w), keys, self.levels, shape=shape)

    @property
    def levels(self) -> Array:
        """Returns the levels of the steps, [T]."""
        return self.solver.levels(self.grid, self.num_steps, **self._ends)

    @property
    def visited(self) -> np.ndarray:
        """Returns the level of every evaluation, in order."""
        with jax.ensure_compile_time_eval():
            return self.solver.visits(np.asarray(self.levels))

    def guided(self, models: Models, labels: Array, w: Array | strength.Given) -> Guided:
        """Returns what the solver steps with: the rule's predictions, thresholded and clipped as the options say."""
        return self.clipped(self.ruled(models, labels, w))

    def ruled(self, models: Models, labels: Array, w: Array | strength.Given) -> Guided:
        """Returns the predictions of the rule with its options, before `clip_x`."""
        rule = self.solver.weighted(self.rule)

        def predict(z, logsnr, state, share=1.0):
            now = jnp.broadcast_to(share * rule.strength_at(w, logsnr, **self._ends), labels.shape)
            of_each = (jnp.repeat(one, len(z) // len(labels)) for one in (labels, now))
            return rule.predict(models, z, logsnr, *of_each, state)

        guided = Guided(rule.init, predict, rule.renoises, rule.noise_factor(w))
        if rule.threshold is None:
            return guided
        return _changed(guided, functools.partial(corrections.dynamic_threshold, quantile=rule.threshold))

    def clipped(self, guided: Guided) -> Guided:
        """Returns what the solver steps with, clipped if `clip_x` says so."""
        return _changed(guided, lambda x: jnp.clip(x, -1.0, 1.0)) if self.clip_x else guided

    def without_values(self) -> tuple['Sampler', Sequence[tuple[float, float]] | None]:
        """Returns this sampler without its schedule of values, and that; None where it has none."""
        if isinstance(self.rule.schedule, str):
            return self, None
        return dataclasses.replace(self, rule=dataclasses.replace(self.rule, schedule='constant')), self.rule.schedule

    def passes(self, w: float, *, second_uncond: bool = False) -> Passes:
        """Counts the network evaluations for a sample whose whole batch has the same w.

        `second_uncond` tells whether a second model gives the unconditional prediction.
        """
        visited = self.visited
        now = np.asarray(self.rule.strength_at(jnp.float32(w), jnp.asarray(visited), **self._ends))
        now = now * self.solver.shares(np.asarray(self.levels))
        return self.rule.passes(np.broadcast_to(now, visited.shape), second_uncond=second_uncond)


def _changed(guided: Guided, change: Callable[[Array], Array]) -> Guided:
    """Returns what a solver steps with, whose estimates of x are changed."""

    def predict(z, logsnr, state, share=1.0):
        prediction, state = guided.predict(z, logsnr, state, share)
        x = change(prediction.x)
        # The eps that matches x; of a rule that renoises, the one that matches the changed x of its own eps.
        of_eps = change(process.x_from_eps(z, prediction.eps, logsnr)) if guided.renoises else x
        return Prediction(x, process.eps_from_x(z, of_eps, logsnr)), state

    return guided._replace(predict=predict)


def check_fit(rule: Rule, solver: Solver) -> None:
    """Refuses a rule that means nothing with a solver.

    Raises:
      UserError: says with which it does.
    """
    if solver.tilts and dataclasses.replace(rule, w=None) != Cfg():
        raise UserError(
            f'The sampler {solver.text!r} aims at p(z | c) p(c | z)^w and follows it from level to level, which the '
            f"guidance {rule.text!r} does not: use 'cfg' without options, or another sampler."
        )
    if rule.scales_noise and not solver.adds_noise:
        raise UserError(
            f'The guidance {rule.name!r} scales the noise of the steps, and the sampler {solver.text!r} adds none '
            "that it could scale: use 'ancestral', 'ddim' with eta, or 'dpm_solver_2m(stochastic=True)'."
        )


def fits(rule: Rule, solver: Solver) -> bool:
    """Tells whether a rule means something with a solver."""
    try:
        check_fit(rule, solver)
    except UserError:
        return False
    return True


@functools.lru_cache(maxsize=1024)
def parse_rule(text: str, field: str = 'sampling.guidance') -> Rule:
    """Reads a guidance rule; see `options.parse`. It may name strengths of its own: w=(0.5, 1.0) or w=0.5."""
    return options.parse(text, RULES, field)


@functools.lru_cache(maxsize=1024)
def parse_solver(text: str, field: str = 'sampling.sampler') -> Solver:
    """Reads a solver; see `options.parse`."""
    return options.parse(text, (*SOLVERS, FeynmanKac, Gibbs), field)


@functools.lru_cache(maxsize=1024)
def parse_grid(text: str, field: str = 'sampling.grid') -> Grid:
    """Reads a grid; see `options.parse`."""
    return options.parse(text, GRIDS, field)
