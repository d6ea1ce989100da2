"""Effective strength: how much of Eq. 6 a rule is at each level, and what else it adds.

With d = eps_cond - eps_uncond the effective strength of a rule at a level is the w of Eq. 6 that is nearest to it, the
least squares slope w_eff = <eps_guided - eps_cond, d> / |d|^2 over all components of a batch. What it adds beside
is the remainder r, with its share |r|^2 / |eps_guided - eps_cond|^2. The twin of a rule is plain Eq. 6 with w_eff as
its schedule.

GA-Eval (Xie et al. 2026, arXiv 2602.22570, read in abstract and in part of its code) takes the norm of what a method
adds to eps_uncond, or of its part along d, in those of d, and lets plain guidance have the mean of it over the steps.
So its scale has no sign, one value for all levels, and for some methods includes the remainder; each image has its own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import process
from cfg.diffusion.denoiser import Models
from cfg.diffusion.process import Prediction
from cfg.diffusion.rules import Cfg
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.stepping import Guided

Array = jax.Array


class Strength(NamedTuple):
    """An effective strength is w_eff at each level that a sampler visits, with the share of the remainder."""

    levels: np.ndarray  # logsnr, increasing, float32 [K]
    w: np.ndarray  # float64 [K]; 0 where the two predictions are equal
    share: np.ndarray  # in [0, 1], float64 [K]; 0 where nothing is added

    @property
    def twin(self) -> Cfg:
        """Returns Eq. 6 with this schedule, for w = 1; strengths have 5 digits."""
        pairs = zip(self.levels, self.w, strict=True)
        return Cfg(schedule=tuple((float(str(level)), float(f'{w:.5g}')) for level, w in pairs))


def exact(sampler: Sampler, w: float) -> Strength | None:
    """Returns the strength of a rule that is Eq. 6 by its definition; None for others."""
    rule = sampler.rule
    if not (rule.name == 'cfg' and rule.compares_with_null and rule.threshold is None and rule.anneal_label is None):
        return None
    levels = np.unique(sampler.visited)
    ends = {'logsnr_min': sampler.logsnr_min, 'logsnr_max': sampler.logsnr_max}
    strengths = np.float64(rule.strength_at(jnp.float32(w), jnp.asarray(levels), **ends))
    return Strength(levels, np.broadcast_to(strengths, levels.shape), np.zeros(len(levels)))


def measure(sampler: Sampler, models: Models, keys: Array, labels: Array, w: Array, *, shape: tuple[int, ...]) -> Array:
    """Draws samples as `Sampler.sample` does; returns what their strengths are made of.

    At each of the E evaluations the model, with `models.uncond` where it is there, also gives the pair of Eq. 6. That
    is no part of the sampler's cost. A threshold belongs to the rule, `clip_x` does not. A rule that renoises is
    measured as the DDIM step that it takes: to a next level it is the step of x_other + (x - x_other) / (1 - r), where
    x_other is that of its eps and r = e^((logsnr - logsnr of the next level) / 2), and the last level has r = 0.

    Returns:
      For each sample <a, d>, |d|^2 and |a|^2 of what the rule adds a, [N, E, 3], in what the model predicts: at one z
      differences of eps, x and v are multiples of each other.
    """
    guided = sampler.clipped(_watched(sampler.ruled(models, labels, w), sampler, models, labels))
    _, (_, _, sums) = sampler.solver.run(guided, keys, sampler.levels, shape=shape)
    return sums


def _watched(guided: Guided, sampler: Sampler, models: Models, labels: Array) -> Guided:
    """Returns what a solver steps with, whose state also holds the count of evaluations and the sums of `measure`."""
    visited = sampler.visited
    following = np.array([visited[visited > level].min(initial=np.inf) for level in visited])
    kept = jnp.float32(-np.expm1(0.5 * (visited - following)))  # 1 - r
    kind = models.model.prediction
    asked = (jnp.ones(labels.shape, bool),) * 2

    def told(prediction, logsnr):
        return process.target(*prediction, logsnr, prediction=kind)

    def init(keys, z):
        return guided.init(keys, z), jnp.zeros((), jnp.int32), jnp.zeros((len(z), len(visited), 3))

    def predict(z, logsnr, state, share=1.0):
        inner, place, sums = state
        prediction, inner = guided.predict(z, logsnr, inner, share)
        cond, other = Cfg().outputs(models, z, logsnr, labels, (), asked)
        output = told(prediction, logsnr)
        if guided.renoises:
            own = told(Prediction(process.x_from_eps(z, prediction.eps, logsnr), prediction.eps), logsnr)
            output = told(Prediction(prediction.x, process.eps_from_x(z, prediction.x, logsnr)), logsnr)
            output = own + (output - own) / kept[place]
        added, d = (difference.reshape(len(z), -1) for difference in (output - cond, cond - other))
        now = jnp.stack([jnp.sum(a * b, axis=1) for a, b in ((added, d), (d, d), (added, added))], axis=1)
        return prediction, (inner, place + 1, sums.at[:, place].set(now))

    return guided._replace(init=init, predict=predict)


def strength_of(sampler: Sampler, sums: np.ndarray) -> Strength:
    """Returns the strength that the sums of `measure`, [N, E, 3], tell of; evaluations at one level count together."""
    levels, place = np.unique(sampler.visited, return_inverse=True)
    total = np.zeros((len(levels), 3))
    np.add.at(total, place, np.asarray(sums, np.float64).sum(axis=0))
    along, square, added = total.T
    w = np.divide(along, square, out=np.zeros(len(levels)), where=square > 0.0)
    share = np.divide(added - w * along, added, out=np.zeros(len(levels)), where=added > 0.0)
    return Strength(levels, w, np.clip(share, 0.0, 1.0))
