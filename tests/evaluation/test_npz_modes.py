"""`--mode=stats` and `--mode=evaluate_npz`, with Inception (random weights) and with the small classifier."""

import json

import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.data.source import ArraySource
from cfg.errors import UserError
from cfg.evaluation import npz_modes, references
from cfg.evaluation.weights import PYTORCH_FID
from tests.conftest import small_config
from tests.inception_file import write_torch


@pytest.fixture(scope='module', name='cache')
def cache_fixture(tmp_path_factory):
    """A cache with weights."""
    cache = tmp_path_factory.mktemp('cache')
    write_torch(cache / PYTORCH_FID)
    return cache


@pytest.fixture(scope='module', name='workdir')
def workdir_fixture(tmp_path_factory):
    return tmp_path_factory.mktemp('run')


def config_of(cache, **changes):
    config = small_config()
    config.eval.cache_dir = str(cache)
    config.eval.batch_size = 8
    config.eval.kid_subsets = 3
    config.eval.kid_subset_size = 5
    config.stats.num_images = 10
    for name, value in changes.items():
        part, _, field = name.rpartition('__')
        config[part or 'eval'][field] = value
    return config


def colours(count, seed=0, size=24):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, 3, 3)).repeat(size // 3, axis=1).repeat(size // 3, axis=2)
    return np.clip(images + rng.normal(0, 5, images.shape), 0, 255).astype(np.uint8)


@pytest.fixture(name='source')
def source_fixture(monkeypatch):
    """A data set of coloured squares in the place of the digits."""
    images = colours(20)
    source = ArraySource('squares/train', images, np.arange(20, dtype=np.int32) % 2, ['a', 'b'])
    monkeypatch.setattr('cfg.setup.open_source', lambda *_, **__: source)
    return source


def test_a_reference_of_inception_scores_its_own_images_as_real(source, cache, tmp_path, capsys):
    """The whole way: --mode=stats, then --mode=evaluate_npz of the same images, of others, and against raw images."""
    config = config_of(cache, features='inception', stats__path=str(tmp_path / 'stats' / 'reference.npz'))
    path = npz_modes.write_stats(config, None)
    with np.load(path, allow_pickle=False) as file:
        assert {name: file[name].shape for name in file.files} == {
            'arr_0': (10, 24, 24, 3),
            'mu': (2048,),
            'sigma': (2048, 2048),
            'mu_s': (2023,),
            'sigma_s': (2023, 2023),
        }
        assert np.array_equal(file['arr_0'], source.images[references.chosen(20, 10)])
    np.savez(tmp_path / 'same.npz', source.images)
    np.savez(tmp_path / 'other.npz', colours(16, seed=5))

    def score(samples, reference):
        options = {'samples': str(tmp_path / samples), 'reference': str(reference), 'features': 'inception'}
        npz_modes.evaluate_npz(config_of(cache, **options), tmp_path)
        return json.loads((tmp_path / 'evaluate_npz.jsonl').read_text().splitlines()[-1])

    same, other = score('same.npz', path), score('other.npz', path)
    raw = score('other.npz', tmp_path / 'same.npz')
    assert same['fid'] == pytest.approx(0, abs=1e-6 * other['fid'])
    assert same['sfid'] == pytest.approx(0, abs=1e-6 * other['sfid'])
    assert same['recall'] == 1.0
    assert other['fid'] > 0
    assert raw['fid'] == pytest.approx(other['fid'], rel=1e-6)  # stored moments are those of the images
    assert raw['sfid'] == pytest.approx(other['sfid'], rel=1e-6)
    assert other['num_samples'] == 16
    assert any(text.startswith('16 samples are no more than the 2048 features') for text in other['warnings'])
    for name in ('samples_sha256', 'features_sha256', 'features_file_sha256', 'reference_file_sha256'):
        assert len(other[name]) == 64
    assert other['accuracy'] is None


def test_the_default_path_names_data_and_weights(source, cache):
    path = npz_modes.write_stats(config_of(cache, features='inception'), None)
    assert path.parent == cache
    assert path.name.startswith(f'squares_train_{source.fingerprint[:8]}_')


def test_the_small_classifier_scores_digits(cache, workdir, tmp_path):
    images, labels = digits('test').images, digits('test').labels
    np.savez(tmp_path / 'samples.npz', images[:300], labels[:300])
    np.savez(tmp_path / 'reference.npz', images[300:])
    options = {'samples': str(tmp_path / 'samples.npz'), 'reference': str(tmp_path / 'reference.npz')}
    table = npz_modes.evaluate_npz(config_of(cache, features='small_classifier', **options), workdir)
    row = json.loads((workdir / 'evaluate_npz.jsonl').read_text())
    assert row['accuracy'] > 0.97
    assert row['sfid'] is None
    assert f'{row["fid"]:.4f}' in table
    assert 'reference.npz' in table


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({}, 'config.eval.samples is missing'),
        ({'samples': 'images.npz'}, 'config.eval.reference is missing'),
        ({'samples': 'nothing.npz', 'reference': 'images.npz'}, r'config\.eval\.samples=.*nothing\.npz does not exist'),
        ({'samples': 'images.npz', 'reference': 'nothing.npz'}, r'config\.eval\.reference=.*nothing\.npz does not'),
        ({'samples': 'grey.npz', 'reference': 'images.npz'}, r'grey\.npz has images of 24x24x1, but Inception'),
        ({'samples': 'images.npz', 'reference': 'grey.npz'}, r'grey\.npz has images of 24x24x1, but Inception'),
        ({'samples': 'floats.npz', 'reference': 'images.npz'}, r'floats\.npz holds float64, not uint8'),
        ({'samples': 'one.npz', 'reference': 'images.npz'}, r'one\.npz holds 1 images: give at least 2'),
        ({'samples': 'images.npz', 'reference': 'wide.npz'}, r'wide\.npz holds moments of 64 features \(mu\), but Inc'),
    ],
)
def test_input_that_does_not_fit_is_named(cache, tmp_path, changes, expected):
    np.savez(tmp_path / 'images.npz', colours(4))
    np.savez(tmp_path / 'grey.npz', colours(4)[..., :1])
    np.savez(tmp_path / 'floats.npz', colours(4) / 255)
    np.savez(tmp_path / 'one.npz', colours(1))
    np.savez(tmp_path / 'wide.npz', mu=np.zeros(64), sigma=np.eye(64))
    paths = {name: str(tmp_path / file) for name, file in changes.items()}
    with pytest.raises(UserError, match=expected):
        npz_modes.evaluate_npz(config_of(cache, features='inception', **paths), None)


def test_a_path_that_is_no_npz_is_refused(source, cache):
    with pytest.raises(UserError, match=r'config\.stats\.path=x\.txt must end in \.npz'):
        npz_modes.write_stats(config_of(cache, features='inception', stats__path='x.txt'), None)
