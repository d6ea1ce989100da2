"""Makes averages of parameters whose length is chosen after training, see `cfg.runs.profiles`.

Checkpoints hold averages of a few lengths. An average of another length is nearly a weighted sum of those of the
checkpoint and of earlier ones.
"""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfg.runs.checkpoints import Checkpoints
from cfg.runs.profiles import exponent, solve
from cfg.runs.run_files import checkpoint_meta, checkpoint_steps
from cfg.runs.state import AVERAGES
from cfg.runtime.errors import UserError

# The largest share of a profile's norm that may be missing from what is made of the others.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Reconstruction:
    """A reconstruction is an average of parameters that is a weighted sum of others, in the checkpoints of a run."""

    workdir: Path
    weights: dict[int, dict[str, float]]  # by step, and by the length that was averaged
    sha256: str  # of the weights, and of the parameters that they are of

    def params(self) -> Any:
        """Reads one checkpoint's averages after the other; returns their sum, float32 numpy arrays on the host.

        Raises:
          UserError: when some are damaged or gone.
        """
        total = None
        with Checkpoints(self.workdir, read_only=True) as checkpoints:
            for step, weights in self.weights.items():
                averages = checkpoints.restore_averages(step)
                for length, weight in weights.items():
                    total = total or jax.tree.map(lambda x: np.zeros(x.shape), averages[length])
                    jax.tree.map(functools.partial(_add, weight=weight), total, averages[length])
        return jax.tree.map(lambda x: x.astype(np.float32), total)


def _add(total: np.ndarray, x: np.ndarray, *, weight: float) -> None:
    """Adds a weighted array to a float64 one in place: a large network has no room for a third of them."""
    total += np.float64(weight) * x


def reconstruct(workdir: Path, step: int, length: float) -> Reconstruction:
    """Says how the average of a length at a step is made; reads no parameters.

    The averages are those of the checkpoints up to the step that `config.train.keep_every` keeps, and of the step.

    Raises:
      UserError: when the run has no such averages, or too few for this length.
    """
    meta = checkpoint_meta(workdir, step)
    if AVERAGES not in meta['sha256']:  # also of an import, whose config may name lengths
        raise UserError(
            f'The run in {workdir} kept no averages to make ema_length={length:g} of: train with '
            'config.train.ema_lengths=(0.05, 0.1), or use ema_length=0, the average by config.train.ema_decay.'
        )
    trained = meta['config']['train']
    lengths = list(dict.fromkeys(str(float(it)) for it in trained['ema_lengths']))
    every = trained['keep_every'] or step
    steps = [it for it in checkpoint_steps(workdir) if it == step or (it < step and it % every == 0)]
    of_each = [(it, text) for it in steps for text in lengths]
    times, gammas = zip(*((it, exponent(float(text))) for it, text in of_each), strict=True)
    found, missing = solve(times, gammas, time=step, gamma=exponent(length))
    if missing > TOLERANCE:
        raise UserError(
            f'ema_length={length:g} at step {step} cannot be made of the averages of {len(steps)} checkpoints in '
            f'{workdir}: {missing:.0%} of its profile would be missing; choose a length nearer to those that were kept '
            f'({", ".join(lengths)}), or train with more checkpoints (config.train.keep_every).'
        )
    weights: dict[int, dict[str, float]] = {it: {} for it in steps}
    for (it, text), weight in zip(of_each, found, strict=True):
        weights[it][text] = float(weight)
    digests = {it: checkpoint_meta(workdir, it)['sha256'][AVERAGES] for it in steps}
    sha256 = hashlib.sha256(json.dumps([float(length), step, digests], sort_keys=True).encode()).hexdigest()
    return Reconstruction(workdir, weights, sha256)
