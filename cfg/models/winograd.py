"""Computes 3x3 convolutions by Winograd's minimal filtering, F(2x2, 3x3) (Lavin & Gray 2016, arXiv 1509.09308).

Sixteen matrix products on a quarter of the positions take 2.25 times fewer multiplications than nine on all of them.
It pays where channels are many; XLA's CPU backend multiplies matrices near the machine's peak but has no such
algorithm, which the libraries under other frameworks have or make up for. Its gradient of a kernel reaches half the
rate of its other convolutions, so that this one gains most.
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


def _transform_gradient(dy: Sequence[Array]) -> list[Array]:
    """Applies A along one axis: the gradients of two results -> of four products."""
    return [dy[0], dy[0] + dy[1], dy[0] - dy[1], -dy[1]]


def _gradient_of_kernel(du: Sequence[Array]) -> list[Array]:
    """Applies G^T along one axis: the gradients of four values -> of three weights."""
    middle = 0.5 * (du[1] + du[2])
    return [du[0] + middle, 0.5 * (du[1] - du[2]), middle + du[3]]


def applies(x: Array, features: int) -> bool:
    """Tells whether it was measured to pay for x [N, H, W, C]: float32, much to do, sides that 2x2 tiles cover."""
    n, h, w, c = x.shape
    large = min(c, features) >= 128 and n * h * w >= 1024
    return x.dtype == jnp.float32 and large and h % 2 == 0 and w % 2 == 0


@jax.custom_vjp
def conv(x: Array, kernel: Array) -> Array:
    """Computes the 'same' convolution of x [N, H, W, C], H and W even, with a kernel [3, 3, C, O]: [N, H, W, O].

    On a CPU it is Winograd's, elsewhere XLA's; so are its gradients.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_in_pieces, default=direct)


def _conv_fwd(x, kernel):
    return conv(x, kernel), (x, kernel)


def _conv_bwd(residuals, dy):
    return jax.lax.platform_dependent(*residuals, dy, cpu=_gradients_in_pieces, default=_direct_gradients)


conv.defvjp(_conv_fwd, _conv_bwd)


def _in_pieces(x: Array, kernel: Array) -> Array:
    """Computes the convolution by tiles, of as many images at a time as the caches hold."""
    u = _transformed(kernel)
    (pieces,) = _in_caches(x)
    return jax.lax.map(lambda piece: _tiles(piece, u), pieces).reshape(*x.shape[:-1], kernel.shape[-1])


def _gradients_in_pieces(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """Computes the gradients of x and of the kernel from that of the results, dy [N, H, W, O].

    That of x is the convolution of dy with the kernel turned round. One loop for both: XLA would compute what makes
    dy in each loop anew.
    """
    u = _transformed(kernel[::-1, ::-1].swapaxes(2, 3))

    def piece_of(total, piece):
        x, dy = piece
        return total + _kernel_gradient(x, dy), _tiles(dy, u)

    dkernel, dx = jax.lax.scan(piece_of, jnp.zeros_like(kernel), _in_caches(x, dy))
    return dx.reshape(x.shape), dkernel


def _direct_gradients(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    return jax.vjp(direct, x, kernel)[1](dy)


def direct(x: Array, kernel: Array) -> Array:
    """Computes the same convolution by XLA, for any size and width of kernel."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _in_caches(*arrays: Array) -> list[Array]:
    """Splits arrays [N, ...] into [pieces, images, ...], by the most images whose transforms stay in the caches.

    A transform has four times the size of its array. Two pieces at least: XLA dissolves a loop of one, and then fuses
    what makes the array into each of its 16 transforms.
    """
    image = sum(4 * array[0].size * array.dtype.itemsize for array in arrays)
    n = len(arrays[0])
    most = max(1, min(_CACHE_BYTES // image, n // 2))
    images = next(images for images in range(most, 0, -1) if n % images == 0)
    return [array.reshape(n // images, images, *array.shape[1:]) for array in arrays]


def _transformed(kernel: Array) -> list[list[Array]]:
    """Computes the values [C, O] of a kernel [3, 3, C, O], by row and column."""
    return [_transform_kernel(list(g)) for g in _transform_kernel(list(kernel))]


def _tiles_of(x: Array) -> list[list[Array]]:
    """Computes the values [N H W / 4, C] of the 4x4 tiles of x [N, H, W, C], by row and column."""
    _, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = _transform_input([padded[:, i : i + h - 1 : 2] for i in range(4)])
    columns = [_transform_input([row[:, :, j : j + w - 1 : 2] for j in range(4)]) for row in rows]
    return [[value.reshape(-1, c) for value in row] for row in columns]


def _tiles(x: Array, u: list[list[Array]]) -> Array:
    """Computes the convolution of x [N, H, W, C] with a kernel of these values [C, O]: [N, H, W, O]."""
    n, h, w, _ = x.shape
    # Products of a row of the tiles; their sums over rows and columns are the outputs.
    sums = [
        _transform_output([tile @ weights for tile, weights in zip(row, row_weights, strict=True)])
        for row, row_weights in zip(_tiles_of(x), u, strict=True)
    ]
    y = [_transform_output([row[b] for row in sums]) for b in range(2)]
    y = jnp.stack([jnp.stack([y[b][a].reshape(n, h // 2, w // 2, -1) for b in range(2)], 3) for a in range(2)], 2)
    return y.reshape(n, h, w, -1)


def _kernel_gradient(x: Array, dy: Array) -> Array:
    """Computes the gradient of the kernel, [3, 3, C, O], of x [N, H, W, C] and of that of the results [N, H, W, O]."""
    dy_rows = _transform_gradient([dy[:, a::2] for a in range(2)])
    du = []
    for row, dy_row in zip(_tiles_of(x), dy_rows, strict=True):
        columns = _transform_gradient([dy_row[:, :, a::2].reshape(-1, dy.shape[-1]) for a in range(2)])
        products = [tile.T @ column for tile, column in zip(row, columns, strict=True)]
        du.append(jnp.stack(_gradient_of_kernel(products)))
    return jnp.stack(_gradient_of_kernel(du))
