"""`--mode=export` and `--mode=import_export`: the file, its card, and the same network on the other side."""

import shlex
import shutil

import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import cfg
from cfg.modes import export, import_export
from cfg.runs.exported import FILE
from cfg.training import loop
from tests.conftest import small_config
from tests.in_process import main
from tests.report.rows import row_of, write_rows


@pytest.fixture(scope='module', name='run')
def run_fixture(small_run, tmp_path_factory):
    return shutil.copytree(small_run, tmp_path_factory.mktemp('run') / 'run')


@pytest.fixture(scope='module', name='exported')
def exported_fixture(run):
    """The folder of an export with a row of its own and one of another network."""
    own = cfg.load(run).run.sha256
    write_rows(run, [row_of(params_sha256=own, fid=12.3456), row_of(fid=98.7654)])
    return export.run(small_config(), run).parent


def importing(folder):
    config = small_config()
    config.export.dir = str(folder)
    return config


def test_the_file_holds_the_averaged_parameters_by_their_paths(run, exported):
    flat = safetensors.numpy.load_file(exported / FILE)
    params = traverse_util.flatten_dict(cfg.load(run).run.params(), sep='/')
    assert flat.keys() == params.keys()
    for name, values in params.items():
        np.testing.assert_array_equal(flat[name], values)


def test_the_card_says_what_it_is(run, exported):
    card = (exported / 'README.md').read_text()
    for text in (cfg.load(run).run.sha256, 'digits/all', '12.3456', '"p_uncond"', 'averaged'):
        assert text in card
    assert '98.7654' not in card


def test_the_command_of_the_card_imports_it_as_typed(run, exported, tmp_path):
    (line,) = (line for line in (exported / 'README.md').read_text().splitlines() if line.startswith('cfg '))
    _, config, *words = shlex.split(line.replace('FOLDER', str(exported)).replace('runs/imported', str(tmp_path)))
    done = main(*words, config=config.removeprefix('--config='), small=False)
    assert done.returncode == 0, done.stderr
    assert cfg.load(tmp_path).run.sha256 == cfg.load(run).run.sha256


def test_an_imported_network_draws_the_same_samples(run, exported, tmp_path):
    import_export.run(importing(exported), tmp_path)
    ours, theirs = cfg.load(run), cfg.load(tmp_path)
    assert theirs.run.sha256 == ours.run.sha256
    assert theirs.run.meta['data'] == ours.run.meta['data']
    labels = np.arange(10)
    np.testing.assert_array_equal(cfg.sample(theirs, labels, w=1.0), cfg.sample(ours, labels, w=1.0))
    with pytest.raises(cfg.UserError, match='holds a run already'):
        import_export.run(importing(exported), tmp_path)


def test_an_import_of_a_run_with_averages_has_none(tmp_path):
    """Its config names their lengths, and they were left behind."""
    config = small_config()
    config.train.ema_lengths = (0.05, 0.1)
    loop.train(config, tmp_path)
    (tmp_path / 'run').mkdir()
    import_export.run(importing(export.run(config, tmp_path).parent), tmp_path / 'run')
    with pytest.raises(cfg.UserError, match=r'kept no averages to make ema_length=0\.1 of'):
        cfg.load(tmp_path / 'run', ema_length=0.1)


def test_it_goes_around_again(exported, tmp_path):
    """What was imported is exported as the same file."""
    import_export.run(importing(exported), tmp_path)
    assert export.run(small_config(), tmp_path).read_bytes() == (exported / FILE).read_bytes()


@pytest.mark.parametrize(
    ('damage', 'sentence'),
    [
        (lambda data: data[: len(data) // 2], 'cannot be read'),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), 'is damaged'),
        (lambda data: safetensors.numpy.save({'x': np.zeros(3)}), 'does not say what it holds'),
    ],
)
def test_a_damaged_file_is_refused(exported, tmp_path, damage, sentence):
    (tmp_path / 'run').mkdir()
    (tmp_path / FILE).write_bytes(damage((exported / FILE).read_bytes()))
    with pytest.raises(cfg.UserError, match=sentence):
        import_export.run(importing(tmp_path), tmp_path / 'run')
