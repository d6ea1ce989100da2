"""Reads the sampler that a config names, and checks its texts."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cfg.diffusion import sampler as samplers
from cfg.diffusion.grids import Grid
from cfg.diffusion.rules.base import Rule
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.stepping import Solver
from cfg.settings.values import require

PARSERS = {'guidance': samplers.parse_rule, 'sampler': samplers.parse_solver, 'grid': samplers.parse_grid}


def read_sampler(config: ConfigDict, **changes: Any) -> Sampler:
    """Returns the sampler of a config, with `changes` in the place of fields of `config.sampling`."""
    options = {**config.sampling, **changes}
    return Sampler(
        rule=samplers.parse_rule(options['guidance']),
        solver=with_logvar_interp(samplers.parse_solver(options['sampler']), options['logvar_interp']),
        grid=samplers.parse_grid(options['grid']),
        num_steps=options['num_steps'],
        clip_x=config.sampling.clip_x,
        logsnr_min=config.diffusion.logsnr_min,
        logsnr_max=config.diffusion.logsnr_max,
    )


def with_logvar_interp(solver: Solver, value: float) -> Solver:
    """Returns the solver with the paper's v, which only Alg. 2 has; the others as they are."""
    return dataclasses.replace(solver, logvar_interp=float(value)) if solver.name == 'ancestral' else solver


def check_texts(config: ConfigDict) -> None:
    """Checks guidance, sampler and grid of a sample, of the sweep and of the search: each text, and that they fit.

    A search leaves out what does not fit.

    Raises:
      UserError: names the field, what is wrong, and what it may be.
    """
    found = {part: {} for part in ('sampling', 'eval', 'tune')}
    for name, parse in PARSERS.items():
        found['sampling'][name] = one = [parse(config.sampling[name], f'sampling.{name}')]
        for part in ('eval', 'tune'):
            found[part][name] = [parse(text, f'{part}.{name}') for text in config[part][name]] or one
    ends = {'logsnr_min': config.diffusion.logsnr_min, 'logsnr_max': config.diffusion.logsnr_max}
    for part, chosen in found.items():
        for rule, solver in itertools.product(chosen['guidance'], chosen['sampler']):
            if part == 'tune' and not samplers.fits(rule, solver):
                continue  # it is left out of the search
            samplers.check_fit(rule, solver)
            check_w(rule, solver, f'{part}.w', config[part].w)
        for grid, solver in itertools.product(chosen['grid'], chosen['sampler']):
            low, high = grid.ends(**ends).values()
            within = ends['logsnr_min'] <= low < high <= ends['logsnr_max']
            limits = f'both within {ends["logsnr_min"]:g} and {ends["logsnr_max"]:g} (config.diffusion)'
            expected = f'a grid with logsnr_min smaller than logsnr_max, {limits}'
            require(within, f'{part}.grid', grid.text, expected)
            steps = config[part].num_steps
            check_levels(grid, solver, steps, ends, fields=(f'{part}.sampler', f'{part}.num_steps'))


def check_levels(
    grid: Grid, solver: Solver, steps: int | Sequence[int], ends: dict[str, float], *, fields: tuple[str, str]
) -> None:
    """Checks that a number of steps, or each of several, is enough, and the level where a solver begins anew.

    Raises:
      UserError: names one of the `fields` of the config, that of the solver or that of the steps.
    """
    each = steps if isinstance(steps, tuple | list) else (steps,)
    enough = all(solver.takes(num_steps, grid) for num_steps in each)
    words = f'at least {grid.least_steps}'
    words = words if solver.logsnr is None else f'enough for {words} in each run of {solver.text!r}'
    require(enough, fields[1], steps, f'{words} with the grid {grid.text!r}')
    low, high = grid.ends(**ends).values()
    inside = solver.logsnr is None or low < solver.logsnr < high
    words = f'with a logsnr between the ends of the grid, {low:g} and {high:g}'
    require(inside, fields[0], solver.text, words)


def check_w(rule: Rule, solver: Solver, field: str, ws: Sequence[float]) -> None:
    """Checks the strengths of a rule, its own or else those of the field.

    Raises:
      UserError: when the rule, or the solver, cannot have one of them.
    """
    least = min(rule.w or ws)
    right = not rule.divides or least > -1
    require(right, field, rule.w or ws, f'above -1 for the guidance {rule.name!r}, which takes 1 / (1 + w)')
    words = f'at least -1 for the sampler {solver.name!r}: below it p(z | c) p(c | z)^w may have no integral'
    require(not solver.tilts or least >= -1, field, rule.w or ws, words)
