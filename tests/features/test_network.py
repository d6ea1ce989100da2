import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.data.source import ArraySource
from cfg.evaluation.references import BATCH, chosen, measuring, stream_of_source
from cfg.features import small_classifier
from cfg.features.network import COLOUR_IMAGES, INCEPTION, Features, check_images, default_cache
from cfg.features.opening import open_features
from cfg.metrics import distances
from cfg.metrics.moments import Moments, Splits
from cfg.metrics.neighbours import prdc
from cfg.runtime import files
from cfg.runtime.errors import UserError
from cfg.runtime.stopping import StopSignal
from tests.command_line import ROOT


@pytest.fixture(scope='module', name='cache')
def cache_fixture(tmp_path_factory, digits_classifier):
    """A cache with the network that this session has trained."""
    folder = tmp_path_factory.mktemp('features')
    digits_classifier(folder)
    return folder


def opened(cache, batch_size=100):
    return small_classifier.small_classifier(cache, digits('train'), batch_size=batch_size)


@pytest.fixture(scope='module', name='network')
def network_fixture(cache):
    return opened(cache)


def measured(network, source, num_images=10_000):
    stream = stream_of_source(source, num_images)
    with measuring(stream, network, is_split_size=60, save_seconds=0, stop=StopSignal()) as measured:
        return measured


def test_the_classifier_knows_digits_that_it_was_not_trained_on(network):
    test = digits('test')
    features = network.extract(test.images)
    np.testing.assert_allclose(np.exp(features.log_p).sum(axis=1), 1.0, rtol=1e-5)
    assert np.mean(features.classes == test.labels) > 0.98
    assert features.spatial is None
    assert features.pool.shape == (len(test), small_classifier.WIDTH)
    assert 'not Inception' in network.name


def test_a_second_sweep_measures_with_the_same_weights(network, cache):
    again = opened(cache)
    assert again.sha256 == network.sha256
    images = digits('test').images[:5]
    assert np.array_equal(again.extract(images).pool, network.extract(images).pool)


def test_features_do_not_depend_on_the_batch_size(network, cache):
    images = digits('test').images[:30]
    np.testing.assert_allclose(opened(cache, 8).extract(images).pool, network.extract(images).pool, atol=1e-5)
    one_by_one = np.concatenate([network.extract(images[i : i + 1]).pool for i in range(5)])
    np.testing.assert_allclose(one_by_one, network.extract(images).pool[:5], atol=1e-5)


ONE_DEVICE = """
import sys
from pathlib import Path
import jax, numpy as np
from cfg.data.digits import digits
from cfg.features.small_classifier import small_classifier

assert jax.device_count() == 1
network = small_classifier(Path(sys.argv[1]), digits('train'), batch_size=35)
features = network.extract(digits('test').images)
np.savez(sys.argv[2], pool=features.pool, log_p=features.log_p, classes=features.classes)
"""


def test_the_number_of_devices_changes_nothing(network, cache, tmp_path):
    """Features, and the metrics of them, from one device and from the suite's four."""
    path = tmp_path / 'one.npz'
    flags = os.environ['XLA_FLAGS'].replace('device_count=4', 'device_count=1')
    subprocess.run(
        [sys.executable, '-c', ONE_DEVICE, str(cache), str(path)],
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': flags},
        check=True,
    )
    four, real = network.extract(digits('test').images), network.extract(digits('train').images).pool
    with np.load(path, allow_pickle=False) as file:
        one = Features(file['pool'], None, file['log_p'], file['classes'])
    np.testing.assert_allclose(one.pool, four.pool, atol=1e-5)
    assert np.array_equal(one.classes, four.classes)
    scores = []
    for features in (one, four):
        splits = Splits(100)
        splits.add(features.log_p)
        scores.append(
            [
                distances.fid(Moments.of(features.pool), Moments.of(real)),
                *distances.inception_score(splits.sums),
                *distances.kid(features.pool, real, num_subsets=5, subset_size=100, seed=0),
            ]
        )
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
    shares = [prdc(real, features.pool)[:2] for features in (one, four)]
    # An image on the border of a neighbourhood may fall to either side of it.
    np.testing.assert_allclose(shares[0], shares[1], rtol=0, atol=3 / min(len(real), len(one.pool)))


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(cache):
    with pytest.raises(UserError, match=r'config\.eval\.batch_size=10 does not divide over 4 devices'):
        opened(cache, 10)


def test_a_data_set_is_measured_once(network):
    test = digits('test')
    count = BATCH + 50
    images, labels = test.images[:count], network.extract(test.images[:count]).classes
    source = ArraySource('some', images, labels, [str(i) for i in range(10)])
    first = measured(network, source, 50)
    features = network.extract(images).pool
    np.testing.assert_allclose(first.moments.mean, features.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(first.moments.covariance(), np.cov(features.T.astype(np.float64)), atol=1e-4)
    assert [s.count for s in first.splits.sums] == [60] * 9 + [10]
    assert first.accuracy == 1.0
    np.testing.assert_allclose(first.features, features[chosen(count, 50)], atol=1e-5)

    class Unreadable(ArraySource):
        def fetch(self, indices):
            raise AssertionError('measured again')

    second = measured(network, Unreadable('some', images, labels, source.class_names), 50)
    assert np.array_equal(second.moments.scatter, first.moments.scatter)
    assert np.array_equal(second.features, first.features)


def test_images_that_stand_for_all_are_distinct_and_the_same_every_time():
    some = chosen(1000, 100)
    assert len(np.unique(some)) == 100
    assert np.array_equal(some, np.sort(some))
    assert np.array_equal(some, chosen(1000, 100))
    assert np.array_equal(chosen(7, 100), np.arange(7))


def test_fid_tells_noise_and_wrong_classes_from_digits(network):
    """The measure orders what it should order: same images, other real images, half of the classes, noise."""
    train, test = digits('train'), digits('test')
    noise = np.random.default_rng(0).integers(0, 256, test.images.shape).astype(np.uint8)

    def moments(images):
        return Moments.of(network.extract(images).pool)

    reference = moments(train.images)
    some = test.images[test.labels < 5]
    same, other, half, far = (distances.fid(moments(x), reference) for x in (train.images, test.images, some, noise))
    assert same == pytest.approx(0.0, abs=1e-6)
    assert same < other < half < far


def test_damaged_or_foreign_weights_are_named(network, cache, tmp_path):
    (file,) = cache.glob('*.npz')
    path = tmp_path / file.name
    content = file.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r'digits_classifier_\w+\.npz cannot be read .*delete it'):
        opened(tmp_path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(UserError, match='another network'):
        opened(tmp_path)
    np.savez(path, a=np.array([{}], dtype=object))  # a pickle, which is not opened
    with pytest.raises(UserError, match='cannot be read'):
        opened(tmp_path)


@pytest.mark.parametrize('shape', [(8, 8, 1), (3, 64, 64), (64, 64, 4), (64, 64)])
def test_images_that_inception_does_not_take_are_named(shape):
    with pytest.raises(
        UserError, match=rf'^x\.npz has images of {"x".join(map(str, shape))}, but Inception .* takes images of 3 '
    ):
        check_images(COLOUR_IMAGES, shape, 'x.npz', INCEPTION)


def test_images_of_any_size_go_into_inception():
    check_images(COLOUR_IMAGES, (5, 900, 3), 'x.npz', INCEPTION)


def test_grey_images_are_refused_before_weights_are_looked_for(small_config, tmp_path):
    small_config.eval.features = 'inception'
    small_config.eval.cache_dir = str(tmp_path / 'nothing')
    with pytest.raises(UserError, match=r'The digits has images of 8x8x1'):
        open_features(small_config, (8, 8, 1), 'The digits')


def test_every_run_on_the_same_images_has_the_same_small_classifier(small_config, cache, network, monkeypatch):
    """It lies where the config says, by the fingerprint of the images that it was trained on, and is trained once."""
    monkeypatch.setattr(small_classifier, '_train', lambda *_: pytest.fail('trained again'))
    small_config.eval.cache_dir = str(cache)
    for split in ('train', 'all'):  # of a sweep; its features are those of the training half
        small_config.data.split = split
        assert open_features(small_config, (8, 8, 1), 'The digits').sha256 == network.sha256
    (file,) = cache.glob('*.npz')
    assert file.stem == f'digits_classifier_{digits("train").fingerprint[:16]}'
    other = ArraySource('digits/train', digits('train').images[1:], digits('train').labels[1:], range(10))
    with pytest.raises(pytest.fail.Exception, match='trained again'):
        small_classifier.small_classifier(cache, other, batch_size=100)


def test_jobs_that_start_together_train_one_small_classifier(tmp_path, monkeypatch):
    """The others wait for the first, and then read its file."""
    trained, started = [], threading.Event()
    write = small_classifier._write

    def train(network, path, source):
        trained.append(path)
        assert started.wait(60)
        write(path, network.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))['params'])

    def sleep(_):
        started.set()
        time.sleep(0.05)

    monkeypatch.setattr(small_classifier, '_train', train)
    monkeypatch.setattr(files, 'time', SimpleNamespace(sleep=sleep))
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: opened(tmp_path), range(2))
    assert len(trained) == 1
    assert first.sha256 == second.sha256


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'config\.eval\.cache_dir=.*file/cache cannot be written'):
        opened(tmp_path / 'file' / 'cache')


def test_processes_with_other_weights_are_refused(network):
    network.check_same(network.sha256)
    with pytest.raises(UserError, match=r'has other weights in .* than for process 0: give a config\.eval\.cache_dir'):
        network.check_same('0' * 64)


def test_the_cache_is_in_the_users_cache_unless_told(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_cache('') == tmp_path / 'cfg_diffusion'
    assert default_cache('/somewhere/else').as_posix() == '/somewhere/else'
