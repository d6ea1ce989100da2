"""Winograd's convolution against XLA's, value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfg.models import layers, winograd


@settings(max_examples=6)
@given(n=st.integers(1, 4), h=st.integers(1, 5), w=st.integers(1, 5), c=st.integers(1, 4), features=st.integers(1, 4))
def test_value_and_gradients_are_those_of_the_direct_convolution(n, h, w, c, features):
    rng = np.random.default_rng(n * h + w)
    x = rng.normal(size=(n, 2 * h, 2 * w, c)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, c, features)).astype(np.float32)
    weights = rng.normal(size=(n, 2 * h, 2 * w, features)).astype(np.float32)

    def results(convolve):
        return jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(convolve(x, k) * weights), argnums=(0, 1)))(x, kernel)

    (value, grads), (expected, exact) = results(winograd.conv), results(winograd.direct)
    assert value == pytest.approx(float(expected), rel=1e-4, abs=1e-3)
    for got, want in zip(grads, exact, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * max(1.0, np.abs(want).max()))


def test_images_in_pieces_are_the_images_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 8, 8, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 5)), jnp.float32)
    expected = winograd.direct(x, kernel)
    for images, size in ((6, 2**24), (3, 4 * 4 * x[0].nbytes), (1, 1)):
        monkeypatch.setattr(winograd, '_CACHE_BYTES', size)
        assert winograd._images_at_a_time(x) == images
        convolve = jax.jit(lambda x, kernel: winograd.conv(x, kernel))  # traced anew, with this size
        np.testing.assert_allclose(convolve(x, kernel), expected, atol=1e-4)


@pytest.mark.parametrize(
    ('shape', 'features', 'dtype', 'fast'),
    [
        ((1, 8, 8, 128), 128, jnp.float32, True),
        ((1, 8, 8, 128), 64, jnp.float32, False),
        ((1, 8, 9, 128), 128, jnp.float32, False),
        ((1, 4, 4, 256), 256, jnp.float32, False),
        ((1, 8, 8, 128), 128, jnp.bfloat16, False),
    ],
)
def test_where_it_is_used(shape, features, dtype, fast, monkeypatch):
    used = []
    monkeypatch.setattr(winograd, 'conv', lambda *inputs: used.append(True) or winograd.direct(*inputs))
    conv = layers.Conv(features, 3, dtype)
    jax.eval_shape(lambda: conv.init(jax.random.key(0), jnp.zeros(shape, dtype)))
    assert bool(used) == fast
