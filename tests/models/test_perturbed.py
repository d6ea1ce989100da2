"""Attention made worse for guidance: which blocks, against diffusers' processor, scipy's filter and float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, PAGIdentitySelfAttnProcessor2_0
from scipy import ndimage, special

from cfg.diffusion.denoiser import Perturbation
from cfg.models.attention import blur
from cfg.models.blocks import AttentionBlock
from cfg.models.unet import UNet
from tests.models.test_unet import ADM64, SMALL, randomised, small_fixture  # noqa: F401  the fixture `small`

HEADS, CHANNELS = 2, 8


@pytest.fixture(scope='module', name='block')
def block_fixture():
    """One block with its parameters, an input of 3 x 4 positions, and the queries, keys and values in float64."""
    block = AttentionBlock(num_heads=HEADS, norm_groups=4, dtype=jnp.float32)
    x = np.random.default_rng(1).standard_normal((2, 3, 4, CHANNELS)).astype(np.float32)
    params = randomised(block.init(jax.random.key(0), x))
    return block, params, x


def attended(block, params, x):
    """The same block of diffusers: the plain path, and the one with identity attention."""
    peer = Attention(
        CHANNELS,
        heads=HEADS,
        dim_head=CHANNELS // HEADS,
        bias=True,
        norm_num_groups=block.norm_groups,
        eps=1e-5,
        residual_connection=True,
        processor=PAGIdentitySelfAttnProcessor2_0(),
    )
    of = jax.tree.map(lambda leaf: torch.tensor(np.array(leaf)), params['params'])
    parts = [part.T for part in of['qkv']['kernel'].split(CHANNELS, dim=1)], of['qkv']['bias'].split(CHANNELS)
    with torch.no_grad():
        for layer, kernel, bias in zip((peer.to_q, peer.to_k, peer.to_v), *parts, strict=True):
            layer.weight.copy_(kernel)
            layer.bias.copy_(bias)
        peer.to_out[0].weight.copy_(of['proj']['kernel'].T)
        peer.to_out[0].bias.copy_(of['proj']['bias'])
        peer.group_norm.weight.copy_(of['norm']['scale'])
        peer.group_norm.bias.copy_(of['norm']['bias'])
        both = peer(torch.tensor(x).movedim(-1, 1).repeat(2, 1, 1, 1)).movedim(1, -1)
    return both.numpy().reshape(2, *x.shape)


def test_identity_attention_is_that_of_diffusers(block):
    block, params, x = block
    plain, identity = attended(block, params, x)
    np.testing.assert_allclose(block.apply(params, x), plain, rtol=0, atol=1e-5)
    np.testing.assert_allclose(block.apply(params, x, Perturbation(1)), identity, rtol=0, atol=1e-5)
    assert np.abs(plain - identity).max() > 0.05


@pytest.mark.parametrize('sigma', [0.3, 1.0, 2.0, 100.0, math.inf])
def test_blurred_attention_matches_float64(block, sigma):
    """Queries of all heads blurred along both sides; the kernel is no wider than the map."""
    block, params, x = block
    p = jax.tree.map(np.float64, params['params'])
    grouped = np.float64(x).reshape(2, 12, 4, 2)
    normed = (grouped - grouped.mean((1, 3), keepdims=True)) / np.sqrt(grouped.var((1, 3), keepdims=True) + 1e-5)
    h = normed.reshape(2, 3, 4, 8) * p['norm']['scale'] + p['norm']['bias']
    q, k, v = np.split(h @ p['qkv']['kernel'] + p['qkv']['bias'], 3, axis=-1)
    if math.isinf(sigma):
        q = np.broadcast_to(q.mean((1, 2), keepdims=True), q.shape)
    else:
        width = math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2
        for axis, most in ((1, 3), (2, 5)):  # 3 and 4 made odd
            q = ndimage.gaussian_filter1d(q, sigma, axis, mode='mirror', radius=(min(width, most) - 1) // 2)
    q, k, v = (of.reshape(2, 12, HEADS, -1) for of in (q, k, v))
    weights = special.softmax(np.einsum('nmhc,nkhc->nhmk', q, k) / 2, axis=-1)
    h = np.einsum('nhmk,nkhc->nmhc', weights, v).reshape(x.shape)
    expected = x + h @ p['proj']['kernel'] + p['proj']['bias']
    actual = block.apply(params, x, Perturbation(1, sigma))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    assert np.abs(actual - block.apply(params, x)).max() > 1e-2


@pytest.mark.parametrize('size', [(32, 32), (8, 8), (7, 5), (1, 2)])
@pytest.mark.parametrize('sigma', [0.5, 1.7, 4.0])
def test_the_blur_is_a_convolution_of_torch(size, sigma):
    """In two dimensions at once, as the source does it on square maps."""
    x = np.random.default_rng(2).standard_normal((2, *size, 3))
    kernels = []
    for side in size:
        width = min(math.ceil(6 * sigma) + 1 - math.ceil(6 * sigma) % 2, side - (side % 2 - 1))
        places = np.arange(width) - (width - 1) / 2
        weights = np.exp(-0.5 * (places / sigma) ** 2)
        kernels.append(weights / weights.sum())
    high, wide = (len(kernel) // 2 for kernel in kernels)
    kernel = torch.tensor(np.outer(*kernels)).expand(3, 1, -1, -1)
    padded = torch.nn.functional.pad(torch.tensor(x).movedim(-1, 1), (wide, wide, high, high), mode='reflect')
    expected = torch.nn.functional.conv2d(padded, kernel, groups=3).movedim(1, -1)
    np.testing.assert_allclose(blur(np.float32(x), sigma=sigma), expected, rtol=0, atol=2e-6)


def test_the_default_blocks_of_adm_at_256_are_those_of_the_source():
    """input_blocks 14, 16 and 17, and the middle: by ours the second block at 16x16, both at 8x8, and the middle."""
    adm = ADM64 | {'channels': 32, 'channel_mult': (1, 1, 2, 2, 4, 4), 'num_res_blocks': 2, 'head_channels': 32}
    network = UNet(out_channels=3, **adm, perturbation=Perturbation(4))
    assert list(network.changes(256)) == ['down_4_1', 'down_5_0', 'down_5_1', 'middle']
    assert list(network.clone(perturbation=Perturbation(9)).changes(256))[:3] == ['down_3_0', 'down_3_1', 'down_4_0']
    assert list(network.clone(attention_resolutions=()).changes(256)) == ['middle']
    assert network.clone(perturbation=None).changes(256) == {}


@pytest.mark.parametrize('perturbation', [Perturbation(1), Perturbation(2), Perturbation(1, 1.0)])
@pytest.mark.parametrize('remat', [False, True])
def test_a_perturbed_network_changes_the_blocks_that_it_names(small, perturbation, remat):
    """And those after them; the parameters are the same."""
    params, _, inputs = small

    def attention(network):
        def asked(module, method):
            return method == '__call__' and (module.name or '').endswith('attention')

        _, state = network.apply(params, *inputs, capture_intermediates=asked, mutable='intermediates')
        return {name: value['__call__'][0] for name, value in state['intermediates'].items()}

    plain = attention(SMALL.clone(remat=remat))
    worse = attention(SMALL.clone(remat=remat, perturbation=perturbation))
    same = {name for name in plain if np.array_equal(plain[name], worse[name])}
    assert same == ({'down_1_0_attention'} if perturbation.blocks == 1 else set())
