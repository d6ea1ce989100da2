"""The changes of docs/extending.md fit the code, and work."""

import re
import shutil
import subprocess
import sys

from tests.command_line import ROOT

# Run where the changes were applied.
SCRIPT = """
import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import mixture
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.sampler import Sampler, parse_grid, parse_rule, parse_solver
from cfg.diffusion.rules import Cfg
from cfg.settings.data import open_source
from cfg.modes import sample, train
from tests.conftest import small_config

gaussians = mixture.gaussian_mixture(np.eye(2), np.tile(0.25 * np.eye(2), (2, 1, 1)), np.ones(2))
models = Models(Denoiser(mixture.eps_fn(gaussians), 2))
keys, labels = jax.random.split(jax.random.key(0), 64), jnp.arange(64) % 2


def draw(rule, solver, num_steps):
    how = {'clip_x': False, 'logsnr_min': -8.0, 'logsnr_max': 8.0, 'grid': parse_grid('uniform')}
    sampler = Sampler(rule=rule, solver=parse_solver(solver), num_steps=num_steps, **how)
    assert sampler.passes(1.0).total == 2 * (num_steps if solver == 'ddim' else 2 * num_steps - 1)
    return np.asarray(sampler.sample(models, keys, labels, 1.0, shape=(2,)))


# A cut that never cuts is Eq. 6; a small one is less guidance.
plain = draw(Cfg(), 'midpoint', 33)
np.testing.assert_allclose(draw(parse_rule('limited(r=1e6)'), 'midpoint', 33), plain, atol=1e-4)
assert np.abs(draw(parse_rule('limited(r=0.1)'), 'midpoint', 33) - plain).max() > 0.05
# Of order 2: half the step is a quarter of the error.
exact = draw(Cfg(), 'heun', 512)
errors = [np.abs(draw(Cfg(), 'midpoint', num_steps) - exact).max() for num_steps in (17, 33)]
assert 2.5 < errors[0] / errors[1] < 6.0, errors

config = small_config()
config.data.name = 'bars'

assert len(open_source(config)) == 200
config.train.num_steps = 2
config.sampling.guidance = 'limited(r=2.0)'
config.sampling.sampler = 'midpoint'
train.run(config, WORKDIR)
sample.run(config, WORKDIR)
"""


def test_a_rule_a_solver_and_a_data_set_in_one_diff_each(tmp_path):
    copy = tmp_path / 'copy'
    for folder in ('benchmarks', 'cfg', 'configs', 'tests'):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns('__pycache__'))
    diffs = re.findall(r'```diff\n(.*?)```', (ROOT / 'docs' / 'extending.md').read_text(), re.DOTALL)
    assert [diff.count('\n+++ ') for diff in diffs] == [2, 1, 1]  # a rule is named in the table beside its file
    for diff in diffs:
        done = subprocess.run(['git', 'apply', '-'], cwd=copy, input=diff, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    workdir = tmp_path / 'run'
    workdir.mkdir()
    script = SCRIPT.replace('WORKDIR', f'__import__("pathlib").Path({str(workdir)!r})')
    done = subprocess.run([sys.executable, '-c', script], cwd=copy, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(list((workdir / 'samples').glob('*.npz'))) == 3  # one for each of sampling.w
