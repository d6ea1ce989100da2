"""DINOv2's ViT-L/14 (Oquab et al. 2023, arXiv 2304.07193), whose class token is the features of FD-DINOv2.

`cfg/features/dinov2_weights.py` folds into its parameters what is linear: the scale of each branch (LayerScale) into
the last product of the branch, and the class token and the bias of the patches into the embeddings of positions.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cfg.models.attention import attention

Array = jax.Array

# Of ImageNet's pixels in [0, 1], for each colour.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sizes:
    """These are the sizes of a vision transformer."""

    width: int = 1024  # channels of a token, and features
    depth: int = 24  # blocks
    heads: int = 16
    patch: int = 14  # pixels of the side of a patch
    grid: int = 16  # patches along the side of an image

    @property
    def pixels(self) -> int:
        """Returns the side of the images that the network sees."""
        return self.patch * self.grid


VIT_L14 = Sizes()  # at 224 x 224 pixels, 304M parameters


class Block(nn.Module):
    """Mixes tokens by attention, and then the channels of each."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps tokens [N, T, C] to tokens."""
        n, count, width = x.shape
        h = _norm('norm1')(x)
        h = nn.Dense(3 * width, name='qkv')(h).reshape(n, count, 3, self.heads, width // self.heads)
        h = attention(*(h[:, :, place] for place in range(3))).reshape(n, count, width)
        x = x + nn.Dense(width, name='proj')(h)
        h = nn.Dense(4 * width, name='fc1')(_norm('norm2')(x))
        return x + nn.Dense(width, name='fc2')(nn.gelu(h, approximate=False))


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)


class Dinov2(nn.Module):
    """Runs the whole network, from images to the class token."""

    sizes: Sizes = VIT_L14

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Takes [N, H, W, 3] with grey levels 0..255, uint8 or float, of any size; returns float32 [N, width]."""
        it = self.sizes
        x = resize_torch(images, it.pixels) / 255.0
        x = (x - jnp.array(MEAN)) / jnp.array(DEVIATION)
        # A patch as one vector makes the convolution a product.
        x = x.reshape(-1, it.grid, it.patch, it.grid, it.patch, 3).swapaxes(2, 3)
        x = x.reshape(len(images), it.grid**2, it.patch**2 * 3)
        x = nn.Dense(it.width, use_bias=False, name='patches')(x)
        tokens = self.param('tokens', nn.initializers.normal(0.02), (1 + it.grid**2, it.width))  # the class token first
        x = jnp.concatenate([jnp.zeros_like(x[:, :1]), x], axis=1) + tokens
        for place in range(it.depth):
            x = Block(it.heads, name=f'block{place}')(x)
        return _norm('norm')(x[:, 0])


def dinov2_shapes(sizes: Sizes = VIT_L14) -> Any:
    """Returns the shapes and types of the network's parameters, without computing any."""
    image = jax.ShapeDtypeStruct((1, sizes.pixels, sizes.pixels, 3), jnp.float32)
    return jax.eval_shape(Dinov2(sizes).init, jax.random.key(0), image)['params']


def resize_torch(images: Array, pixels: int) -> Array:
    """Resizes as torch.nn.functional.interpolate does by antialiased bicubic, without rounding or clipping.

    Images [N, H, W, C] of any real type become float32 [N, pixels, pixels, C]. EDM2 resizes so
    (calculate_metrics.py, resize_mode='torch').
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        if x.shape[axis] != pixels:
            weights = antialiased(x.shape[axis], pixels).astype(np.float32)
            x = jnp.moveaxis(jnp.tensordot(weights, x, (1, axis), precision='highest'), 0, axis)
    return x


def resize_pil(images: np.ndarray, pixels: int) -> np.ndarray:
    """Resizes as PIL does by its bicubic, which is antialiased and rounds to grey levels after each axis.

    Images uint8 [N, H, W, 3] become uint8 [N, pixels, pixels, 3]. dgm-eval (Stein et al. 2023, arXiv 2306.04675)
    resizes so.
    """
    from PIL import Image  # what runs on accelerators does without it

    resized = [Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def antialiased(given: int, wanted: int) -> np.ndarray:
    """Returns the weights of the input pixels for each output pixel, [wanted, given] float64.

    The kernel is Keys' cubic with a = -1/2. Where the image shrinks it is as many times wider.
    """
    scale = given / wanted
    centres = (np.arange(wanted) + 0.5) * scale
    weights = cubic((np.arange(given) + 0.5 - centres[:, None]) / max(scale, 1.0), a=-0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def cubic(x: np.ndarray, *, a: float) -> np.ndarray:
    """Evaluates the cubic convolution kernel (Keys 1981), which is 0 from |x| = 2 on."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x**2 + 1.0
    far = a * (((x - 5.0) * x + 8.0) * x - 4.0)
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
