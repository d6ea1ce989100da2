"""Winograd's convolution against XLA's, value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfg.models import layers, winograd


def results(convolve, x, kernel, weights):
    return jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(convolve(x, k) * weights), argnums=(0, 1)))(x, kernel)


def inputs(n, h, w, c, features):
    rng = np.random.default_rng(n * h + w)
    shapes = (n, h, w, c), (3, 3, c, features), (n, h, w, features)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def assert_same(got, expected):
    (value, grads), (exact, exact_grads) = got, expected
    assert value == pytest.approx(float(exact), rel=1e-4, abs=1e-3)
    for grad, want in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(grad, want, atol=2e-5 * max(1.0, np.abs(want).max()))


@settings(max_examples=6)
@given(n=st.integers(1, 4), h=st.integers(1, 5), w=st.integers(1, 5), c=st.integers(1, 4), features=st.integers(1, 4))
def test_value_and_gradients_are_those_of_the_direct_convolution(n, h, w, c, features):
    arrays = inputs(n, 2 * h, 2 * w, c, features)
    assert_same(results(winograd.conv, *arrays), results(winograd.direct, *arrays))


@pytest.mark.parametrize(('images', 'cached'), [(3, 3), (2, 2), (1, 0)])
def test_images_in_pieces_are_the_images_at_once(monkeypatch, images, cached):
    x, kernel, weights = inputs(6, 8, 8, 4, 5)
    image = 4 * (x[0].nbytes + weights[0].nbytes)  # the transforms of one image in the backward pass
    monkeypatch.setattr(winograd, '_CACHE_BYTES', cached * image)
    assert [len(a) for a in winograd._in_caches(x, weights)] == [6 // images] * 2

    def traced_anew(x, kernel):
        return winograd.conv(x, kernel)  # with this size

    assert_same(results(traced_anew, x, kernel, weights), results(winograd.direct, x, kernel, weights))


def test_the_loops_take_two_pieces_at_least():
    assert [len(a) for a in winograd._in_caches(*inputs(6, 8, 8, 4, 5)[:1])] == [2]
    assert [len(a) for a in winograd._in_caches(*inputs(1, 8, 8, 4, 5)[:1])] == [1]


@pytest.mark.parametrize(
    ('shape', 'features', 'dtype', 'fast'),
    [
        ((16, 8, 8, 128), 128, jnp.float32, True),
        ((64, 4, 4, 128), 128, jnp.float32, True),
        ((16, 8, 8, 128), 64, jnp.float32, False),
        ((16, 8, 9, 128), 128, jnp.float32, False),
        ((16, 4, 4, 256), 256, jnp.float32, False),
        ((16, 8, 8, 128), 128, jnp.bfloat16, False),
    ],
)
def test_where_it_is_used(shape, features, dtype, fast, monkeypatch):
    used = []
    monkeypatch.setattr(winograd, 'conv', lambda *inputs: used.append(True) or winograd.direct(*inputs))
    conv = layers.Conv(features, 3, dtype)
    jax.eval_shape(lambda: conv.init(jax.random.key(0), jnp.zeros(shape, dtype)))
    assert bool(used) == fast
