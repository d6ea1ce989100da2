"""EDM's augmentation, against float64 and against what exact changes must give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cfg.data.augment import SIZE, SYM6, Change, augment, draw_change, origins, told, warp

NONE = Change(*(jnp.float32(0.0),) * 6, shift=jnp.zeros(2))
moved = jax.jit(warp)


def image(height, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (height, width, 3)).astype(np.float32)


def test_the_filter_is_orthonormal_with_six_vanishing_moments():
    for lag in range(0, 12, 2):
        assert SYM6[lag:] @ SYM6[: 12 - lag] == pytest.approx(float(lag == 0), abs=1e-11)
    high = SYM6[::-1] * (-1.0) ** np.arange(12)
    for power in range(6):
        assert high @ (np.arange(12) - 5.5) ** power == pytest.approx(0.0, abs=1e-7)
    assert SYM6.sum() == pytest.approx(np.sqrt(2))


@pytest.mark.parametrize('shape', [(8, 8), (6, 10)])
def test_no_change_is_none(shape):
    before = image(*shape)
    np.testing.assert_allclose(moved(before, NONE), before, atol=2e-6)


@settings(max_examples=10)
@given(st.integers(-5, 5), st.integers(-5, 5))
def test_shifts_by_whole_pixels_read_the_mirrored_image(right, down):
    before = image(16, 14)
    shift = jnp.float32([right / (0.125 * 14), down / (0.125 * 16)])
    around = np.pad(before, ((5, 5), (5, 5), (0, 0)), 'reflect')
    expected = around[5 - down : 21 - down, 5 - right : 19 - right]
    np.testing.assert_allclose(moved(before, NONE._replace(shift=shift)), expected, atol=1e-5)


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def change_of(values):
    return Change(jnp.float32(0), jnp.float32(0), *map(jnp.float32, values[:4]), jnp.float32(values[4:]))


numbers = st.lists(st.floats(-2.5, 2.5), min_size=6, max_size=6)


@given(numbers)
def test_points_come_from_where_the_changes_put_them(values):
    """Stretched along an axis, turned, grown and shifted, forth by float64 matrices; `origins` leads back."""
    scale, angle, stretch, axis, *shift = values
    along = rotation(-axis) @ np.diag([2 ** (0.2 * stretch), 2 ** (-0.2 * stretch)]) @ rotation(axis)
    forth = along @ rotation(-angle) * 2 ** (0.2 * scale)
    points = np.random.default_rng(0).uniform(-4, 4, (2, 9))
    there = forth @ points + 0.125 * np.array(shift)[:, None] * np.array([[32], [16]])
    back = origins(change_of(values), jnp.float32(there), (32, 16))
    np.testing.assert_allclose(back, points, atol=1e-4)


def test_a_smooth_image_is_read_where_its_points_come_from():
    size = 32
    x, y = np.meshgrid(*(np.arange(size) - (size - 1) / 2,) * 2)

    def wave(x, y):
        return np.stack([np.sin(0.2 * x + 0.1 * y), np.cos(0.15 * x - 0.2 * y)], axis=-1)

    change = change_of([0.8, 0.7, -0.9, 0.4, 0.3, -0.2])
    source = np.asarray(origins(change, jnp.float32(np.stack([x.ravel(), y.ravel()])), (size, size)))
    inside = (np.abs(source).max(axis=0) < size / 2 - 4).reshape(size, size)
    assert inside.mean() > 0.3
    got = moved(wave(x, y).astype(np.float32), change)
    np.testing.assert_allclose(got[inside], wave(*source.reshape(2, size, size))[inside], atol=0.01)


def test_changes_have_their_probabilities_and_are_told():
    p, count = 0.12, 4000
    keys = jax.random.split(jax.random.key(0), count)
    changes = jax.vmap(lambda key: draw_change(key, p))(keys)
    numbers = np.asarray(jax.vmap(told)(changes))
    assert numbers.shape == (count, SIZE)
    shares = {0: 0.5, 1: p / 2, 2: p, 4: p, 5: p, 6: p / 2, 7: p, 8: p}
    for column, share in shares.items():
        assert scipy.stats.binomtest(int((numbers[:, column] != 0).sum()), count, share).pvalue > 1e-3, column
    np.testing.assert_allclose(numbers[:, 3], np.cos(changes.angle) - 1, atol=1e-6)
    np.testing.assert_allclose(np.hypot(numbers[:, 5], numbers[:, 6]), np.abs(changes.stretch), atol=1e-5)
    for values in (changes.scale, changes.stretch, changes.shift[:, 0]):
        drawn = np.asarray(values)[np.asarray(values) != 0]
        assert scipy.stats.kstest(drawn, 'norm').pvalue > 1e-3
    assert not np.asarray(told(NONE)).any()


def test_without_other_changes_half_of_the_images_are_mirrored():
    before = np.stack([image(6, 6)] * 16)
    after, numbers = augment(jnp.asarray(before), jax.random.split(jax.random.key(0), 16), 0.0)
    mirrored = np.asarray(numbers[:, 0]) == 1
    assert 0 < mirrored.sum() < 16
    assert not np.asarray(numbers[:, 1:]).any()
    np.testing.assert_allclose(np.asarray(after)[mirrored], before[mirrored][:, :, ::-1], atol=2e-6)
    np.testing.assert_allclose(np.asarray(after)[~mirrored], before[~mirrored], atol=2e-6)
