"""Adds up what is logged of a run: averages, rates, shares of the time, and the steps that were left out."""

import logging
import time

import numpy as np
from ml_collections import ConfigDict

from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.runtime.files import resident_bytes
from cfg.training.optimizer import learning_rate_schedule

log = logging.getLogger('cfg')

NO_SKIPS = {'total': 0, 'in_a_row': 0}


def average(values: list[float | tuple[float, float]]) -> float | None:
    """Returns the mean of numbers; of pairs (value x weight, weight) the weighted mean, None without any weight."""
    if not isinstance(values[0], tuple):
        return float(np.mean(values))
    total, weight = np.sum(values, axis=0)
    return float(total / weight) if weight else None


class Meter:
    """A meter holds averages of the metrics between two log lines, rates, and what was left out."""

    def __init__(self, config: ConfigDict, skips: dict[str, int]):
        self._options = config.train
        self.skips = dict(skips)  # how many steps were left out as not finite, in all and in a row until now
        steps = {name: config.train[name] for name in ('warmup_steps', 'decay_steps')}
        self._rate = learning_rate_schedule(config.train.learning_rate, **steps)
        self._values: list[dict[str, float | tuple[float, float]]] = []
        self._since: float | None = None
        self._timed = 0
        self._spent: dict[str, float] = {}
        self.loss: float | None = None  # of the newest step that was looked at

    def spent(self, name: str, seconds: float) -> None:
        """Adds time that is logged as a share of all."""
        self._spent[name] = self._spent.get(name, 0.0) + seconds

    def add(self, step: int, values: dict[str, float | tuple[float, float]]) -> None:
        """Adds the metrics of a step: numbers, or pairs (value x weight, weight); see `average`.

        Raises:
          UserError: when they are not finite, and no more such steps may be left out.
        """
        bad = next((name for name in ('loss', 'grad_norm') if not np.isfinite(values[name])), None)
        if bad is None:
            self._values.append(values)
            self.loss = values['loss']
            self.skips['in_a_row'] = 0
        else:
            self._skip(step, bad, values[bad])
        if self._since is None:  # the first step compiles
            self.restart()
        else:
            self._timed += 1

    def _skip(self, step: int, name: str, value: float) -> None:
        most = self._options.max_skipped
        if self.skips['in_a_row'] >= most:
            skipped = f', after {most} steps in a row that were left out for such values' if most else ''
            raise UserError(
                f'The {name} of step {step} is {value}{skipped}: training stopped, and the checkpoints before it are '
                'intact; lower config.train.learning_rate or set config.train.grad_clip to go on from the last of them.'
            )
        self.skips = {'total': self.skips['total'] + 1, 'in_a_row': self.skips['in_a_row'] + 1}
        log.warning(
            'The %s of step %d is %s: the step is left out (%d in a row, %d in all).',
            *(name, step, value, self.skips['in_a_row'], self.skips['total']),
        )

    def restart(self) -> None:
        """Leaves what came before out of the rates."""
        self._since, self._timed, self._spent = time.monotonic(), 0, {}

    def take(self, step: int) -> dict[str, float]:
        """Returns the averages since the last time, and where the run stands after a step."""
        names = self._values[0] if self._values else ()
        averages = {name: average([v[name] for v in self._values]) for name in names}
        taken = {name: value for name, value in averages.items() if value is not None}
        taken['learning_rate'] = float(self._rate(step - 1 - self.skips['total']))
        taken['skipped_steps'] = self.skips['total']
        if self._timed:
            seconds = time.monotonic() - self._since
            rate = self._timed / seconds
            taken |= {'steps_per_second': rate, 'images_per_second': rate * self._options.batch_size}
            taken |= {name: spent / seconds for name, spent in self._spent.items()}
        taken |= parallel.memory() | {'host_memory_bytes': resident_bytes()}
        self._values = []
        self.restart()
        return taken
