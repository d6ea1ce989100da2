"""The layers with gradients of their own, against flax's and JAX's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.models import layers


def draws(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize('silu', [True, False])
@pytest.mark.parametrize('shape', [(2, 4, 4, 8), (3, 3, 5, 12)])
def test_group_norm_and_its_gradient_are_flaxs(shape, silu):
    """Value and gradients of norm(x) (1 + scale) + shift, in float64 through flax's GroupNorm."""
    n, c = shape[0], shape[-1]
    x, scale, shift, gamma, beta, weights = draws(0, shape, (n, c), (n, c), (c,), (c,), shape)
    x = 3 * x + 5  # a mean that is large against the deviation

    def ours(x, scale, shift, gamma, beta):
        params = {'params': {'scale': gamma, 'bias': beta}}
        return jnp.sum(layers.GroupNorm(4, silu=silu, dtype=jnp.float32).apply(params, x, scale, shift) * weights)

    def flaxs(x, scale, shift, gamma, beta):
        norm = nn.GroupNorm(num_groups=4, epsilon=1e-5, use_fast_variance=False)
        y = norm.apply({'params': {'scale': gamma, 'bias': beta}}, x)
        y = y * (1 + scale[:, None, None]) + shift[:, None, None]
        return jnp.sum((nn.silu(y) if silu else y) * weights)

    inputs = (x, scale, shift, gamma, beta)
    value, grads = jax.value_and_grad(ours, argnums=range(5))(*inputs)
    with jax.enable_x64(True):
        exact = jax.value_and_grad(flaxs, argnums=range(5))(*(jnp.asarray(y, jnp.float64) for y in inputs))
    assert value == pytest.approx(float(exact[0]), rel=1e-4)
    for got, expected in zip(grads, exact[1], strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(('ratio', 'error'), [(0.0, 1e-6), (3.0, 4e-6), (10.0, 4e-5)])
def test_the_variance_of_a_group_norm_is_as_exact_as_the_docs_say(ratio, error):
    """One pass loses (mean / deviation)^2; the bound is that of docs/design.md, twice."""
    (x,) = draws(4, (2, 256, 8))
    x += np.float32(ratio)
    _, variance = layers._moments(jnp.asarray(x), 2)
    exact = x.astype(np.float64).reshape(2, 256, 2, 4).var(axis=(1, 3)).repeat(4, axis=1)
    np.testing.assert_allclose(variance, exact, rtol=error)


def test_group_norm_of_bfloat16_has_float32_statistics():
    """A mean of 100 and a deviation of 1 would be lost in bfloat16's 8 bits of the sum."""
    (x,) = draws(0, (2, 16, 16, 8))
    x = jnp.asarray(x + 100, jnp.bfloat16)
    ones, zeros = jnp.ones((2, 8)), jnp.zeros((2, 8))
    y = layers.normalize(x, ones, zeros, 2, False, jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64).reshape(2, -1, 2, 4)
    exact = (exact - exact.mean((1, 3), keepdims=True)) / np.sqrt(exact.var((1, 3), keepdims=True) + 1e-5)
    assert np.abs(np.asarray(y, np.float64).reshape(exact.shape) - exact).max() < 2e-2
    dx = jax.grad(lambda x: layers.normalize(x, ones, zeros, 2, False, jnp.float32).sum())(x)
    assert dx.dtype == jnp.bfloat16


@pytest.mark.parametrize('width', [1, 3])
def test_conv_and_its_gradient_are_flaxs(width):
    x, weights = draws(1, (2, 4, 6, 3), (2, 4, 6, 5))
    ours, flaxs = layers.Conv(5, width, jnp.float32), nn.Conv(5, (width, width), padding='SAME')
    params = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, flaxs.init(jax.random.key(0), x))
    results = [
        jax.value_and_grad(lambda p, x, layer=layer: jnp.sum(layer.apply(p, x) * weights), argnums=(0, 1))(params, x)
        for layer in (ours, flaxs)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *results)


def test_dense_and_its_gradient_are_flaxs():
    x, weights = draws(2, (2, 7, 3), (2, 7, 5))
    ours, flaxs = layers.Dense(5, jnp.float32), nn.Dense(5)
    params = ours.init(jax.random.key(0), x)
    results = [
        jax.value_and_grad(lambda p, x, layer=layer: jnp.sum(layer.apply(p, x) * weights), argnums=(0, 1))(params, x)
        for layer in (ours, flaxs)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *results)


def test_initial_weights_are_pytorchs_defaults():
    """Uniform in +-1 / sqrt(fan_in), weights and biases; `zero` starts both at 0."""
    x = jnp.ones((1, 4, 4, 16))
    for layer, fan_in in ((layers.Conv(256, 3, jnp.float32), 144), (layers.Dense(4096, jnp.float32), 16)):
        for leaf in jax.tree.leaves(layer.init(jax.random.key(0), x)):
            assert np.abs(leaf).max() <= fan_in**-0.5
            assert np.abs(leaf).max() > 0.95 * fan_in**-0.5
        zero = layer.clone(zero=True).init(jax.random.key(0), x)
        assert not any(leaf.any() for leaf in jax.tree.leaves(zero))


@pytest.mark.parametrize(('change', 'shape'), [(layers.upsample, (2, 3, 4, 2)), (layers.downsample, (2, 6, 4, 2))])
def test_gradients_of_resampling_are_its_transpose(change, shape):
    """<change(x), y> = <x, transpose(y)>, as both are linear."""
    (x,) = draws(0, shape)
    y, transpose = jax.vjp(change, x)
    (weights,) = draws(1, y.shape)
    assert np.sum(y * weights) == pytest.approx(float(np.sum(x * transpose(jnp.asarray(weights))[0])), rel=1e-4)
