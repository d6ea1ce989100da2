"""Measures the effective strength of the rows of a sweep, and scores the twin of each: plain Eq. 6 as strong as it."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cfg.diffusion import effective
from cfg.diffusion.denoiser import Models
from cfg.diffusion.effective import Strength
from cfg.diffusion.rules import Cfg
from cfg.diffusion.sampler import parse_rule
from cfg.evaluation.drawing import Drawing
from cfg.evaluation.points import Point
from cfg.evaluation.sweep import Sweep
from cfg.report import strengths
from cfg.report.rows import TWIN
from cfg.report.strengths import RowStrength
from cfg.runs.generate import draw_labels, sample_keys
from cfg.runtime import parallel, processes
from cfg.runtime.errors import UserError

log = logging.getLogger('cfg')

_MARK = f'{TWIN}: plain guidance as strong as the rule of another row.'


def measure(sweep: Sweep, *, config: ConfigDict, workdir: Path) -> None:
    """Measures the twins of the finished rows of a sweep, but for those that cannot be, of which the log says why.

    Every process calls it after `Sweep.measure`; afterwards the rows that are asked of the sweep are the twins.
    """
    twins = Twins(sweep, config, workdir)
    found: dict[Point, None] = {}
    for point, identity in sweep.finished():
        sweep.leave_if_stopped()
        try:
            found |= dict.fromkeys(twins.of(point, identity))
        except UserError as error:  # one is no reason to lose the others
            log.warning('%s', error)
    processes.on_each(lambda: sweep.ask(list(found), num_samples=config.eval.num_samples, mark=(_MARK,)))
    sweep.measure(what='twins')


class Twins:
    """Says which point is the twin of another, and remembers strengths in `strengths/`."""

    def __init__(self, sweep: Sweep, config: ConfigDict, workdir: Path):
        self._sweep, self._config, self._workdir = sweep, config, workdir
        self._num_samples = min(config.report.twin_samples, config.sampling.batch_size)

    def of(self, point: Point, identity: str) -> Sequence[Point]:
        """Returns the twin of a finished row, or nothing where its rule is Eq. 6 or there is nothing to compare with.

        Raises:
          UserError: when what is measured is not finite.
        """
        drawing, solver = self._sweep.drawing, point.sampler.solver
        if solver.tilts or not drawing.guidable(point, Cfg()):
            return ()
        known = processes.on_first(lambda: strengths.read(self._workdir, identity))
        known = processes.from_first(known and dataclasses.asdict(known))
        if known is None or known['num_samples'] not in (0, self._num_samples):
            exact = effective.exact(point.sampler, point.w)
            strength = exact or _measured(drawing, point, self._config, self._num_samples)
            if not np.isfinite([strength.w, strength.share]).all():
                raise UserError(f'The effective strength of {point} is not finite: its samples have diverged.')
            text = None if exact else strength.twin.text
            count = 0 if exact else self._num_samples
            known = processes.from_first(
                processes.on_first(lambda: self._write(point, identity, strength, text, count))
            )
        return [self._twin(point, known['twin'])] if known['twin'] else ()

    def _twin(self, point: Point, text: str) -> Point:
        return point._replace(sampler=dataclasses.replace(point.sampler, rule=parse_rule(text)), w=1.0)

    def _write(self, point: Point, identity: str, strength: Strength, text: str | None, count: int) -> dict:
        row = RowStrength(
            num_samples=count,
            logsnr=[float(str(level)) for level in strength.levels],
            w_eff=strength.w.tolist(),
            remainder=strength.share.tolist(),
            twin=text,
            twin_row=text and self._sweep.identity(self._twin(point, text)),
        )
        strengths.write(self._workdir, identity, row)
        return dataclasses.asdict(row)


def _measured(drawing: Drawing, point: Point, config: ConfigDict, num_samples: int) -> Strength:
    """Measures the strength of a point on the first samples of its row; every process draws all of them."""
    plain = point._replace(sampler=dataclasses.replace(point.sampler, rule=Cfg()))
    networks = drawing.networks(plain) | drawing.networks(point)
    params = drawing.on_devices(plain) | drawing.on_devices(point)
    spec = drawing.spec

    def sums(params, key_data, index, labels, w):
        models = Models(**{name: run.bind(params[name]) for name, run in networks.items()})
        keys = sample_keys(jax.random.wrap_key_data(key_data), index)
        return effective.measure(point.sampler, models, keys, labels, w, shape=spec.image_shape)

    labels = draw_labels(config.eval.labels, num_samples=num_samples, num_classes=spec.num_classes, seed=point.seed)
    devices = len(parallel.local_devices())
    index = np.minimum(np.arange(-(-num_samples // devices) * devices), num_samples - 1)
    inputs = parallel.shard((index.astype(np.uint32), labels[index], np.full(len(index), point.w, np.float32)))
    key_data = jax.random.key_data(jax.random.key(point.seed))
    found = parallel.pmap(sums, num_args=5, broadcast=(1,))(params, key_data, *inputs)
    return effective.strength_of(point.sampler, parallel.unshard(found)[:num_samples])
