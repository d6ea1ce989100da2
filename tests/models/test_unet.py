import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from cfg.models import layers, time
from cfg.models.blocks import AttentionBlock, ResBlock, dropout
from cfg.models.unet import UNet

ADM64 = {
    'num_classes': 1000,
    'channels': 192,
    'channel_mult': (1, 2, 3, 4),
    'num_res_blocks': 3,
    'attention_resolutions': (32, 16, 8),
    'head_channels': 64,
}
ADM128 = ADM64 | {'channels': 256, 'channel_mult': (1, 1, 2, 3, 4), 'num_res_blocks': 2, 'num_heads': 4}
SMALL = UNet(
    out_channels=2,
    num_classes=3,
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_heads=2,
    head_channels=0,
    norm_groups=4,
    dropout=0.5,
)


def randomised(params, seed=0):
    """Parameters with nothing left at zero, so that every path shows in the output."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32), params)


@pytest.fixture(scope='module', name='small')
def small_fixture():
    z = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    logsnr = jnp.array([-20.0, -1.0, 3.0, 20.0])
    labels = jnp.array([0, 1, 2, 3])
    params = randomised(jax.jit(SMALL.init)(jax.random.key(0), z, logsnr, labels))
    return params, jax.jit(SMALL.apply), (z, logsnr, labels)


@pytest.mark.parametrize(
    ('settings', 'size', 'out_channels', 'published'),
    [
        (ADM64, 64, 3, 295_899_267),
        (ADM64, 64, 6, 295_904_454),
        (ADM128, 128, 3, 421_522_691),
        (ADM128, 128, 6, 421_529_606),
    ],
)
def test_the_imagenet_networks_have_adms_number_of_parameters(settings, size, out_channels, published):
    """Counted in the released PyTorch network; ours has one more row of the class embedding."""
    network = UNet(out_channels=out_channels, **settings)
    z = jnp.zeros((1, size, size, 3))
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), z, jnp.zeros(1), jnp.zeros(1, jnp.int32)))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert count == published + 4 * settings['channels']


def test_output_is_zero_at_the_start():
    z = jnp.ones((2, 8, 8, 2))
    labels = jnp.zeros(2, jnp.int32)
    output, params = jax.jit(SMALL.init_with_output)(jax.random.key(0), z, jnp.zeros(2), labels)
    assert output.shape == (2, 8, 8, 2)
    assert not output.any()
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}


def test_every_input_matters_and_no_example_sees_another(small):
    params, apply, (z, logsnr, labels) = small
    output = apply(params, z, logsnr, labels)
    assert np.isfinite(output).all()
    for changed in (
        apply(params, z.at[0].add(0.1), logsnr, labels),
        apply(params, z, logsnr.at[0].add(0.5), labels),
        apply(params, z, logsnr, labels.at[0].set(3)),
    ):
        assert np.abs(changed[0] - output[0]).max() > 1e-4
        np.testing.assert_allclose(changed[1:], output[1:], atol=1e-5)


def test_one_level_for_all_is_the_same_as_one_each(small):
    params, apply, (z, _, labels) = small
    one = apply(params, z, jnp.array(0.5), labels)
    np.testing.assert_allclose(one, apply(params, z, jnp.full(4, 0.5), labels), atol=1e-6)


def test_dropout_masks_follow_their_keys_not_the_batch(small):
    params, apply, (z, logsnr, labels) = small
    keys = jax.random.split(jax.random.key(5), 4)
    output = apply(params, z, logsnr, labels, keys)
    assert np.abs(output - apply(params, z, logsnr, labels)).max() > 1e-3
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        apply(params, z[order], logsnr[order], labels[order], keys[order]), output[order], atol=1e-5
    )


DECODER = SMALL.clone(label_in='decoder')


@pytest.mark.parametrize(
    ('label_in', 'dtype', 'bound'),
    [('everywhere', 'float32', 1e-6), ('decoder', 'float32', 1e-6), ('decoder', 'bfloat16', 2e-2)],
)
def test_both_predictions_are_those_of_two_calls(small, label_in, dtype, bound):
    params, _, (z, logsnr, labels) = small
    exact = SMALL.clone(label_in=label_in)
    network = exact.clone(dtype=jnp.dtype(dtype))
    others = jnp.array([3, 3, 1, 0])
    got = jax.jit(lambda *inputs: network.apply(*inputs, method='both'))(params, z, logsnr, labels, others)
    apply = jax.jit(exact.apply)
    for actual, asked in zip(got, (labels, others), strict=True):
        expected = apply(params, z, logsnr, asked)
        assert actual.dtype == expected.dtype == np.float32
        assert np.linalg.norm(actual - expected) < bound * np.linalg.norm(expected)
    assert np.abs(got[0] - got[1])[labels != others].max() > 1e-2


def test_the_encoder_does_not_see_the_label(small):
    """Of a whole call: what each block returns is the same for other labels in the encoder, and not in the decoder."""
    params, _, (z, logsnr, labels) = small

    @functools.partial(jax.jit, static_argnums=0)
    def blocks(network, labels):
        def asked(module, method):
            return method == '__call__' and (module.name or '').startswith(('conv_in', 'down', 'middle', 'up'))

        _, state = network.apply(params, z, logsnr, labels, capture_intermediates=asked, mutable='intermediates')
        return {name: value['__call__'][0] for name, value in state['intermediates'].items() if '__call__' in value}

    for network in (DECODER, SMALL):
        first, second = blocks(network, labels), blocks(network, labels[::-1])
        same = {name for name in first if np.array_equal(first[name], second[name])}
        encoder = {name for name in first if not name.startswith('up')}
        assert (len(encoder), len(first) - len(encoder)) == (8, 7)
        assert same == (encoder if network is DECODER else {'conv_in'})


def test_the_label_embedding_learns_through_the_decoder_alone(small):
    """With dropout and rematerialisation: its gradient is the one with the encoder's output held constant."""
    params, _, (z, logsnr, labels) = small
    keys = jax.random.split(jax.random.key(5), 4)

    def embed(module, logsnr, labels):
        level = module.embed_level(logsnr)
        return level, level + module.classes(labels)

    network = DECODER.clone(remat=True)

    def of_rows(rows):
        return {'params': params['params'] | {'classes': {'embedding': rows}}}

    def of_call(rows):
        return jnp.sum(jnp.square(network.apply(of_rows(rows), z, logsnr, labels, keys)))

    def of_decoder(rows):
        level, emb = network.apply(of_rows(rows), logsnr, labels, method=embed)
        held = jax.lax.stop_gradient(network.apply(of_rows(rows), z, level, keys, method='encode'))
        return jnp.sum(jnp.square(network.apply(of_rows(rows), *held, emb, keys, method='decode')))

    rows = params['params']['classes']['embedding']
    whole, held = (jax.jit(jax.grad(loss))(rows) for loss in (of_call, of_decoder))
    assert np.abs(whole).max() > 1e-2
    np.testing.assert_allclose(whole, held, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


def test_where_the_label_goes_changes_no_parameter(small):
    params, apply, (z, logsnr, labels) = small
    shapes = [jax.eval_shape(network.init, jax.random.key(0), z, logsnr, labels) for network in (SMALL, DECODER)]
    assert shapes[0] == shapes[1]
    without = jax.tree.map(jnp.zeros_like, params['params']['classes'])
    params = {'params': params['params'] | {'classes': without}}
    np.testing.assert_array_equal(jax.jit(DECODER.apply)(params, z, logsnr, labels), apply(params, z, logsnr, labels))
    with pytest.raises(ValueError, match='everywhere, decoder'):
        jax.eval_shape(SMALL.clone(label_in='middle').apply, params, z, logsnr, labels)


def test_dropout_keeps_the_mean_and_the_rate():
    x = jnp.ones((4, 64, 64))
    y = dropout(x, jax.random.split(jax.random.key(0), 4), 0.25)
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.75)}
    # Five standard errors of 16 384 draws.
    assert abs(float((y == 0).mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / y.size)
    assert not np.array_equal(y[0], y[1])


def test_bfloat16_is_close_to_float32(small):
    params, apply, inputs = small
    output = np.asarray(apply(params, *inputs))
    half = np.asarray(jax.jit(SMALL.clone(dtype=jnp.bfloat16).apply)(params, *inputs))
    assert half.dtype == np.float32
    assert np.linalg.norm(half - output) / np.linalg.norm(output) < 2e-2


def test_time_is_the_time_of_the_schedule():
    assert time.logsnr_to_time(jnp.array(0.0)) == pytest.approx(500.0)
    logsnr = np.linspace(-20, 20, 41)
    expected = np.arctan(np.exp(-logsnr / 2)) * 2 / np.pi * 1000
    np.testing.assert_allclose(time.logsnr_to_time(jnp.array(logsnr)), expected, rtol=2e-5)


@pytest.mark.parametrize('dim', [6, 7])
def test_sinusoidal_embedding(dim):
    times = np.array([0.0, 1.5, 1000.0])
    got = time.sinusoidal_embedding(jnp.array(times), dim)
    frequencies = 10000.0 ** (-np.arange(3) / 3)
    expected = np.concatenate([np.cos(times[:, None] * frequencies), np.sin(times[:, None] * frequencies)], axis=1)
    np.testing.assert_allclose(got[:, :6], expected, atol=1e-4)
    assert got.shape == (3, dim)


def test_resampling():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    up = np.asarray(layers.upsample(x))
    assert np.array_equal(up, np.kron(x.transpose(0, 3, 1, 2), np.ones((2, 2))).transpose(0, 2, 3, 1))
    np.testing.assert_allclose(layers.downsample(up), x, rtol=1e-6)
    down = np.asarray(layers.downsample(x))
    np.testing.assert_allclose(down[1, 0, 2], x[1, 0:2, 4:6].mean(axis=(0, 1)), rtol=1e-5)


def group_norm(x, groups, p):
    n, h, w, c = x.shape
    g = x.reshape(n, h * w, groups, c // groups)
    g = (g - g.mean(axis=(1, 3), keepdims=True)) / np.sqrt(g.var(axis=(1, 3), keepdims=True) + 1e-5)
    return g.reshape(x.shape) * p['scale'] + p['bias']


def silu(x):
    return x / (1 + np.exp(-x))


def conv(x, p):
    kernel = p['kernel']
    out = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for n in range(len(x)):
        for i in range(kernel.shape[2]):
            for o in range(kernel.shape[3]):
                out[n, :, :, o] += correlate2d(x[n, :, :, i], kernel[:, :, i, o], mode='same')
    return out + p['bias']


def dense(x, p):
    return x @ p['kernel'] + p['bias']


def float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)['params']


@pytest.mark.parametrize('resample', ['', 'up', 'down'])
def test_res_block_against_float64(resample):
    """norm, SiLU, resample, conv; scale-shift norm, SiLU, conv; plus the resampled, projected input."""
    rng = np.random.default_rng(0)
    x, emb = rng.normal(size=(2, 4, 4, 4)), rng.normal(size=(2, 5))
    channels = 4 if resample else 6
    block = ResBlock(channels, dropout=0.0, norm_groups=2, dtype=jnp.float32, resample=resample)
    inputs = (jnp.array(x, jnp.float32), jnp.array(emb, jnp.float32), None)
    params = randomised(block.init(jax.random.key(0), *inputs))
    p = float64(params)

    change = {
        '': lambda y: y,
        'up': lambda y: y.repeat(2, axis=1).repeat(2, axis=2),
        'down': lambda y: y.reshape(2, 2, 2, 2, 2, 4).mean(axis=(2, 4)),
    }[resample]
    h = conv(change(silu(group_norm(x, 2, p['norm_in']))), p['conv_in'])
    scale, shift = np.split(dense(silu(emb), p['emb'])[:, None, None], 2, axis=-1)
    h = conv(silu(group_norm(h, 2, p['norm_out']) * (1 + scale) + shift), p['conv_out'])
    expected = (change(x) if resample else conv(x, p['skip'])) + h
    np.testing.assert_allclose(block.apply(params, *inputs), expected, atol=2e-5)


def test_attention_against_float64():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 3, 4, 8))
    block = AttentionBlock(num_heads=2, norm_groups=4, dtype=jnp.float32)
    params = randomised(block.init(jax.random.key(0), jnp.array(x, jnp.float32)))
    p = float64(params)

    qkv = dense(group_norm(x, 4, p['norm']).reshape(2, 12, 8), p['qkv'])
    heads = []
    for head in range(2):
        # q of all heads, then k, then v; a head has 4 channels.
        q, k, v = (qkv[:, :, part * 8 + head * 4 : part * 8 + head * 4 + 4] for part in range(3))
        weights = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(4))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ v)
    expected = x + dense(np.concatenate(heads, axis=-1), p['proj']).reshape(x.shape)
    np.testing.assert_allclose(block.apply(params, jnp.array(x, jnp.float32)), expected, atol=2e-5)


def test_rematerialisation_changes_no_gradient(small):
    """With dropout, whose masks must be the same when a block is computed again."""
    params, _, (z, logsnr, labels) = small
    keys = jax.random.split(jax.random.key(5), 4)

    def gradient(network):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(network.apply(p, z, logsnr, labels, keys)))))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max() + 1e-6),
        gradient(SMALL.clone(remat=True)),
        gradient(SMALL),
    )


def test_the_time_function_is_what_the_network_is_told(small):
    params, apply, (z, logsnr, labels) = small
    shifted = SMALL.clone(time_fn=lambda logsnr: time.logsnr_to_time(logsnr + 1))
    np.testing.assert_allclose(
        jax.jit(shifted.apply)(params, z, logsnr - 1, labels), apply(params, z, logsnr, labels), atol=1e-4
    )
