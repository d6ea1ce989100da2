"""An encoded image of any kind becomes a square of pixels, in the two ways in which published models were fed."""

import contextlib
import functools
import io
import os
import re
from typing import Any

import numpy as np
from PIL import Image

from cfg.runtime.errors import first_line

CROPS = ('area', 'adm')
ORIENTATION = 0x0112  # tag of EXIF


def decode(content: bytes, channels: int) -> tuple[Image.Image, str]:
    """Decodes an image whatever its name claims: JPEG, PNG, ...; grey, palette and CMYK become RGB.

    Returns:
      (the image, with 3 channels for RGB or 1 for grey, and its kind as it was found, 'JPEG CMYK', say).

    Raises:
      ValueError: when it is no image, is cut off, or has more than 8 bits a channel.
    """
    try:
        image = Image.open(io.BytesIO(content))
        deep = _is_deep(image, content)
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders each raise their own kinds on a damaged file
        reason = (
            'not an image, or of a kind that Pillow does not read'
            if isinstance(error, Image.UnidentifiedImageError)
            else first_line(error)
        )
        raise ValueError(reason) from error
    if deep:
        raise ValueError(f'{image.format} {image.mode} with more than 8 bits a channel')
    kind = f'{image.format} {image.mode}'
    with contextlib.suppress(Exception):  # odd metadata are no reason to lose an image
        # Not applied, as in no data loader of the published models; but to be seen in the manifest.
        if image.getexif().get(ORIENTATION, 1) != 1:
            kind += ' with EXIF rotation'
        kind += ' with transparency' * ('transparency' in image.info and 'A' not in image.mode)  # of a palette, say
        kind += ' with more frames' * getattr(image, 'is_animated', False)
    return image.convert('RGB' if channels == 3 else 'L'), kind


def _is_deep(image: Image.Image, content: bytes) -> bool:
    """Tells whether an image that is not loaded yet has more than 8 bits a channel, which Pillow may cut off."""
    codecs = [
        (tile[0], *(tile[3] if isinstance(tile[3], tuple) else (tile[3],))) for tile in getattr(image, 'tile', ())
    ]
    raw = any(
        re.fullmatch('.*;16[BLN]', str(mode)) or (codec == 'ppm' and more[0] > 255) for codec, mode, *more in codecs
    )
    box = content.find(b'av1C') + 4 if image.format == 'AVIF' else 0
    return image.mode[0] in 'IF' or raw or bool(box and content[box + 2] & 0x40)  # AV1's bit high_bitdepth


def square(image: Image.Image, size: int, crop: str) -> np.ndarray:
    """Makes an image of mode RGB or L square, uint8 [size, size, C], by `area` or by `adm`, as `crop` says.

    Raises:
      ValueError: on another crop.
    """
    if crop == 'area':
        pixels = np.asarray(image)
        return area(pixels.reshape(*pixels.shape[:2], -1), size)
    if crop == 'adm':
        return adm(image, size).reshape(size, size, -1)
    raise ValueError(f'crop must be one of {", ".join(CROPS)}, not {crop!r}')


def area(image: np.ndarray, size: int) -> np.ndarray:
    """Takes the largest centred square, and the mean over the area of each new pixel (the paper's "area downsampling").

    A new pixel is the integral of the old ones over its box, with fractions of pixels at its border; Pillow's BOX
    filter takes whole pixels only, which differs wherever the ratio is no integer. uint8 [H, W, C] becomes uint8
    [size, size, C], rounded to the nearest grey level.
    """
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    centre = image[top : top + side, left : left + side]
    if side == size:
        return centre
    mean = _tensorflow().image.resize(centre, (size, size), method='area')
    return np.round(mean.numpy()).astype(np.uint8)


def adm(image: Image.Image, size: int) -> np.ndarray:
    """Crops as ADM does: halves by boxes while at least twice too large, resizes by bicubics, takes the centre.

    Returns uint8 [size, size, C], or [size, size] of a grey image. Source: the data loader of openai/guided-diffusion,
    which also made its public reference statistics.
    """
    width, height = image.size
    while min(width, height) // 2 >= size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), Image.Resampling.BOX)
    scale = size / min(width, height)
    width, height = round(width * scale), round(height * scale)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def to_png(image: np.ndarray) -> bytes:
    """Encodes uint8 [H, W, C], C = 3 or 1, as PNG, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, 'PNG')
    return buffer.getvalue()


def from_png(content: bytes) -> np.ndarray:
    """Decodes what `to_png` encoded."""
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels.reshape(*pixels.shape[:2], -1)


@functools.cache
def _tensorflow() -> Any:
    """Imports TensorFlow for its area resize; it is not to be imported before it is needed."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TFDS has begun with it already
        tf.config.set_visible_devices([], 'GPU')
    return tf
