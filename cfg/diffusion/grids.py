"""The levels of logsnr that a sampler visits, each grid a frozen dataclass whose fields are its options."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from cfg.diffusion import options, schedule

Array = jax.Array


def _limit() -> Any:
    """Declares an end that takes the place of the model's."""
    return options.number(None, -20.0, 20.0, optional=True)


@dataclass(frozen=True, kw_only=True)
class Grid(options.Described):
    """A grid is an increasing sequence of logsnr, between its own ends or those of the model."""

    least_steps: ClassVar[int] = 2
    logsnr_min: float | None = _limit()
    logsnr_max: float | None = _limit()

    def ends(self, *, logsnr_min: float, logsnr_max: float) -> dict[str, float]:
        """Returns the ends, given those of the model."""
        own = {'logsnr_min': self.logsnr_min, 'logsnr_max': self.logsnr_max}
        model = {'logsnr_min': logsnr_min, 'logsnr_max': logsnr_max}
        return {name: model[name] if value is None else value for name, value in own.items()}

    def levels(self, num_steps: int, *, logsnr_min: float, logsnr_max: float) -> Array:
        """Returns [T] levels for a model of these ends."""
        return self.between(num_steps, **self.ends(logsnr_min=logsnr_min, logsnr_max=logsnr_max))

    def between(self, num_steps: int, *, logsnr_min: float, logsnr_max: float) -> Array:
        """Returns [T] levels from `logsnr_min` to `logsnr_max`."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Paper(Grid):
    """The paper's grid is uniform in u, as Alg. 2 has it: see `schedule.sampling_grid`."""

    name: ClassVar[str] = 'paper'
    between = staticmethod(schedule.sampling_grid)


@dataclass(frozen=True, kw_only=True)
class Uniform(Grid):
    """This grid is uniform in logsnr: see `schedule.uniform_grid`."""

    name: ClassVar[str] = 'uniform'
    between = staticmethod(schedule.uniform_grid)


@dataclass(frozen=True, kw_only=True)
class Rho(Grid):
    """EDM's grid is uniform in sigma^(1/rho): see `schedule.rho_grid`."""

    name: ClassVar[str] = 'rho'
    # A smaller one overflows on the way, a larger one is 'uniform' but for rounding.
    rho: float = options.number(7.0, 0.1, 1000.0)

    def between(self, num_steps, **ends):
        return schedule.rho_grid(num_steps, rho=self.rho, **ends)


@dataclass(frozen=True, kw_only=True)
class Nested(Grid):
    """This grid's levels are among those of twice as many steps: see `schedule.nested_grid`."""

    name: ClassVar[str] = 'nested'
    least_steps: ClassVar[int] = 1
    between = staticmethod(schedule.nested_grid)


GRIDS = (Paper, Uniform, Rho, Nested)
