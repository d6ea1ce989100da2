import jax
import jax.numpy as jnp
import pytest

from cfg.models.flops import forward_flops, guided_flops, matmul_flops
from cfg.models.unet import UNet
from cfg.settings.data import spec_of
from cfg.settings.networks import build_network
from configs import imagenet64, imagenet128


def test_products_and_convolutions_are_counted_by_hand():
    a, b = jax.ShapeDtypeStruct((4, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
    assert matmul_flops(lambda a, b: jnp.tanh(a @ b) + 1, a, b) == 2 * 4 * 5 * 7
    x, k = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((3, 3, 3, 6), jnp.float32)

    def conv(x, k):
        return jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    assert matmul_flops(conv, x, k) == 2 * (2 * 8 * 8) * (3 * 3 * 3 * 6)


def test_loops_branches_and_inner_functions_are_counted():
    a = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    product = 2 * 4**3

    def loop(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, length=10)[0]

    assert matmul_flops(jax.jit(loop), a) == 10 * product
    assert matmul_flops(jax.checkpoint(lambda a: a @ a), a) == product
    assert matmul_flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a), a) == 2 * product


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(('module', 'published'), [(imagenet64, 219.3e9), (imagenet128, 613.6e9)])
def test_the_imagenet_networks_take_what_was_counted_in_the_released_ones(module, published, dtype):
    config = module.get_config()
    config.model.dtype = dtype
    spec = spec_of(config)
    assert forward_flops(build_network(config, spec), spec.image_shape) == pytest.approx(published, rel=3e-4)


def test_two_labels_cost_another_decoder_counted_by_hand():
    """One resolution of 4x4, 8 channels: two blocks and the last convolution on the way up, without attention."""
    network = UNet(
        out_channels=3,
        num_classes=2,
        channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        num_heads=2,
        head_channels=0,
        norm_groups=4,
    )
    plain = forward_flops(network, (4, 4, 3))
    assert guided_flops(network, (4, 4, 3)) == 2 * plain
    pixels, emb = 16, 32
    # Two 3x3 convolutions, scale and shift from the embedding, and the skip from 16 joined channels to 8.
    block = pixels * 9 * (16 * 8 + 8 * 8) + emb * 16 + pixels * 16 * 8
    decoder = 2.0 * (2 * block + pixels * 9 * 8 * 3)
    assert forward_flops(network.clone(label_in='decoder'), (4, 4, 3)) == plain
    assert guided_flops(network.clone(label_in='decoder'), (4, 4, 3)) == plain + decoder
