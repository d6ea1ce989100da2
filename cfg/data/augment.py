"""Changes training images geometrically, and says how: EDM's augmentation, on the device.

Source: Karras et al. 2022, arXiv 2206.00364, Appendix F.2, as in its authors' code. A network is told the nine numbers
of an image's change, and zeros where it draws samples.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

Array = jax.Array

SIZE = 9  # numbers that tell a change
LOG2_STD, SHIFT_STD = 0.2, 0.125  # of the logs of both scales; of a shift, as a share of the image
# The low-pass filter of the symlet with six vanishing moments (Daubechies 1992).
SYM6 = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
        *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
        *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
    ]
)


class Change(NamedTuple):
    """A change says what happens to an image; each part is 0 where it does nothing."""

    mirror: Array  # left and right, 0 or 1
    flip: Array  # up and down, 0 or 1
    scale: Array  # standard normal; the image grows by 2^(0.2 scale)
    angle: Array  # in radians
    stretch: Array  # standard normal; along `axis` the image grows by 2^(0.2 stretch), and shrinks across it
    axis: Array  # an angle
    shift: Array  # (x, y), standard normal [2]; by an eighth of the image each


def draw_change(key: Array, p: float) -> Change:
    """Draws a change from one typed key: half of all images are mirrored, and each other part has probability p."""
    keys = iter(jax.random.split(key, 12))

    def sometimes(value, share=p):
        return jnp.where(jax.random.uniform(next(keys)) < share, value, 0.0)

    def angle():
        return jax.random.uniform(next(keys), minval=-jnp.pi, maxval=jnp.pi)

    return Change(
        mirror=sometimes(1.0, 0.5),
        flip=sometimes(1.0, 0.5 * p),
        scale=sometimes(jax.random.normal(next(keys))),
        angle=sometimes(angle()),
        stretch=sometimes(jax.random.normal(next(keys))),
        axis=sometimes(angle(), 0.5),
        shift=sometimes(jax.random.normal(next(keys), (2,))),
    )


def told(change: Change) -> Array:
    """Returns the nine numbers that tell a change, zeros if there is none."""
    turn = jnp.cos(change.angle) - 1.0, jnp.sin(change.angle)
    stretch = change.stretch * jnp.cos(change.axis), change.stretch * jnp.sin(change.axis)
    return jnp.stack([change.mirror, change.flip, change.scale, *turn, *stretch, *change.shift])


def _rotation(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, -sin], [sin, cos]])


def origins(change: Change, points: Array, size: tuple[int, int]) -> Array:
    """Returns where each point of a changed image comes from, flips aside: (x, y) from the centre in pixels, [2, n].

    `size` is (width, height).
    """
    stretch = jnp.exp2(LOG2_STD * change.stretch * jnp.array([-1.0, 1.0]))
    back = _rotation(-change.axis) @ (stretch[:, None] * _rotation(change.axis))
    back = jnp.exp2(-LOG2_STD * change.scale) * _rotation(change.angle) @ back
    moved = points - (SHIFT_STD * change.shift * jnp.array(size))[:, None]
    return jnp.matmul(back, moved, precision='highest')


@functools.cache
def _resampling(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what doubles a line of pixels that is mirrored at its ends, and what halves the doubled.

    Pixel i spreads to the doubled ones 2i - 5 to 2i + 6, by the filter; halving is the transpose. The filter is
    orthonormal, so that halving undoes doubling.

    Returns:
      ([6 L - 4, L], from -2 (L - 1) on, and [L, 2 L + 10], from -5 on), float32.
    """
    first = 1 - length
    pixels = np.arange(first, 2 * length - 1)
    mirrored = np.zeros((len(pixels), length))
    mirrored[np.arange(len(pixels)), length - 1 - np.abs(length - 1 - pixels % (2 * length - 2))] = 1.0

    def spread(to, pixels):
        tap = 5 + to[:, None] - 2 * pixels[None]
        return np.where((tap >= 0) & (tap < len(SYM6)), SYM6[np.clip(tap, 0, len(SYM6) - 1)], 0.0)

    up = spread(np.arange(2 * first, 2 * (2 * length - 1)), pixels) @ mirrored
    down = spread(np.arange(-5, 2 * length + 5), np.arange(length)).T
    return up.astype(np.float32), down.astype(np.float32)


def warp(image: Array, change: Change) -> Array:
    """Scales, turns, stretches and shifts an image [H, W, C] that is mirrored at its borders; beyond these it is 0.

    It is read at twice its resolution, linearly between points.
    """
    height, width, _ = image.shape
    (up_y, down_y), (up_x, down_x) = _resampling(height), _resampling(width)
    product = functools.partial(jnp.einsum, precision='highest')
    doubled = product('ah,hwc,bw->cab', up_y, image, up_x)
    centre = 0.5 * np.array([width - 1, height - 1])[:, None]
    x, y = np.meshgrid(0.5 * np.arange(-5, 2 * width + 5), 0.5 * np.arange(-5, 2 * height + 5))
    points = jnp.asarray(np.stack([x.ravel(), y.ravel()]) - centre, jnp.float32)
    source_x, source_y = origins(change, points, (width, height)) + centre
    places = [2.0 * (source_y + height - 1).reshape(x.shape), 2.0 * (source_x + width - 1).reshape(x.shape)]
    read = jax.vmap(lambda plane: map_coordinates(plane, places, order=1, mode='constant'))(doubled)
    return product('ha,cab,wb->hwc', down_y, read, down_x)


def augment(images: Array, keys: Array, p: float) -> tuple[Array, Array]:
    """Changes each image as its own key says.

    Args:
      images: in [-1, 1], [N, H, W, C], of at least 6 pixels a side.
      keys: typed, [N].
      p: see `draw_change`; EDM has 0.12 for CIFAR-10.

    Returns:
      (images as before, what a network is told of them [N, 9]).
    """

    def one(image, key):
        change = draw_change(key, p)
        image = jnp.where(change.mirror == 1.0, image[:, ::-1], image)
        image = jnp.where(change.flip == 1.0, image[::-1], image)
        return warp(image, change), told(change)

    return jax.vmap(one)(images, keys)
