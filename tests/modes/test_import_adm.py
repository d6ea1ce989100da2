"""From a file in guided-diffusion's format to samples and results, as a user does it."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from cfg.evaluation import sweep
from cfg.models.time import adm_logsnrs
from cfg.modes import import_adm, sample
from cfg.report.results import Results
from cfg.runs.checkpoints import Checkpoints
from cfg.runs.trained import TrainedRun
from cfg.runtime.errors import UserError
from cfg.training import loop
from tests.conftest import small_config
from tests.kept import keep, of_generator
from tests.models.adm_reference import Adm, classifier_forward, random_state

# The shape of conftest's small network on the digits.
SMALL = Adm(
    size=8,
    channels=8,
    mult=(1, 2),
    blocks=1,
    attention_sizes=(),
    out_channels=2,
    in_channels=1,
    head_channels=8,
    groups=4,
    rows=10,
)


def adm_config(path, **changes):
    config = small_config()
    config.model.channel_mult = (1, 2)
    config.model.time = 'adm_linear'
    config.model.learned_variance = True
    config.diffusion.logsnr_min, config.diffusion.logsnr_max = -10.1, 9.2
    config.adm.checkpoint = str(path)
    config.adm.new_attention_order = False
    config.sampling.w = (0.0,)
    config.eval.w = (0.0,)
    config.update(changes)
    return config


@pytest.fixture(scope='module', autouse=True)
def kept_generators():
    """Samples of the same networks share what is compiled of them."""
    with pytest.MonkeyPatch.context() as patch:
        keep(patch, sample, make_generator=of_generator)
        yield


def imported(config, workdir):
    workdir.mkdir()
    return import_adm.run(config, workdir)


@pytest.fixture(scope='module', name='cond')
def cond_fixture(tmp_path_factory):
    """(config, workdir) of an imported network with classes."""
    folder = tmp_path_factory.mktemp('cond')
    torch.save(random_state(SMALL), folder / 'cond.pt')
    config = adm_config(folder / 'cond.pt')
    imported(config, folder / 'run')
    return config, folder / 'run'


@pytest.fixture(scope='module', name='uncond')
def uncond_fixture(tmp_path_factory):
    """(config, workdir) of an imported network without classes."""
    folder = tmp_path_factory.mktemp('uncond')
    torch.save(random_state(dataclasses.replace(SMALL, rows=0), seed=1), folder / 'uncond.pt')
    config = adm_config(folder / 'uncond.pt')
    imported(config, folder / 'run')
    return config, folder / 'run'


def images_of(config, workdir):
    sample.run(config, workdir)
    files = sorted((workdir / 'samples').glob('sample_*.npz'), key=lambda path: path.stat().st_mtime_ns)
    with np.load(files[-1], allow_pickle=False) as file:
        return file['arr_0']


def test_a_file_that_a_wrapper_wrote_is_the_same_network(cond, tmp_path, caplog):
    caplog.set_level('INFO', logger='cfg')
    wrapped = {f'module.{name}': value for name, value in random_state(SMALL).items()}
    torch.save(wrapped, tmp_path / 'wrapped.pt')
    imported(adm_config(tmp_path / 'wrapped.pt'), tmp_path / 'run')
    runs = [TrainedRun.of_config(cond[0], workdir) for workdir in (cond[1], tmp_path / 'run')]
    assert runs[0].sha256 == runs[1].sha256
    assert runs[0].p_uncond == runs[1].p_uncond == 0  # it has classes, and no null label
    assert "begin with 'module.'" in caplog.text


def test_an_imported_network_is_sampled_and_evaluated(cond):
    config, workdir = cond
    images = images_of(config, workdir)
    assert images.shape == (20, 8, 8, 1)
    assert images.std() > 10
    sweep.evaluate(config, workdir)
    (row,) = Results(workdir).read()
    assert row.source.w == 0
    assert row.scores.fid > 0


def test_without_a_null_label_guidance_needs_a_second_model(cond):
    config, workdir = cond
    config = config.copy_and_resolve_references()
    config.sampling.w = (0.0, 1.0)
    with pytest.raises(UserError, match=r'only w=0 can be used, or a second model .*sampling\.uncond_workdir'):
        sample.run(config, workdir)


def test_the_unconditional_eps_comes_from_the_second_model(cond, uncond):
    """Eq. 6 with the two networks' predictions, at one noise level; and the samples change with w."""
    config, workdir = cond
    config = config.copy_and_resolve_references()
    config.sampling.uncond_workdir = str(uncond[1])
    config.sampling.w = (1.0,)
    guided = images_of(config, workdir)
    config.sampling.w = (0.0,)
    plain = images_of(config, workdir)
    assert not np.array_equal(guided, plain)
    assert np.array_equal(plain, images_of(cond[0], workdir))

    # w = -1 is the second model alone.
    config.sampling.w = (-1.0,)
    alone = images_of(config, workdir)
    theirs = uncond[0].copy_and_resolve_references()
    theirs.sampling.w = (-1.0,)
    # The same noise; the first model's part cancels up to rounding.
    assert np.abs(alone.astype(int) - images_of(theirs, uncond[1])).max() <= 1


def test_results_with_a_second_model_are_other_results(cond, uncond):
    config, workdir = cond
    config = config.copy_and_resolve_references()
    config.sampling.uncond_workdir = str(uncond[1])
    before = Results(workdir).read()
    config.eval.w = (0.5,)
    sweep.evaluate(config, workdir)
    (row,) = [row for row in Results(workdir).read() if row not in before]
    assert re.fullmatch('[0-9a-f]{64}', row.source.uncond_params_sha256)


def test_a_network_without_classes_is_only_the_unconditional_prediction(uncond):
    config, workdir = uncond
    with pytest.raises(UserError, match='only w=-1 can be used'):
        sample.run(config, workdir)


def test_a_second_model_without_unconditional_prediction_is_refused(cond):
    config = cond[0].copy_and_resolve_references()
    config.sampling.uncond_workdir = str(cond[1])
    with pytest.raises(UserError, match=r'uncond_workdir was trained with config\.train\.p_uncond=0'):
        sample.run(config, cond[1])


def test_a_second_model_must_exist(cond):
    config = cond[0].copy_and_resolve_references()
    config.sampling.uncond_workdir = '/nowhere'
    with pytest.raises(UserError, match='/nowhere does not exist'):
        sample.run(config, cond[1])


def test_an_imported_network_is_not_trained_and_has_one_set_of_parameters(cond):
    config = cond[0].copy_and_resolve_references()
    with pytest.raises(UserError, match='learned_variance=True is for imported networks'):
        loop.train(config, cond[1])
    config.sampling.ema = False
    with pytest.raises(UserError, match=r'was imported and has one set of parameters: use config\.sampling\.ema=True'):
        sample.run(config, cond[1])


def test_an_imported_network_without_variances_has_no_optimizer_to_go_on_with(tmp_path):
    torch.save(random_state(dataclasses.replace(SMALL, out_channels=1)), tmp_path / 'file.pt')
    config = adm_config(tmp_path / 'file.pt')
    config.model.learned_variance = False
    imported(config, tmp_path / 'run')
    with pytest.raises(UserError, match='was imported and has no optimizer'):
        loop.train(config, tmp_path / 'run')
    with pytest.raises(UserError, match='holds a run already'):
        import_adm.run(config, tmp_path / 'run')


def test_another_meaning_of_the_parameters_is_refused(cond):
    config = cond[0].copy_and_resolve_references()
    config.model.time = 'continuous'
    with pytest.raises(UserError, match=r"config\.model\.time='adm_linear', not 'continuous'"):
        sample.run(config, cond[1])
    config.model.time, config.model.label_in = 'adm_linear', 'decoder'
    with pytest.raises(UserError, match=r"config\.model\.label_in='everywhere', not 'decoder'"):
        sample.run(config, cond[1])
    with pytest.raises(UserError, match=r"label_in='decoder' must be 'everywhere' with --mode=import_adm"):
        import_adm.run(config, cond[1])
    config.model.label_in, config.train.kind = 'everywhere', 'student'
    with pytest.raises(UserError, match=r"train\.kind='student' must be 'model' with --mode=import_adm"):
        import_adm.run(config, cond[1])


def test_a_file_of_another_architecture_leaves_no_checkpoint(cond, tmp_path):
    config = adm_config(cond[0].adm.checkpoint)
    config.model.num_res_blocks = 2
    with pytest.raises(UserError, match=r'config\.model'):
        import_adm.run(config, tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []


def test_the_checkpoint_must_be_named_and_exist(tmp_path):
    with pytest.raises(UserError, match=r'config\.adm\.checkpoint is missing'):
        import_adm.run(adm_config(''), tmp_path)
    with pytest.raises(UserError, match=r'nothing\.pt'):
        import_adm.run(adm_config(tmp_path / 'nothing.pt'), tmp_path)


def test_a_classifier_is_imported_and_its_logits_agree(tmp_path):
    """Through the file, the conversion and the checkpoint, at a step of the schedule."""
    adm = dataclasses.replace(SMALL, out_channels=10, attention_sizes=(4,), rows=0)
    state = random_state(adm, encoder=True)
    torch.save(state, tmp_path / 'classifier.pt')
    config = adm_config(tmp_path / 'classifier.pt')
    config.adm.kind = 'classifier'
    config.classifier.channels, config.classifier.channel_mult = 8, (1, 2)
    config.classifier.num_res_blocks, config.classifier.attention_resolutions = 1, (4,)
    config.classifier.head_channels, config.classifier.norm_groups = 8, 4
    imported(config, tmp_path / 'run')

    classifier = TrainedRun.beside(config, tmp_path / 'run', what='it', kind='classifier')
    z = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    steps = np.array([0, 700])
    logsnr = adm_logsnrs('adm_linear')[steps].astype(np.float32)
    got = jax.jit(classifier.bind(classifier.params()))(z, logsnr)
    x = torch.from_numpy(z.transpose(0, 3, 1, 2).copy())
    expected = classifier_forward(state, adm, x, torch.from_numpy(steps)).numpy()
    assert np.linalg.norm(got - expected) < 1e-4 * np.linalg.norm(expected)

    with pytest.raises(UserError, match='classifier'):
        sample.run(config, tmp_path / 'run')
    assert Path(tmp_path / 'run' / 'checkpoints').is_dir()
