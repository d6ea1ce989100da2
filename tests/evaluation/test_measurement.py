"""Measurements on disk: saved, gone on with, the same whatever the batches; and their memory at full size."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfg.evaluation.measurement import Measurement
from cfg.features.network import FeatureNetwork, Features, with_second
from cfg.metrics.moments import Moments, Splits

ROOT = Path(__file__).parents[2]
# Whole numbers this small, and 256ths of them, are exact in float32, so a feature is the same whatever the batch.
WEIGHTS = np.random.default_rng(0).integers(-3, 4, (12, 5)).astype(np.float32)


def extract(images):
    flat = images.reshape(len(images), -1).astype(np.float32) / 256
    pool = flat @ WEIGHTS
    logits = pool[:, :3].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return Features(pool, flat[:, :4], log_p, log_p.argmax(axis=1))


def extract_second(images):
    return Features(images.reshape(len(images), -1)[:, 4:7].astype(np.float32) / 256, None, None, None)


LINEAR = FeatureNetwork(
    name='linear',
    sha256='0' * 64,
    file_sha256=None,
    width=5,
    spatial_width=4,
    image_shape=(2, 2, 3),
    extract=extract,
    classifier='itself',
    cache=Path('unused'),
)
SECOND = FeatureNetwork('second', '1' * 64, None, 3, 0, (2, 2, 3), extract_second, None, Path('unused'))
NETWORK = with_second(LINEAR, SECOND)
IMAGES = np.random.default_rng(1).integers(0, 256, (60, 2, 2, 3)).astype(np.uint8)
LABELS = np.arange(60) % 3


def opened(folder):
    return Measurement(folder, NETWORK, is_split_size=25, image_shape=(2, 2, 3), save_seconds=1e9)


def numbers(measured):
    parts = {name: getattr(measured, name) for name in ('moments', 'spatial', 'second', 'splits')}
    state = {f'{name}.{key}': np.array(value) for name, part in parts.items() for key, value in part.state().items()}
    return state | {
        'features': np.array(measured.features),
        'second_features': np.array(measured.second_features),
        'images': np.array(measured.images),
        'counts': np.array([measured.count, measured.agree]),
    }


def add(measured, start, stop):
    measured.add(IMAGES[start:stop], LABELS[start:stop], keep_images=max(20 - start, 0))


def test_a_saved_measurement_goes_on_bit_for_bit(tmp_path):
    with opened(tmp_path / 'whole') as whole:
        for start in range(0, 60, 10):
            add(whole, start, start + 10)
        expected = numbers(whole)
    for stop in range(0, 60, 10):
        with opened(tmp_path / 'broken') as measured:
            assert measured.count == stop
            add(measured, stop, stop + 10)
            measured.save()
            if stop < 50:
                add(measured, stop + 10, stop + 20)  # lost: not saved
    with opened(tmp_path / 'broken') as measured:
        found = numbers(measured)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert len(found['images']) == 20
    assert len(found['features']) == 60


@settings(max_examples=20)
@given(cuts=st.sets(st.integers(1, 59), max_size=8))
def test_the_numbers_do_not_depend_on_the_batches(tmp_path_factory, cuts):
    with opened(tmp_path_factory.mktemp('m')) as measured:
        ends = [*sorted(cuts), 60]
        for start, stop in zip([0, *ends], ends, strict=False):
            add(measured, start, stop)
        found = numbers(measured)
    features = extract(IMAGES)
    np.testing.assert_allclose(measured.moments.covariance(), np.cov(features.pool.T.astype(np.float64)), rtol=1e-9)
    np.testing.assert_allclose(measured.spatial.mean, features.spatial.mean(axis=0, dtype=np.float64), rtol=1e-9)
    second = extract_second(IMAGES).pool.astype(np.float64)
    np.testing.assert_allclose(measured.second.mean, second.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(measured.second.covariance(), np.cov(second.T), rtol=1e-9)
    assert np.array_equal(found['features'], features.pool)
    assert np.array_equal(found['second_features'], extract_second(IMAGES).pool)
    assert list(found['splits.counts']) == [25, 25, 10]
    assert np.array_equal(found['images'], IMAGES[:20])
    assert measured.accuracy == np.mean(features.classes == LABELS)


def test_features_and_images_are_on_disk_before_the_state_that_speaks_of_them(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def recording(descriptor):
        synced.append(Path(f'/proc/self/fd/{descriptor}').readlink().name)
        fsync(descriptor)

    with opened(tmp_path) as measured:
        measured.add(IMAGES[:10], keep_images=10)
        monkeypatch.setattr(os, 'fsync', recording)
        measured.save()
    assert sorted(synced[:3]) == ['features.f32', 'images.u8', 'second.f32']
    assert synced[3].startswith('.state.npz')


def test_some_features_may_be_kept(tmp_path):
    with opened(tmp_path) as measured:
        measured.add(IMAGES[:10], keep_features=np.arange(10) % 2 == 0)
        assert np.array_equal(measured.features, extract(IMAGES[:10:2]).pool)
        assert len(measured.images) == 0


@pytest.mark.parametrize('first', [0, 3])
def test_the_kept_images_have_no_hole(tmp_path, first):
    with opened(tmp_path) as measured:
        measured.add(IMAGES[:10], keep_images=first)
        measured.save()
    with opened(tmp_path) as measured:
        measured.add(IMAGES[10:20], keep_images=10)
        assert np.array_equal(measured.images, IMAGES[:first])
        assert measured.count == 20


@pytest.mark.parametrize('width', [1, 4])
def test_states_are_restored_exactly(width):
    rng = np.random.default_rng(0)
    moments, splits = Moments.of(rng.normal(size=(7, width))), Splits(3)
    splits.add(np.log(rng.dirichlet(np.ones(4), 8)))
    more, log_p = Moments.of(rng.normal(size=(5, width))), np.log(rng.dirichlet(np.ones(4), 5))
    again, splits_again = Moments.from_state(moments.state()), Splits.from_state(splits.state())
    assert np.array_equal(again.merge(more).scatter, moments.merge(more).scatter)
    splits.add(log_p)
    splits_again.add(log_p)
    assert [s.negentropy for s in splits.sums] == [s.negentropy for s in splits_again.sums]
    assert Splits.from_state(Splits(3).state()).sums == []


FULL_SIZE = """
import pathlib, re, sys
import numpy as np
from cfg.metrics import distances as metrics
from cfg.features.network import FeatureNetwork, Features
from cfg.evaluation.measurement import Measurement

rng = np.random.default_rng(0)

def extract(images):
    pool = rng.random((len(images), 2048), dtype=np.float32)
    spatial = rng.random((len(images), 2023), dtype=np.float32)
    return Features(pool, spatial, np.log(pool[:, :8] / pool[:, :8].sum(axis=1, keepdims=True)), None)

network = FeatureNetwork('random', '0', None, 2048, 2023, (1, 1, 3), extract, None, pathlib.Path('unused'))
folder = pathlib.Path(sys.argv[1])
with Measurement(folder, network, is_split_size=5000, image_shape=(1, 1, 3), save_seconds=1e9) as measured:
    for _ in range(20):
        measured.add(np.zeros((1000, 1, 1, 3), np.uint8))
    measured.save()
    assert measured.features.shape == (20_000, 2048)
    pool, spatial = measured.moments, measured.spatial
    fid = metrics.frechet_distance(pool.mean, pool.covariance(), np.full(2048, 0.5), np.eye(2048) / 12)
    scatter = np.square(spatial.covariance() - np.eye(2023) / 12).sum()
    kid = metrics.kid(measured.features, measured.features[:10_000], num_subsets=2, subset_size=1000, seed=0)
    assert measured.count == 20_000
    # The peak of this process; getrusage would start from that of the one that started it.
    peak = re.search(r'VmHWM:\\s+(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1]
    print(fid, scatter, kid.value, peak)
"""


def test_samples_of_2048_and_2023_features_fit_in_2_gib_if_they_are_fifty_thousand(tmp_path):
    """Of 20,000, which may take as much less as the others' pool features would be, if they were held in memory."""
    done = subprocess.run(
        [sys.executable, '-c', FULL_SIZE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    fid, scatter, kid, kilobytes = map(float, done.stdout.split())
    assert kilobytes * 2**10 < 2**31 - 30_000 * 2048 * 4
    # Of independent features with variance 1/12, the floor of finite samples; KID is 0 but for noise.
    assert fid == pytest.approx((2048 + 2048 * 2049 / 4) / 20_000 / 12, rel=0.1)
    # Each entry of their covariance is off by 1/12 / sqrt(n); one on the diagonal, of uniform draws, by less.
    assert scatter == pytest.approx(2023**2 / 144 / 20_000, rel=0.05)
    assert abs(kid) < 0.01


NEIGHBOURS = """
import pathlib, re, sys
import numpy as np
from cfg.metrics.neighbours import prdc

count, dtype = int(sys.argv[1]), sys.argv[2]
reference, samples = np.random.default_rng(0).random((2, count, 64), dtype=np.float32)
precision, recall, _, _ = prdc(reference, samples, dtype=dtype)
peak = re.search(r'VmHWM:\\s+(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1]
print(precision, recall, peak)
"""


@pytest.mark.parametrize(
    ('dtype', 'count', 'limit'),
    [
        ('float32', 12_000, 12_000**2 * 4),  # less than all distances would take
        ('float16', 10_000, 2**31),  # one whole block of ADM's evaluator
    ],
)
def test_distances_of_many_samples_are_never_in_memory_at_once(dtype, count, limit):
    done = subprocess.run(
        [sys.executable, '-c', NEIGHBOURS, str(count), dtype], cwd=ROOT, capture_output=True, text=True, check=True
    )
    precision, recall, kilobytes = map(float, done.stdout.split())
    assert kilobytes * 2**10 < limit
    assert 0.7 < precision < 0.8  # of two draws from one distribution
    assert precision == pytest.approx(recall, abs=0.02)


def test_a_network_may_stand_alone_or_tell_no_classes(tmp_path):
    for name, network in (('alone', LINEAR), ('no classes', SECOND)):
        folder = tmp_path / name
        for count in (0, 30):
            with Measurement(folder, network, is_split_size=9, image_shape=(2, 2, 3), save_seconds=1e9) as measured:
                assert measured.count == count
                measured.add(IMAGES[count : count + 30])
                measured.save()
        assert measured.second is None
        assert measured.second_features is None
        assert measured.moments.count == 60
        assert len(measured.splits.sums) == (7 if network is LINEAR else 0)
