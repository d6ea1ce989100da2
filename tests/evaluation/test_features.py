import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.data.source import ArraySource
from cfg.errors import UserError
from cfg.evaluation import metrics
from cfg.evaluation.features import feature_width, measure, open_features
from cfg.evaluation.statistics import Moments


@pytest.fixture(scope='module', name='cache')
def cache_fixture(tmp_path_factory):
    return tmp_path_factory.mktemp('features')


@pytest.fixture(scope='module', name='network')
def network_fixture(cache):
    return open_features('small_classifier', cache, digits('train'))


def test_the_classifier_knows_digits_that_it_was_not_trained_on(network):
    test = digits('test')
    _, log_p = network.extract(test.images)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=1e-5)
    assert np.mean(log_p.argmax(axis=1) == test.labels) > 0.98
    assert 'not Inception' in network.name
    assert network.width == feature_width('small_classifier')


def test_a_second_sweep_measures_with_the_same_weights(network, cache):
    again = open_features('small_classifier', cache, digits('train'))
    assert again.sha256 == network.sha256
    images = digits('test').images[:5]
    assert np.array_equal(again.extract(images)[0], network.extract(images)[0])


def test_statistics_do_not_depend_on_the_batch_size(network):
    images = digits('test').images[:100]
    features, log_p = network.extract(images)
    source = ArraySource('some', images, log_p.argmax(axis=1).astype(np.int32), [str(i) for i in range(10)])
    for batch_size in (7, 100):
        statistics, agreement = measure(network, source, batch_size=batch_size, is_split_size=60)
        moments, splits = statistics.moments, statistics.splits
        np.testing.assert_allclose(moments.mean, features.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(moments.covariance(), np.cov(features.T.astype(np.float64)), atol=1e-4)
        assert [s.count for s in splits.sums] == [60, 40]
        assert agreement == 1.0


def test_fid_tells_noise_and_wrong_classes_from_digits(network):
    """The measure orders what it should order: same images, other real images, half of the classes, noise."""
    train, test = digits('train'), digits('test')
    noise = np.random.default_rng(0).integers(0, 256, test.images.shape).astype(np.uint8)

    def moments(images):
        source = ArraySource('x', images, np.zeros(len(images), np.int32), ['any'])
        return measure(network, source, batch_size=500, is_split_size=5000)[0].moments

    reference = moments(train.images)
    some = test.images[test.labels < 5]
    same, other, half, far = (metrics.fid(moments(x), reference) for x in (train.images, test.images, some, noise))
    assert same == pytest.approx(0.0, abs=1e-6)
    assert same < other < half < far
    assert isinstance(reference, Moments)


def test_damaged_or_foreign_weights_are_named(network, cache, tmp_path):
    path = tmp_path / 'digits_classifier.npz'
    content = (cache / 'digits_classifier.npz').read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r'digits_classifier\.npz cannot be read .*delete it'):
        open_features('small_classifier', tmp_path, digits('train'))
    np.savez(path, a=np.zeros(3))
    with pytest.raises(UserError, match='another network'):
        open_features('small_classifier', tmp_path, digits('train'))
    np.savez(path, a=np.array([{}], dtype=object))  # a pickle, which is not opened
    with pytest.raises(UserError, match='cannot be read'):
        open_features('small_classifier', tmp_path, digits('train'))


def test_an_unknown_network_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"config\.eval\.features='vgg' must be one of small_classifier"):
        open_features('vgg', tmp_path, digits('train'))
