"""Defines the interface of a data set, and data sets in memory."""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Source(Protocol):
    """A source is a labelled image data set with random access.

    Attributes:
      name: what the user calls it, with its split, as it appears in results.
      class_names: one a class.
      num_classes: labels are 0..num_classes - 1.
      image_shape: (H, W, C).
      fingerprint: a digest of pixels and labels; two data sets that agree here are the same.
    """

    name: str
    class_names: Sequence[str]
    num_classes: int
    image_shape: tuple[int, int, int]
    fingerprint: str

    def __len__(self) -> int:
        """Returns the number of examples."""

    def fetch(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads the k examples at `indices`: {'image': uint8 [k, H, W, C], 'label': int32 [k]}."""


@dataclass(frozen=True)
class ArraySource:
    """Holds a data set in memory.

    Attributes:
      name: what the user calls it, with its split, as it appears in results.
      images: uint8 [n, H, W, C].
      labels: int32 [n] in [0, num_classes).
      class_names: one a class.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]

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
        """Returns the number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Returns (H, W, C)."""
        return tuple(self.images.shape[1:])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Returns the digest of pixels and labels."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()

    def fetch(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads examples, see `Source`."""
        indices = np.asarray(indices)
        return {'image': self.images[indices], 'label': self.labels[indices]}
