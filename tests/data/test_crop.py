import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cfg.data import crop
from cfg.data.crop import adm, area, decode, from_png, square, to_png
from tests.command_line import ROOT
from tests.data import kinds


def box_average(image, size):
    """Exact: the integral of the pixels is piecewise linear, so a box is a difference of two of its values."""

    def along(axis, x):
        n = x.shape[axis]
        edges = np.linspace(0, n, size + 1)

        def means(line):
            return np.diff(np.interp(edges, np.arange(n + 1), np.concatenate([[0.0], np.cumsum(line)]))) * size / n

        return np.apply_along_axis(means, axis, x)

    return along(1, along(0, image.astype(np.float64)))


@given(n=st.integers(1, 60), size=st.integers(1, 24), seed=st.integers(0, 99))
def test_area_is_the_exact_box_average(n, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (n, n, 3), dtype=np.uint8)
    result = area(image, size)
    assert result.dtype == np.uint8
    assert np.abs(result - box_average(image, size)).max() <= 0.5 + 1e-3  # rounding alone


@pytest.mark.parametrize('n', [128, 375, 500])
def test_area_at_the_sizes_of_imagenet(n):
    image = np.random.default_rng(n).integers(0, 256, (n, n, 3), dtype=np.uint8)
    assert np.abs(area(image, 64) - box_average(image, 64)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(('shape', 'top', 'left'), [((9, 4, 3), 2, 0), ((4, 9, 3), 0, 2), ((8, 4, 1), 2, 0)])
def test_area_takes_the_centre(shape, top, left):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(area(image, 4), image[top : top + 4, left : left + 4])


@pytest.mark.parametrize('size', [(500, 375), (375, 500), (64, 64), (127, 128), (128, 128), (129, 300), (70, 31)])
@pytest.mark.parametrize('target', [64, 32])
def test_adms_crop_is_pillows_operations(size, target):
    """Written out for each number of halvings, as the published data were made."""
    rng = np.random.default_rng(sum(size))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    halvings = int(np.log2(max(min(size) / target, 1)))
    expected = image
    for _ in range(halvings):
        expected = expected.resize((expected.width // 2, expected.height // 2), resample=Image.BOX)
    factor = target / min(expected.size)
    expected = expected.resize((round(expected.width * factor), round(expected.height * factor)), Image.BICUBIC)
    x, y = (expected.width - target) // 2, (expected.height - target) // 2
    expected = np.asarray(expected.crop((x, y, x + target, y + target)))
    assert np.array_equal(adm(image, target), expected)


def content_of(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


TIFFS = ((1, 1, 'L'), (2, 1, 'LA'), (3, 2, 'RGB'), (4, 2, 'RGBA'), (4, 5, 'CMYK'))  # channels, photometric, mode


@pytest.mark.parametrize(
    ('mode', 'kind', 'expected'),
    [('RGB', 'JPEG', 'JPEG RGB'), ('L', 'JPEG', 'JPEG L'), ('CMYK', 'JPEG', 'JPEG CMYK'), ('P', 'PNG', 'PNG P')],
)
def test_every_kind_becomes_rgb(mode, kind, expected):
    orange = Image.new('RGB', (20, 10), (204, 102, 51))
    image, found = decode(content_of(orange.convert(mode), kind), 3)
    assert (found, image.mode, image.size) == (expected, 'RGB', (20, 10))
    close_to = np.asarray(orange.convert('L' if mode == 'L' else 'RGB').convert('RGB')).astype(int)
    assert np.abs(np.asarray(image) - close_to).max() <= 3


def test_one_channel():
    image, _ = decode(content_of(Image.new('RGB', (9, 8), (255, 255, 255)), 'PNG'), 1)
    for how in ('area', 'adm'):
        pixels = square(image, 8, how)
        assert pixels.shape == (8, 8, 1)
        assert np.array_equal(from_png(to_png(pixels)), pixels)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'not an image'),
        (b'<html>404</html>', 'not an image'),
        (content_of(Image.effect_noise((64, 64), 90), 'JPEG')[:700], 'truncated'),
        (content_of(Image.new('I;16', (4, 4)), 'PNG'), '8 bits'),
    ],
    ids=['empty', 'html', 'truncated', '16 bits'],
)
def test_what_cannot_be_read_is_named(content, message):
    with pytest.raises(ValueError, match=message):
        decode(content, 3)


def image_of(kind, **options):
    first, second = (Image.effect_noise((16, 12), 90).convert('RGB') for _ in range(2))
    return content_of(first, kind, **({'save_all': True, 'append_images': [second]} if options else {}))


@pytest.mark.parametrize(
    'content',
    [
        *(kinds.png(colour, 16) for colour in ('grey', 'grey alpha', 'rgb', 'rgba')),
        *(kinds.tiff(kinds.zeros(n, np.uint16), photometric=p) for n, p in ((1, 1), (3, 2), (4, 2), (4, 5))),
        *(kinds.tiff(kinds.zeros(1, dtype), photometric=1) for dtype in (np.float32, np.int16, np.uint32)),
        b'P6 2 1 65535\n' + bytes(12),
        b'P5 2 1 65535\n' + bytes(4),
        content_of(Image.new('I;16', (4, 4)), 'JPEG2000'),
    ],
)
@pytest.mark.parametrize('channels', [1, 3])
def test_more_than_8_bits_are_never_cut_to_8(content, channels):
    with pytest.raises(ValueError, match='more than 8 bits a channel'):
        decode(content, channels)


def test_an_avif_says_itself_how_many_bits_it_has():
    """Pillow writes none of more than 8, so the header of one is changed."""
    content = bytearray(image_of('AVIF'))
    image = Image.open(io.BytesIO(bytes(content)))
    assert not crop._is_deep(image, bytes(content))
    content[content.index(b'av1C') + 6] |= 0x40
    assert crop._is_deep(image, bytes(content))


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        (kinds.png('grey', 1), 'PNG 1'),
        *((kinds.png('grey', depth), 'PNG L') for depth in (2, 4, 8)),
        (kinds.png('grey alpha', 8), 'PNG LA'),
        (kinds.png('rgba', 8), 'PNG RGBA'),
        (kinds.png('palette', 8), 'PNG P'),
        (kinds.png('palette', 8, transparency=b'\0'), 'PNG P with transparency'),
        (kinds.png('rgb', 8, transparency=bytes(6)), 'PNG RGB with transparency'),
        (kinds.png('grey', 8, transparency=bytes(2)), 'PNG L with transparency'),
        *((kinds.tiff(kinds.zeros(n, np.uint8), photometric=p), f'TIFF {m}') for n, p, m in TIFFS),
        (image_of('GIF', several=True), 'GIF P with more frames'),
        (image_of('PNG', several=True), 'PNG RGB with more frames'),
        (image_of('WEBP', several=True), 'WEBP RGB with more frames'),
        (image_of('TIFF', several=True), 'TIFF RGB with more frames'),
        (image_of('AVIF'), 'AVIF RGB'),
        (image_of('GIF'), 'GIF P'),
    ],
)
def test_images_are_counted_as_what_they_are(content, expected):
    image, found = decode(content, 3)
    assert (found, image.mode) == (expected, 'RGB')


def test_png_loses_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(from_png(to_png(pixels)), pixels)


def test_area_after_tensorflow_has_begun():
    """As where TFDS prepared the input in this process."""
    code = (
        'import tensorflow as tf; tf.zeros(1); import numpy as np; from cfg.data.crop import area; '
        'print(area(np.full((9, 9, 3), 7, np.uint8), 4).sum())'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(7 * 4 * 4 * 3), done.stderr


def test_an_unknown_crop():
    with pytest.raises(ValueError, match='area, adm'):
        square(Image.new('RGB', (4, 4)), 2, 'middle')
