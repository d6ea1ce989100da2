"""Says what is drawn on a Gaussian mixture."""

import dataclasses

import numpy as np

from cfg.diffusion import mixture
from cfg.diffusion import sampler as samplers
from cfg.diffusion.rules.base import Rule
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.stepping import Solver
from cfg.mixture.distances import GuidedDensities
from cfg.settings.sampler import with_logvar_interp

# The smallest 1 + w, and how many strengths, whose densities a row is compared with for the nearest one.
NEAREST_COUNT = 64
NEAREST_LOWEST = 0.05


@dataclasses.dataclass(frozen=True)
class Settings:
    """Holds the settings of Fig. 2 and of the study."""

    means: tuple[tuple[float, float], ...]  # of the classes, which are equally likely, [K, 2]
    stddev: float  # of every class, in both directions
    weaker_stddev: float  # that of the weaker model of autoguidance, which has the same means
    w: tuple[float, ...]  # strengths of the rules that name none themselves
    guidance: tuple[str, ...]  # texts of the rules
    rule_samplers: tuple[str, ...]  # texts of the samplers of the first table; a rule is drawn with those that it fits
    num_steps: int  # T of the first table
    samplers: tuple[str, ...]  # texts of the samplers of the second table
    steps: tuple[int, ...]  # values of T of the second table
    steps_w: tuple[float, ...]  # strengths of Eq. 6 in the second table
    tilted: tuple[tuple[str, int], ...]  # texts of the samplers of the third table, each with its T
    grid: str  # text of the grid
    logvar_interp: float  # of the samplers, as the ends of the levels
    logsnr_min: float
    logsnr_max: float
    extent: float  # half the width of the panels; twice of it must contain the densities
    num_samples: int  # of each class, for each row and seed
    num_seeds: int  # draws of every row
    seed: int  # of the first draw; the others follow it

    def mixture_of(self, stddev: float) -> mixture.GaussianMixture:
        """Returns the mixture with this standard deviation."""
        count = len(self.means)
        return mixture.gaussian_mixture(
            np.array(self.means), np.tile(stddev**2 * np.eye(2), (count, 1, 1)), np.ones(count)
        )

    def densities(self) -> GuidedDensities:
        """Returns the exact guided densities at the data end."""
        return GuidedDensities(self.mixture_of(self.stddev), logsnr=self.logsnr_max, extent=self.extent)

    def sampler_of(self, rule: Rule, solver: Solver, num_steps: int) -> Sampler:
        """Returns the sampler of a row, which clips nothing: the samples are no images."""
        return Sampler(
            rule=dataclasses.replace(rule, w=None),
            solver=with_logvar_interp(solver, self.logvar_interp),
            grid=samplers.parse_grid(self.grid),
            num_steps=num_steps,
            clip_x=False,
            logsnr_min=self.logsnr_min,
            logsnr_max=self.logsnr_max,
        )

    def nearest_w(self) -> np.ndarray:
        """Lists the strengths among which the nearest density of a row is looked for: 1 + w in equal ratios."""
        highest = 4.0 * max(1.0, *self.w, *self.steps_w)
        return np.geomspace(NEAREST_LOWEST, 1.0 + highest, NEAREST_COUNT) - 1.0
