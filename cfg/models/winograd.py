"""Computes 3x3 convolutions by Winograd's minimal filtering, F(2x2, 3x3) (Lavin & Gray 2016, arXiv 1509.09308).

Sixteen matrix products on a quarter of the positions take 2.25 times fewer multiplications than nine on all of them.
It pays where channels are many; XLA's CPU backend multiplies matrices near the machine's peak but has no such
algorithm, which the libraries under other frameworks have or make up for.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array

# Of the 2-core machine on which it was measured; within a factor of two it makes little difference.
_CACHE_BYTES = 2**24


def _transform_input(d: Sequence[Array]) -> list[Array]:
    """Applies B^T along one axis: four neighbours -> four values."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _transform_kernel(g: Sequence[Array]) -> list[Array]:
    """Applies G along one axis: three weights -> four values."""
    return [g[0], 0.5 * (g[0] + g[1] + g[2]), 0.5 * (g[0] - g[1] + g[2]), g[2]]


def _transform_output(m: Sequence[Array]) -> list[Array]:
    """Applies A^T along one axis: four products -> two results."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def applies(x: Array, features: int) -> bool:
    """Tells whether it was measured to pay for x [N, H, W, C]: float32, many channels, sides that 2x2 tiles cover."""
    _, h, w, c = x.shape
    large = min(c, features) >= 128 and min(h, w) >= 8
    return x.dtype == jnp.float32 and large and h % 2 == 0 and w % 2 == 0


@jax.custom_vjp
def conv(x: Array, kernel: Array) -> Array:
    """Computes the 'same' convolution of x [N, H, W, C], H and W even, with a kernel [3, 3, C, O]: [N, H, W, O].

    On a CPU it is Winograd's, elsewhere XLA's.

    The gradient of x is such a convolution too; that of the kernel is left to XLA.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_in_pieces, default=direct)


def _in_pieces(x: Array, kernel: Array) -> Array:
    """Computes the convolution by tiles, of as many images at a time as the caches hold."""
    images = _images_at_a_time(x)
    if images == len(x):
        return _tiles(x, kernel)
    pieces = x.reshape(-1, images, *x.shape[1:])
    return jax.lax.map(lambda piece: _tiles(piece, kernel), pieces).reshape(*x.shape[:-1], kernel.shape[-1])


def _conv_fwd(x, kernel):
    return conv(x, kernel), (x, kernel)


def _conv_bwd(residuals, dy):
    x, kernel = residuals
    dx = conv(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    (dkernel,) = jax.linear_transpose(lambda kernel: direct(x, kernel), kernel)(dy)
    return dx, dkernel


conv.defvjp(_conv_fwd, _conv_bwd)


def direct(x: Array, kernel: Array) -> Array:
    """Computes the same convolution by XLA, for any size and width of kernel."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _images_at_a_time(x: Array) -> int:
    """Returns the largest divisor of N for which the transformed input, four times its size, stays in the caches."""
    most = max(1, _CACHE_BYTES // (4 * x[0].size * x.dtype.itemsize))
    return next(images for images in range(min(most, len(x)), 0, -1) if len(x) % images == 0)


def _tiles(x: Array, kernel: Array) -> Array:
    n, h, w, c = x.shape
    features = kernel.shape[-1]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = _transform_input([padded[:, i : i + h - 1 : 2] for i in range(4)])
    u = [_transform_kernel(list(g)) for g in _transform_kernel(list(kernel))]
    # Products of row i of the tiles; their sums over rows and columns are the outputs.
    sums = []
    for i in range(4):
        columns = _transform_input([rows[i][:, :, j : j + w - 1 : 2] for j in range(4)])
        sums.append(_transform_output([columns[j].reshape(-1, c) @ u[i][j] for j in range(4)]))
    y = [_transform_output([sums[i][b] for i in range(4)]) for b in range(2)]
    y = jnp.stack([jnp.stack([y[b][a].reshape(n, h // 2, w // 2, features) for b in range(2)], 3) for a in range(2)], 2)
    return y.reshape(n, h, w, features)
