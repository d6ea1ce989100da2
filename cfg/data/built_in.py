"""Lists the data sets that need no preparation: BUILT_IN at the end has those that a config may name."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from cfg.data.digits import SPLITS, digits
from cfg.data.manifest import default_dir
from cfg.data.source import Source


class BuiltIn(NamedTuple):
    """A data set that is there at once, or after a download of its own."""

    open: Callable[[str, str], Source]  # (a split, config.data.dir) -> its images
    splits: tuple[str, ...]  # the names of the splits
    held_out: str | None  # the split that training on 'train' leaves out; None if there is none
    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int  # labels are 0 to num_classes - 1


def _digits(split: str, data_dir: str) -> Source:
    return digits(split)


def _tfds(split: str, data_dir: str, *, name: str, tfds_name: str) -> Source:
    from cfg.data.disk import TfdsSource  # here, so that what reads no images needs no Pillow

    return TfdsSource(name, tfds_name, data_dir=default_dir(data_dir), split=split)


def _resized(size: int) -> BuiltIn:
    """Returns all of ImageNet, squeezed to squares and not cropped (Chrabaszcz et al. 2017, arXiv 1707.08819)."""
    names = {'name': f'imagenet_resized{size}', 'tfds_name': f'imagenet_resized/{size}x{size}'}
    return BuiltIn(functools.partial(_tfds, **names), ('train', 'validation'), 'validation', (size, size, 3), 1000)


BUILT_IN = {
    'digits': BuiltIn(_digits, SPLITS, held_out='test', image_shape=(8, 8, 1), num_classes=10),
    'cifar10': BuiltIn(
        functools.partial(_tfds, name='cifar10', tfds_name='cifar10'),
        ('train', 'test'),
        held_out='test',
        image_shape=(32, 32, 3),
        num_classes=10,
    ),
    'imagenet_resized32': _resized(32),
    'imagenet_resized64': _resized(64),
}
