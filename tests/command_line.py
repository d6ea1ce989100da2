"""Runs main.py as a user does."""

import subprocess
import sys
from pathlib import Path

from benchmarks.accelerator import QUICK
from cfg.runtime.xla_flags import jaxlib_knows

ROOT = Path(__file__).parents[1]
# Programs here run for moments, so that most of the time is compilation. It is several times faster without
# optimisation, and twice as fast again in one piece and by the older one of XLA's emitters. On a busy machine a device
# may come late to a collective, after which XLA ends the process.
XLA_FLAGS = ' '.join(
    f'--{name}={value}'
    for name, value in {**QUICK, 'xla_cpu_collective_call_terminate_timeout_seconds': 600}.items()
    if jaxlib_knows(name)
)
# One network, batch and place of checkpoints for every process that the suite starts: they compile the same programs,
# and one resolution is traced in half the time, which every process does anew.
SMALL = [
    '--config.model.channel_mult=(1,)',
    '--config.model.channels=8',
    '--config.model.num_res_blocks=1',
    '--config.model.head_channels=8',
    '--config.model.norm_groups=4',
    '--config.model.attention_resolutions=()',
    '--config.train.num_steps=24',
    '--config.train.batch_size=16',
    '--config.train.sample_every=0',
    '--config.train.log_every=6',
    '--config.train.checkpoint_every=3',
    '--config.train.keep_every=12',
    '--config.sampling.num_steps=4',
    '--config.sampling.batch_size=40',
    '--config.sampling.num_samples=12',
    '--config.eval.steps=(12, 24)',
    '--config.eval.w=(0.0, 0.5, 2.0)',
    '--config.eval.num_samples=80',
    '--config.report.grid_shape=(3, 4)',
]


def command(*arguments, config='configs/digits.py', small=True):
    named = [f'--config={config}'] if config else []
    return [sys.executable, 'main.py', *named, *(SMALL if small else []), *arguments]


def main(*arguments, **kwargs):
    """Runs main.py to its end; returns stdout, stderr and status."""
    return subprocess.run(command(*arguments, **kwargs), cwd=ROOT, capture_output=True, text=True, timeout=600)


def sentence(done):
    """Returns the one sentence that a refused run of main.py ends with."""
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    return last


def refused(*arguments, **kwargs):
    """Runs main.py, which must refuse to; returns why."""
    return sentence(main(*arguments, **kwargs))
