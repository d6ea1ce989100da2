import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from cfg.data import images
from cfg.data.digits import SPLITS, digits
from cfg.data.grids import mosaic
from cfg.data.pipeline import train_batches
from cfg.data.source import ArraySource


def test_uint8_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    x = np.asarray(images.to_float(levels))
    assert (x.min(), x.max(), x.dtype) == (-1.0, 1.0, np.float32)
    assert np.array_equal(images.to_uint8(x), levels)
    assert np.array_equal(images.to_uint8(np.array([-3.0, 3.0, 0.0])), [0, 255, 128])


def test_digits_are_scikit_learns():
    source = digits('all')
    values, labels = load_digits(return_X_y=True)
    assert source.image_shape == (8, 8, 1)
    assert source.num_classes == 10
    assert np.array_equal(np.round(source.images.reshape(1797, 64) * (16 / 255)), values)
    assert np.array_equal(source.labels, labels)
    assert (source.images.min(), source.images.max()) == (0, 255)


def test_the_halves_are_a_partition_and_balanced():
    whole, train, test = (digits(split) for split in SPLITS)
    rows = {split.name: [row.tobytes() for row in split.images.reshape(-1, 64)] for split in (whole, train, test)}
    assert sorted(rows['digits/train'] + rows['digits/test']) == sorted(rows['digits/all'])
    difference = np.bincount(train.labels) - np.bincount(test.labels)
    assert set(difference.tolist()) <= {0, 1}
    assert np.array_equal(digits('train').images, train.images)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'validation'"):
        digits('validation')


def counting_source(n):
    pixels = np.zeros((n, 1, 1, 1), np.uint8)
    return ArraySource('count', pixels, np.arange(n, dtype=np.int32), [str(i) for i in range(n)])


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 3))
def test_each_example_exactly_once_an_epoch(n, batch_size, seed):
    batches = train_batches(counting_source(n), batch_size=batch_size, seed=seed, start_step=0)
    seen = np.concatenate([next(batches)['label'] for _ in range(-(-3 * n // batch_size))])
    for epoch in range(3):
        assert np.array_equal(np.sort(seen[epoch * n : (epoch + 1) * n]), np.arange(n))


@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), start=st.integers(0, 20))
def test_a_later_start_reads_on_where_the_run_stopped(n, batch_size, start):
    source = counting_source(n)
    whole = train_batches(source, batch_size=batch_size, seed=1, start_step=0)
    resumed = train_batches(source, batch_size=batch_size, seed=1, start_step=start)
    for _ in range(start):
        next(whole)
    for _ in range(3):
        a, b = next(whole), next(resumed)
        assert a.keys() == b.keys() == {'image', 'label', 'index'}
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_epochs_and_seeds_differ():
    source = counting_source(50)
    first, second = (next(train_batches(source, batch_size=50, seed=0, start_step=s))['label'] for s in (0, 1))
    other = next(train_batches(source, batch_size=50, seed=1, start_step=0))['label']
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ('pixels', 'labels', 'message'),
    [
        (np.zeros((2, 4, 4, 1), np.float32), [0, 1], 'uint8'),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], 'uint8'),
        (np.zeros((2, 4, 4, 1), np.uint8), [0], 'labels of shape'),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 2], 'outside 0..1'),
    ],
)
def test_a_source_that_does_not_fit_is_refused(pixels, labels, message):
    with pytest.raises(ValueError, match=message):
        ArraySource('x', pixels, np.array(labels, np.int32), ['a', 'b'])


def test_mosaic_places_every_image():
    tiles = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3, 1)
    picture = mosaic(tiles, (2, 3), width=9)
    assert picture.shape == (2 * 2 + 2, 3 * 3 + 2 * 2, 3)
    assert np.array_equal(picture[:2, 5:8, 0], tiles[1, :, :, 0])
    assert np.array_equal(picture[4:6, 0:3, 2], tiles[3, :, :, 0])
    assert (picture[4:6, 10:13] == 255).all()
