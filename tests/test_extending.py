"""The changes of docs/extending.md fit the code, and work."""

import re
import shutil
import subprocess
import sys

from tests.command_line import ROOT
from tests.test_commands import of_page

# Run where the changes were applied.
SCRIPT = """
import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import mixture
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.sampler import Sampler, parse_grid, parse_rule, parse_solver
from cfg.diffusion.rules import Cfg
from cfg.data.built_in import BUILT_IN
from tests import in_process
from tests.command_line import SMALL

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

assert len(BUILT_IN['bars'].open('all', '')) == 200
for _, config, _, *own in COMMANDS[::-1]:  # training is the last of the page
    few = ['--config.data.name=bars', '--config.train.num_steps=2']
    done = in_process.main(config, f'--workdir={WORKDIR}', *SMALL, *few, *own, config=None, small=False)
    assert done.returncode == 0, done.stderr
"""


def test_a_rule_a_solver_and_a_data_set_in_one_diff_each(tmp_path):
    copy = tmp_path / 'copy'
    for folder in ('benchmarks', 'cfg', 'configs', 'tests'):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'main.py', copy)
    page = (ROOT / 'docs' / 'extending.md').read_text()
    diffs = re.findall(r'```diff\n(.*?)```', page, re.DOTALL)
    assert [diff.count('\n+++ ') for diff in diffs] == [2, 1, 1]  # a rule is named in the table beside its file
    for diff in diffs:
        done = subprocess.run(['git', 'apply', '-'], cwd=copy, input=diff, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    workdir = tmp_path / 'run'
    workdir.mkdir()
    given = f'WORKDIR, COMMANDS = {str(workdir)!r}, {of_page(page, elsewhere=())!r}'
    done = subprocess.run([sys.executable, '-c', given + SCRIPT], cwd=copy, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(list((workdir / 'samples').glob('*.npz'))) == 6  # of two commands, one for each of sampling.w
