"""Defines the interface of a data set, and data sets in memory."""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Source(Protocol):
    """A source is a labelled image data set with random access."""

    name: str  # what the user calls it, with its split, as it appears in results
    class_names: Sequence[str]  # one a class
    num_classes: int  # labels are 0..num_classes - 1
    image_shape: tuple[int, int, int]  # (H, W, C)
    fingerprint: str  # a digest of pixels and labels; two data sets that agree here are the same

    def __len__(self) -> int:
        """Returns the number of examples."""

    def fetch(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads the k examples at `indices`: {'image': uint8 [k, H, W, C], 'label': int32 [k]}."""


@dataclass(frozen=True)
class ArraySource:
    """A `Source` in memory."""

    name: str  # what the user calls it, with its split, as it appears in results
    images: np.ndarray  # uint8 [n, H, W, C]
    labels: np.ndarray  # int32 [n] in [0, num_classes)
    class_names: Sequence[str]  # one a class

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f'{self.name}: images must be uint8 [n, H, W, C], not {self.images.dtype} {self.images.shape}'
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f'{self.name}: {len(self.images)} images but labels of shape {self.labels.shape}')
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise ValueError(f'{self.name}: labels reach outside 0..{self.num_classes - 1}')

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()

    def fetch(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        indices = np.asarray(indices)
        return {'image': self.images[indices], 'label': self.labels[indices]}
