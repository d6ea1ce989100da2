"""Holds the networks of a sweep: opened and checked together, on the devices as its rows need them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfg.diffusion.rules.base import Rule
from cfg.diffusion.sampler import Sampler, parse_rule
from cfg.evaluation.points import Point, averages_of
from cfg.models.flops import guided_flops
from cfg.runs.companions import Networks, check_guidable, make_generator, on_devices, open_companions
from cfg.runs.generate import Generator, Samples
from cfg.runs.trained import TrainedRun
from cfg.runtime.errors import UserError


class Drawing:
    """A drawing holds the checkpoints of a sweep and what its rules need beside them, and draws for its points.

    Raises:
      UserError: when a network does not exist, or cannot be guided as a rule does.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        self._config, options = config, config.eval
        self._models: dict[tuple[int, bool, float], TrainedRun] = {}
        for step, (ema, length) in itertools.product(options.steps or (-1,), averages_of(config)):
            model = TrainedRun.of_config(config, workdir, step, ema=ema, ema_length=length)
            self._models[model.step, ema, length] = model
        self.spec = model.spec  # of all steps, as the network is
        self.steps = tuple(dict.fromkeys(step for step, *_ in self._models))
        self._generators: dict[Sampler, Generator] = {}
        self._held: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._companions: dict[tuple[Rule, bool], Networks] = {}
        for text, model in itertools.product(options.guidance or (config.sampling.guidance,), self._models.values()):
            rule = parse_rule(text, 'eval.guidance')
            check_guidable(rule.w or options.w, model, rule, self._beside(rule, model))

    def _beside(self, rule: Rule, model: TrainedRun) -> Networks:
        """Returns what a rule needs beside a model, opened once."""
        key = dataclasses.replace(rule, w=None), model.ema
        if key not in self._companions:
            self._companions[key] = open_companions(self._config, model, rule)
        return self._companions[key]

    def guidable(self, point: Point, rule: Rule) -> bool:
        """Tells whether the model of a point may be guided by another rule."""
        model = self.model(point)
        try:
            check_guidable((1.0,), model, rule, self._beside(rule, model))
        except UserError:
            return False
        return True

    def model(self, point: Point) -> TrainedRun:
        """Returns the model of a point."""
        return self._models[point.step, point.ema, point.ema_length]

    def networks(self, point: Point) -> Networks:
        """Returns the model of a point and those beside it."""
        return {'model': self.model(point)} | self._beside(point.sampler.rule, self.model(point))

    def generator(self, point: Point) -> Callable[..., Iterator[Samples]]:
        """Returns what draws the samples of a point, see `Generator`, kept until `keep` lets go of it.

        Schedules of values are an input of one compiled program.
        """
        sampler, schedule = point.sampler.without_values()
        if sampler not in self._generators:
            self._generators[sampler] = make_generator(self._config, self.networks(point), sampler)
        return functools.partial(self._generators[sampler], schedule=schedule)

    def keep(self, samplers: Iterable[Sampler]) -> None:
        """Lets go of all generators but those of some samplers, with their compiled programs."""
        needed = {sampler.without_values()[0] for sampler in samplers}
        self._generators = {sampler: made for sampler, made in self._generators.items() if sampler in needed}

    def on_devices(self, point: Point) -> Any:
        """Returns the parameters of a point; those of one checkpoint, and of what is beside it, are on the devices."""
        companions = self._beside(point.sampler.rule, self.model(point))
        for kind, networks in (('model', {'model': self.model(point)}), ('companions', companions)):
            key = {name: run.sha256 for name, run in networks.items()}
            if self._held.get(kind, (None,))[0] != key:
                self._held.pop(kind, None)  # what is there is let go of first
                self._held[kind] = key, on_devices(networks)
        return self._held['model'][1] | self._held['companions'][1]

    @functools.cached_property
    def _both(self) -> float:
        """Returns the arithmetic of two predictions at once, in those of one."""
        model = next(iter(self._models.values()))
        return guided_flops(model.network, self.spec.image_shape) / model.flops

    def cost(self, point: Point) -> dict[str, float]:
        """Counts network evaluations for one sample, and their arithmetic in those of the model for one prediction."""
        companions = self._beside(point.sampler.rule, self.model(point))
        passes = point.sampler.passes(point.w, second_uncond='uncond' in companions)
        second = sum(it.flops for name, it in companions.items() if name != 'classifier')
        classifier = companions['classifier'].flops if 'classifier' in companions else 0.0
        alone = passes.single + passes.back  # the gradient of an input takes about the products of a pass
        others = (passes.second * second + passes.classifier * classifier) / self.model(point).flops
        return {'evaluations': passes.total, 'cost': round(alone + self._both * passes.both + others, 3)}
