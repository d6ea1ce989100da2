"""The Inception network of published FIDs: the TensorFlow graph of 2015-12-05, which is not torchvision's.

It differs from later Inception v3 networks in that its average pools leave the padding out, its last block pools with
max, and it has 1008 classes. Names are those of the PyTorch files that hold it; `cfg/features/inception_weights.py` has
those of the graph.

Batch norm is folded into the convolutions (in float64, when a file is read), so a layer here is a convolution, a bias
and a ReLU. Two identities make it fast without changing it: 1x1 convolutions of one input are one matrix product, and
an average pool may come after a 1x1 convolution, where it has fewer channels to sum.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

SIZE = 299  # pixels of the input, after the resize
NUM_CLASSES = 1008
WIDTH = 2048  # pool features
SPATIAL_CHANNELS = 7
SPATIAL_WIDTH = SPATIAL_CHANNELS * 17 * 17


class InceptionOutput(NamedTuple):
    """Holds the outputs of Inception that published metrics need, of N images, float32."""

    pool: Array  # [N, 2048], `pool_3` of the graph (FID, KID, precision, recall)
    spatial: Array  # [N, 2023], the first 7 channels of `mixed_6/conv` of the graph, [17, 17, 7] flattened (sFID)
    logits: Array  # [N, 1008], the pool features times the softmax weights, without the bias (inception score)


def resize_tf1(images: Array, size: tuple[int, int]) -> Array:
    """Resizes bilinearly as TensorFlow 1 does: corners not aligned, no half-pixel centres, no antialiasing.

    Output pixel i reads input position i * (input size / output size), as a float32, between its two neighbours. Images
    [N, H, W, C] of any real type become float32 [N, height, width, C].
    """
    x = images.astype(jnp.float32)
    rows, columns = (_interpolation(given, wanted) for given, wanted in zip(x.shape[1:3], size, strict=True))
    # Two products with matrices that have two entries a row.
    x = jnp.einsum('yh,nhwc->nywc', rows, x, precision='highest')
    return jnp.einsum('xw,nywc->nyxc', columns, x, precision='highest')


def _interpolation(given: int, wanted: int) -> np.ndarray:
    """Returns the weights of the input pixels for each output pixel, [wanted, given] float32."""
    position = np.arange(wanted, dtype=np.float32) * np.float32(given / wanted)
    low = np.minimum(np.floor(position).astype(int), given - 1)
    high = np.minimum(low + 1, given - 1)
    weights = np.zeros((wanted, given), np.float32)
    fraction = position - low.astype(np.float32)
    np.add.at(weights, (np.arange(wanted), low), 1 - fraction)
    np.add.at(weights, (np.arange(wanted), high), fraction)
    return weights


def max_pool(x: Array, stride: int) -> Array:
    """Takes maxima of 3x3 pixels, with stride 2 and no padding or with stride 1 and padding."""
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    # One axis after the other as maxima of shifted views: many times faster than a window reduction on a CPU.
    for axis in (1, 2):
        parts = [jax.lax.slice_in_dim(x, i, x.shape[axis] - 2 + i, stride, axis) for i in range(3)]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x


def mean_pool(x: Array) -> Array:
    """Takes means of 3x3 pixels with stride 1, of those that are there: the padding counts for nothing."""
    for axis in (1, 2):
        size = x.shape[axis]
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded = jnp.pad(x, padding)
        x = sum(jax.lax.slice_in_dim(padded, i, size + i, 1, axis) for i in range(3))
        there = np.full(size, 3.0, np.float32)
        there[[0, -1]] = 2.0
        x = x / there.reshape([-1 if i == axis else 1 for i in range(4)])
    return x


class Conv(nn.Module):
    """Applies a convolution with its bias, and a ReLU."""

    features: int  # channels of the output
    kernel_size: tuple[int, int]  # (height, width)
    stride: int = 1  # of both axes
    padding: str = 'SAME'  # 'SAME' or 'VALID'

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        kernel, bias = _kernel_and_bias(self, (*self.kernel_size, x.shape[-1], self.features))
        x = jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), self.padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        return nn.relu(x + bias)


class Point(nn.Module):
    """Holds the parameters of a 1x1 convolution."""

    features: int  # channels of the output

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        """Returns (kernel [1, 1, channels, features], bias [features])."""
        return _kernel_and_bias(self, (1, 1, channels, self.features))


def _kernel_and_bias(module: nn.Module, shape: tuple[int, int, int, int]) -> tuple[Array, Array]:
    init = nn.initializers.lecun_normal()
    return module.param('kernel', init, shape), module.param('bias', nn.initializers.zeros, shape[-1:])


class Block(nn.Module):
    """A block begins all its branches with 1x1 convolutions."""

    def begin(self, x: Array, widths: Mapping[str, int], *, pooled: str = '') -> dict[str, Array]:
        """Applies 1x1 convolutions, whose channels `widths` tells by name, to one input [N, H, W, C] as one product.

        The one called `pooled` takes the mean pool of the input; a mean and a linear map may change places.
        """
        parts = [Point(width, name=name)(x.shape[-1]) for name, width in widths.items()]
        kernel = jnp.concatenate([kernel[0, 0] for kernel, _ in parts], axis=1)
        h = x @ kernel + jnp.concatenate([bias for _, bias in parts])
        ends = np.cumsum(list(widths.values()))
        outputs = dict(zip(widths, jnp.split(h, ends[:-1], axis=-1), strict=True))
        return {name: nn.relu(mean_pool(h) if name == pooled else h) for name, h in outputs.items()}


class BlockA(Block):
    """This block works at 35x35 positions."""

    pool_features: int  # channels of the pool branch

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, 35, 35, C] to [N, 35, 35, 224 + pool_features]."""
        widths = {'branch1x1': 64, 'branch5x5_1': 48, 'branch3x3dbl_1': 64, 'branch_pool': self.pool_features}
        h = self.begin(x, widths, pooled='branch_pool')
        five = Conv(64, (5, 5), name='branch5x5_2')(h['branch5x5_1'])
        three = Conv(96, (3, 3), name='branch3x3dbl_2')(h['branch3x3dbl_1'])
        three = Conv(96, (3, 3), name='branch3x3dbl_3')(three)
        return jnp.concatenate([h['branch1x1'], five, three, h['branch_pool']], axis=-1)


class BlockB(Block):
    """This block goes from 35x35 to 17x17 positions."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, 35, 35, 288] to [N, 17, 17, 768]."""
        single = Conv(384, (3, 3), 2, 'VALID', name='branch3x3')(x)
        double = self.begin(x, {'branch3x3dbl_1': 64})['branch3x3dbl_1']
        double = Conv(96, (3, 3), name='branch3x3dbl_2')(double)
        double = Conv(96, (3, 3), 2, 'VALID', name='branch3x3dbl_3')(double)
        return jnp.concatenate([single, double, max_pool(x, 2)], axis=-1)


class BlockC(Block):
    """This block works at 17x17 positions."""

    channels: int  # between the factors of the 7x7 convolutions

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Maps [N, 17, 17, 768] to (the same shape, the 1x1 branch [N, 17, 17, 192])."""
        c = self.channels
        widths = {'branch1x1': 192, 'branch7x7_1': c, 'branch7x7dbl_1': c, 'branch_pool': 192}
        h = self.begin(x, widths, pooled='branch_pool')
        single = Conv(c, (1, 7), name='branch7x7_2')(h['branch7x7_1'])
        single = Conv(192, (7, 1), name='branch7x7_3')(single)
        double = Conv(c, (7, 1), name='branch7x7dbl_2')(h['branch7x7dbl_1'])
        double = Conv(c, (1, 7), name='branch7x7dbl_3')(double)
        double = Conv(c, (7, 1), name='branch7x7dbl_4')(double)
        double = Conv(192, (1, 7), name='branch7x7dbl_5')(double)
        return jnp.concatenate([h['branch1x1'], single, double, h['branch_pool']], axis=-1), h['branch1x1']


class BlockD(Block):
    """This block goes from 17x17 to 8x8 positions."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, 17, 17, 768] to [N, 8, 8, 1280]."""
        h = self.begin(x, {'branch3x3_1': 192, 'branch7x7x3_1': 192})
        three = Conv(320, (3, 3), 2, 'VALID', name='branch3x3_2')(h['branch3x3_1'])
        seven = Conv(192, (1, 7), name='branch7x7x3_2')(h['branch7x7x3_1'])
        seven = Conv(192, (7, 1), name='branch7x7x3_3')(seven)
        seven = Conv(192, (3, 3), 2, 'VALID', name='branch7x7x3_4')(seven)
        return jnp.concatenate([three, seven, max_pool(x, 2)], axis=-1)


class BlockE(Block):
    """This block works at 8x8 positions."""

    pools_with_max: bool  # in the pool branch, instead of the mean

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, 8, 8, C] to [N, 8, 8, 2048]."""
        widths = {'branch1x1': 320, 'branch3x3_1': 384, 'branch3x3dbl_1': 448}
        if self.pools_with_max:
            h = self.begin(x, widths) | self.begin(max_pool(x, 1), {'branch_pool': 192})
        else:
            h = self.begin(x, widths | {'branch_pool': 192}, pooled='branch_pool')
        double = Conv(384, (3, 3), name='branch3x3dbl_2')(h['branch3x3dbl_1'])
        ends = []
        for y, name in ((h['branch3x3_1'], 'branch3x3_2'), (double, 'branch3x3dbl_3')):
            ends += [Conv(384, (1, 3), name=f'{name}a')(y), Conv(384, (3, 1), name=f'{name}b')(y)]
        return jnp.concatenate([h['branch1x1'], *ends, h['branch_pool']], axis=-1)


class Inception(nn.Module):
    """Runs the whole network, from images to features."""

    @nn.compact
    def __call__(self, images: Array) -> InceptionOutput:
        """Takes [N, H, W, 3] with grey levels 0..255, uint8 or float, of any size."""
        x = (resize_tf1(images, (SIZE, SIZE)) - 128.0) / 128.0
        x = Conv(32, (3, 3), 2, 'VALID', name='Conv2d_1a_3x3')(x)
        x = Conv(32, (3, 3), 1, 'VALID', name='Conv2d_2a_3x3')(x)
        x = max_pool(Conv(64, (3, 3), name='Conv2d_2b_3x3')(x), 2)
        x = Conv(80, (1, 1), name='Conv2d_3b_1x1')(x)
        x = max_pool(Conv(192, (3, 3), 1, 'VALID', name='Conv2d_4a_3x3')(x), 2)
        x = BlockA(32, name='Mixed_5b')(x)
        x = BlockA(64, name='Mixed_5c')(x)
        x = BlockA(64, name='Mixed_5d')(x)
        x = BlockB(name='Mixed_6a')(x)
        x, _ = BlockC(128, name='Mixed_6b')(x)
        x, _ = BlockC(160, name='Mixed_6c')(x)
        x, spatial = BlockC(160, name='Mixed_6d')(x)
        x, _ = BlockC(192, name='Mixed_6e')(x)
        x = BlockD(name='Mixed_7a')(x)
        x = BlockE(pools_with_max=False, name='Mixed_7b')(x)
        x = BlockE(pools_with_max=True, name='Mixed_7c')(x)
        pool = jnp.mean(x, axis=(1, 2))
        weights = self.param('logits', nn.initializers.lecun_normal(), (WIDTH, NUM_CLASSES))
        return InceptionOutput(pool, spatial[..., :SPATIAL_CHANNELS].reshape(len(x), -1), pool @ weights)


def inception_shapes() -> Any:
    """Returns the shapes and types of the network's parameters, without computing any."""
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), image)['params']
