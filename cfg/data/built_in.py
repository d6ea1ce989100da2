"""Lists the data sets that need no preparation: BUILT_IN at the end has those that a config may name."""

from collections.abc import Callable
from typing import NamedTuple

from cfg.data.digits import SPLITS, digits
from cfg.data.source import Source


class BuiltIn(NamedTuple):
    """A data set that is there at once."""

    open: Callable[[str], Source]  # a split -> its images
    splits: tuple[str, ...]  # the names of the splits
    held_out: str | None  # the split that training on 'train' leaves out; None if there is none
    image_shape: tuple[int, int, int]  # (H, W, C)
    num_classes: int  # labels are 0 to num_classes - 1


BUILT_IN = {'digits': BuiltIn(digits, SPLITS, held_out='test', image_shape=(8, 8, 1), num_classes=10)}
