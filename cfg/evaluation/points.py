"""Says which rows a sweep has: the product of all that varies, and what identifies each row."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable
from typing import NamedTuple

from ml_collections import ConfigDict

from cfg.diffusion.sampler import Sampler
from cfg.report.rows import Drawn, Method, Sampling, identity_of
from cfg.runs.companions import Networks
from cfg.settings.sampler import read_sampler
from cfg.settings.values import config_dict


class Point(NamedTuple):
    """A point is one of the product that a sweep is."""

    step: int
    ema: bool
    ema_length: float  # of the average; 0 for that by `config.train.ema_decay`, or for none
    sampler: Sampler
    seed: int
    w: float

    def __str__(self) -> str:
        sampler = self.sampler
        rule = sampler.rule.text if isinstance(sampler.rule.schedule, str) else f'{sampler.rule.name} by levels'
        average = f', EMA length {self.ema_length:g}' if self.ema_length else ''
        return f'step {self.step}{average}, {rule}, {sampler.solver.text}, T = {sampler.num_steps}, w = {self.w:g}'


class Planned(NamedTuple):
    """A planned row is one of the sweep, measured or not."""

    point: Point
    source: Drawn
    identity: str


def averages_of(config: ConfigDict) -> list[tuple[bool, float]]:
    """Returns the (ema, ema_length) of a sweep, each once: parameters that are not averaged have no length."""
    names = ('ema', 'ema_length')
    kinds = itertools.product(*(config.eval[name] or (config.sampling[name],) for name in names))
    return list(dict.fromkeys((ema, float(length) if ema else 0.0) for ema, length in kinds))


def points_of(config: ConfigDict, steps: Iterable[int]) -> list[Point]:
    """Returns the product that a sweep is, in which parameters and compiled samplers change as rarely as they can.

    Of one sampler's strengths, those of `config.report.w` come first, so that a coarse curve and the grids of the
    report are soon there.
    """
    options, sampling, coarse = config.eval, config.sampling, tuple(config.report.w)
    names = ('guidance', 'sampler', 'grid', 'num_steps', 'logvar_interp')
    varied = [options[name] or (sampling[name],) for name in names]
    seeds = options.seeds or (sampling.seed,)
    found: dict[Point, None] = {}
    for step, average, *values, seed in itertools.product(steps, averages_of(config), *varied, seeds):
        sampler = read_sampler(config, **dict(zip(names, values, strict=True)))
        ws = sorted(sampler.rule.w or options.w, key=lambda w: w not in coarse)
        sampler = dataclasses.replace(sampler, rule=dataclasses.replace(sampler.rule, w=None))
        found |= dict.fromkeys(Point(step, *average, sampler, seed, float(w)) for w in ws)
    return list(found)


def plan(config: ConfigDict, point: Point, networks: Networks, method: Method) -> Planned:
    """Returns the row of a point; the model and the networks beside it are among `networks`."""
    sampler = point.sampler
    source = Drawn(
        step=point.step,
        ema=point.ema,
        ema_length=point.ema_length or None,
        params_sha256=networks['model'].sha256,
        **{f'{name}_params_sha256': run.sha256 for name, run in networks.items() if name != 'model'},
        sampling=Sampling(
            guidance=sampler.rule.text,
            sampler=sampler.solver.text,
            grid=sampler.grid.text,
            num_steps=sampler.num_steps,
            logvar_interp=getattr(sampler.solver, 'logvar_interp', None),
            clip_x=sampler.clip_x,
            logsnr_min=sampler.logsnr_min,
            logsnr_max=sampler.logsnr_max,
            rounding=config.sampling.rounding,
            prediction=config.diffusion.prediction,
            dtype=config.model.dtype,
        ),
        labels=config.eval.labels,
        seed=point.seed,
        w=point.w,
    )
    return Planned(point, source, identity_of(source, method))


def config_sha256(config: ConfigDict) -> str:
    """Returns the digest of the whole config, but for which rows are asked for and how the work is divided."""
    values = config_dict(config)
    del values['processes'], values['tune']
    for name in ('steps', 'w', 'job', 'save_seconds'):
        del values['eval'][name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
