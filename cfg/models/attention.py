"""Computes self-attention by the kernel that a platform has for it.

The scores of all pairs of positions are the largest arrays of ADM's networks: at 32x32 positions they move more memory
in training than all convolutions. A flash kernel never writes them (Dao et al. 2022, arXiv 2205.14135).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion.corrections import convolve
from cfg.runtime.errors import UserError

Array = jax.Array


def by_xla(q: Array, k: Array, v: Array) -> Array:
    """Computes it by two matrix products and a float32 softmax.

    The matrices of each head are made contiguous: XLA's CPU backend multiplies them in half the time then.
    """
    n, m, heads, c = q.shape
    q, k, v = (x.transpose(0, 2, 1, 3).reshape(n * heads, m, c) for x in (q, k, v))
    scores = jnp.einsum('btc,bsc->bts', q, k, preferred_element_type=jnp.float32) * c**-0.5
    y = jnp.einsum('bts,bsc->btc', jax.nn.softmax(scores).astype(v.dtype), v)
    return y.reshape(n, heads, m, c).transpose(0, 2, 1, 3)


def by_cudnn(q: Array, k: Array, v: Array) -> Array:
    """Computes it by cuDNN's flash kernel, which asks the GPU while it is traced."""
    return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')


def by_splash(q: Array, k: Array, v: Array, *, interpret: bool = False) -> Array:
    """Computes it by the flash kernel for TPUs that keeps one number a position for the backward pass.

    The positions lie along the lanes: heads of 64 channels would fill only half of them.

    Args:
      q, k, v: as in `attention`.
      interpret: runs the kernel's program on any platform, slowly.
    """
    n, m, heads, c = q.shape
    q, k, v = (x.reshape(n, m, -1).swapaxes(1, 2).reshape(n, heads, c, m) for x in (q * c**-0.5, k, v))
    y = jax.vmap(_splash(m, heads, interpret))(*(x.swapaxes(2, 3) for x in (q, k, v)))
    return y.swapaxes(2, 3).reshape(n, heads * c, m).swapaxes(1, 2).reshape(n, m, heads, c)


def _splash(positions: int, heads: int, interpret: bool) -> Callable[[Array, Array, Array], Array]:
    """Makes the kernel for some sizes; importing Pallas takes a second, which only a TPU's users should wait for."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = next(size for size in (1024, 512, 256, 128) if positions % size == 0)
    blocks = ('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute')
    sizes = splash.BlockSizes(
        **dict.fromkeys(blocks, block),
        use_fused_bwd_kernel=True,
        **dict.fromkeys(('q_layout', 'k_layout', 'v_layout'), splash.QKVLayout.SEQ_MINOR),
    )
    mask = splash.MultiHeadMask([splash.FullMask((positions, positions))] * heads)
    return splash.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)


KERNELS: dict[str, Callable[[Array, Array, Array], Array]] = {
    'xla': by_xla,
    'cudnn': by_cudnn,
    'splash': by_splash,
}


def fits(kernel: str, q: Array) -> bool:
    """Tells whether a kernel takes the type and the sizes of q [N, M, heads, C]."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    _, positions, _, c = q.shape
    if kernel == 'cudnn':
        return half and c <= 128
    return kernel == 'xla' or positions % 128 == 0


def attention(q: Array, k: Array, v: Array, *, kernel: str = 'xla') -> Array:
    """Returns softmax(q k^T / sqrt(C)) v over the second axis, each [N, M, heads, C]; the softmax is float32.

    Args:
      kernel: one of `KERNELS`; where it does not take these sizes XLA's own products do it.
    """
    return KERNELS[kernel if fits(kernel, q) else 'xla'](q, k, v)


def blur(x: Array, *, sigma: float) -> Array:
    """Returns maps [N, H, W, C] blurred by a Gaussian of deviation sigma, in positions; inf is their mean.

    The kernel has ceil(6 sigma) positions a side, made odd, or H or W made odd where that is less; a map is reflected
    at its ends (Hong 2024, arXiv 2408.00760).
    """
    whole = x.astype(jnp.float32)
    if math.isinf(sigma):
        return jnp.broadcast_to(whole.mean(axis=(1, 2), keepdims=True), x.shape).astype(x.dtype)
    for axis in (1, 2):
        half = min(math.ceil(6.0 * sigma) // 2, x.shape[axis] // 2)
        weights = np.exp(-0.5 * np.square(np.arange(-half, half + 1) / sigma))
        whole = convolve(whole, tuple(map(float, weights / weights.sum())), axis)
    return whole.astype(x.dtype)


def kernel_of(choice: str) -> str:
    """Returns the kernel that `config.model.attention` names; 'auto' is the best of the platform that JAX runs on.

    Raises:
      UserError: when the platform does not have it.
    """
    platform = jax.default_backend()
    best = 'splash' if platform == 'tpu' else 'cudnn' if platform == 'gpu' and _cudnn_serves() else 'xla'
    if choice not in ('auto', 'xla', best):
        raise UserError(
            f'config.model.attention={choice!r} is not a kernel of this machine, whose JAX runs on {platform!r}: use '
            "'auto'."
        )
    return best if choice == 'auto' else choice


def _cudnn_serves() -> bool:
    shape = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.bfloat16)
    try:  # cuDNN's version and the device's generation are looked at while tracing
        jax.eval_shape(by_cudnn, shape, shape, shape)
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True
