"""Each rule after Eq. 6, and each sampler that aims at its density, through the modes, on one tiny network."""

import shutil

import numpy as np
import pytest

from cfg.evaluation import drawing
from cfg.modes import compare, describe, sample
from cfg.report.results import Results
from cfg.settings.checks import check_config
from cfg.training import loop
from tests.conftest import guided_config
from tests.kept import keep, of_generator

# Each with its evaluations at w = 1 and T = 4, and whether it is the conditional model at w = 0.
RULES = {
    'power': (8, True),
    'cfg_zero': (8, True),
    'tcfg': (8, True),
    'fdg': (8, True),
    'adaptive': (8, True),
    'rectified_gradient': (8, True),
    'feedback(pi=0.8)': (8, False),
    'cfg(anneal_label=(0.2, 0.9, 1.0, 0.5))': (8, False),
    'time_step(shift=1.0)': (7, True),  # nothing is noisier than the first level
    'perturbed_attention': (8, True),
    'blurred_attention(sigma=1.0)': (8, True),
}


def config_of(guidance):
    config = guided_config()
    config.sampling.guidance, config.sampling.w = guidance, (0.0, 1.0)
    check_config(config)
    return config


@pytest.fixture(scope='module', name='trained')
def trained_fixture(tmp_path_factory):
    """A run with the rows and samples of Eq. 6; programs are compiled once for both modes."""
    workdir = tmp_path_factory.mktemp('rules') / 'run'
    workdir.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        keep(patch, drawing, make_generator=of_generator, guided_flops=lambda network, shape: (network, tuple(shape)))
        patch.setattr(sample, 'make_generator', drawing.make_generator)
        loop.train(config_of('cfg'), workdir)
        compare.run(config_of('cfg'), workdir)
        yield workdir


def images_of(config, workdir, capsys):
    """The samples at each w."""
    capsys.readouterr()
    sample.run(config, workdir)
    *files, _ = capsys.readouterr().out.splitlines()
    return [np.load(file)['arr_0'] for file in files]


@pytest.mark.parametrize('text', RULES)
def test_a_rule_goes_through_the_modes(trained, tmp_path, capsys, text):
    evaluations, neutral = RULES[text]
    config, workdir = config_of(text), shutil.copytree(trained, tmp_path / 'run')
    plain, _ = images_of(config_of('cfg'), workdir, capsys)
    unguided, guided = images_of(config, workdir, capsys)
    assert np.array_equal(unguided, plain) is neutral
    assert np.abs(np.int32(guided) - plain).max() > 1
    compare.run(config, workdir)
    rows = {(row['sampling']['guidance'], row['w']): row for row in (row.flat for row in Results(workdir).read())}
    assert len(rows) == 4
    assert rows[text, 1.0]['evaluations'] == evaluations
    assert (rows[text, 0.0]['fid'] == rows['cfg', 0.0]['fid']) is neutral
    assert text.partition('(')[0] in (workdir / 'compare' / 'index.html').read_text()
    assert 'parameters: ' in describe.describe(config, num_devices=1)


# Each with its evaluations at w = 0 and 1 and T = 6.
SAMPLERS = {'feynman_kac(particles=2)': (12, 24), 'gibbs': (3 + 2 * 3, 3 + 2 * 3 * 2)}


@pytest.mark.parametrize('text', SAMPLERS)
def test_a_sampler_goes_through_the_modes(trained, tmp_path, capsys, text):
    config, workdir = config_of('cfg'), shutil.copytree(trained, tmp_path / 'run')
    config.sampling.num_steps, config.sampling.sampler = 6, 'dpm_solver_2m(stochastic=True)'
    plain, guided = images_of(config, workdir, capsys)
    config.sampling.sampler = text
    check_config(config)
    found = images_of(config, workdir, capsys)
    assert np.array_equal(found[0], plain) is text.startswith('feynman_kac')
    assert np.abs(np.int32(found[1]) - guided).max() > 1
    compare.run(config, workdir)
    rows = [row.flat for row in Results(workdir).read()]
    seen = {row['w']: row['evaluations'] for row in rows if row['sampling']['sampler'] == text}
    assert (seen[0.0], seen[1.0]) == SAMPLERS[text]
    assert 'parameters: ' in describe.describe(config, num_devices=1)
