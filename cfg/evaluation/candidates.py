"""Says which settings a search may choose among: the product of a sweep, less what costs too much or cannot be."""

import collections
import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from cfg.diffusion.rules.base import Rule
from cfg.diffusion.rules.pairs import Cfg
from cfg.diffusion.sampler import Sampler, fits, parse_rule
from cfg.evaluation.points import Point, points_of
from cfg.runs.trained import TrainedRun
from cfg.runtime.errors import UserError


def as_sweep(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Returns a config whose sweep has the axes of `config.tune`, with those rules that the network can have.

    A student of few steps has the sampler, the grid and the T that it learned.

    Raises:
      UserError: when a checkpoint does not exist, or no rule is left.
    """
    found, tune = config.copy_and_resolve_references(), config.tune
    step = tune.steps[0] if tune.steps else -1
    model = TrainedRun.of_config(config, workdir, step)
    takes_w = model.network.takes_w
    named = tuple(tune.guidance) or (config.sampling.guidance,)
    rules = [text for text in named if (parse_rule(text, 'tune.guidance').name == 'one_pass') is takes_w]
    if not rules:
        has = "takes w as an input, and is guided by 'one_pass' alone" if takes_w else "takes no w, as 'one_pass' needs"
        raise UserError(f'config.tune.guidance={named!r} names no rule of this network, which {has}.')
    with found.ignore_type():
        for name in ('sampler', 'grid', 'num_steps', 'steps', 'ema', 'w'):
            found.eval[name] = tune[name]
        if model.student_steps:
            found.eval.sampler, found.eval.grid = (model.student_sampler,), ('nested',)
            found.eval.num_steps = (model.student_steps,)
        found.eval.guidance, found.eval.seeds, found.eval.logvar_interp = tuple(rules), (tune.seed,), ()
        found.eval.ema_length = ()
        found.eval.keep_samples = 0
    return found


def is_plain(point: Point) -> bool:
    """Tells whether a point is Eq. 6 as it is, at the same w everywhere."""
    return point.sampler.rule == Cfg()


def _is_plain_somewhere(rule: Rule) -> bool:
    return isinstance(rule, Cfg) and dataclasses.replace(rule, interval=None, schedule='constant') == Cfg()


def candidates(config: ConfigDict, workdir: Path) -> tuple[list[Point], list[str]]:
    """Returns the points of a sweep by `as_sweep` that its budget pays for, and sentences on those left out.

    Where the sweep has no values of T, each has the largest that the budget pays for.

    Raises:
      UserError: when fewer than two are left.
    """
    tune, kinds = config.tune, config.eval.ema or (config.sampling.ema,)
    models = [TrainedRun.of_config(config, workdir, step, ema=kinds[0]) for step in config.eval.steps or (-1,)]
    of_step = {model.step: model for model in models}
    found: dict[Point, None] = {}
    left_out = collections.Counter()
    for point in points_of(config, of_step):
        sampler, model = point.sampler, of_step[point.step]
        if point.w == 0 and _is_plain_somewhere(sampler.rule) and not is_plain(point):
            continue  # the conditional model, which is a candidate once
        if not fits(sampler.rule, sampler.solver):
            left_out['have a guidance that their sampler does not take'] += 1
            continue
        steps = sampler.num_steps if config.eval.num_steps else _most_steps(sampler, point.w, tune.evaluations)
        sampler = dataclasses.replace(sampler, num_steps=steps)
        if not sampler.solver.takes(steps, sampler.grid) or sampler.passes(point.w).total > tune.evaluations:
            left_out[f'cost more than config.tune.evaluations={tune.evaluations}'] += 1
        elif model.warnings(point.w, sampler):
            left_out['are not what the network learned'] += 1
        else:
            found[point._replace(sampler=sampler)] = None
    notes = [f'{count} candidates {why}, and are left out.' for why, count in left_out.items()]
    if len(found) < 2:
        raise UserError(
            ' '.join([f'config.tune leaves {len(found)} candidates, too few to choose among.', *notes])
            + ' Name more rules or w, or raise config.tune.evaluations.'
        )
    return list(found), notes


def _most_steps(sampler: Sampler, w: float, budget: int) -> int:
    """Returns the largest T that the budget pays for; fewer than the solver takes if none."""
    low, high = 0, budget
    while low < high:
        steps = (low + high + 1) // 2
        longer = dataclasses.replace(sampler, num_steps=steps)
        affordable = not sampler.solver.takes(steps, sampler.grid) or longer.passes(w).total <= budget
        low, high = (steps, high) if affordable else (low, steps - 1)
    return low
