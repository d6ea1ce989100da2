"""Measures a stream of images and keeps what it has on disk, so that a process that dies loses little of it."""

import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np

from cfg.features.network import FeatureNetwork
from cfg.metrics.moments import Moments, Splits
from cfg.runtime.files import BROKEN_NPZ, make_folder, replacing

log = logging.getLogger('cfg')

Array = np.ndarray

_BLOCK = 50  # samples, the fewest that the jackknife of the inception score leaves out
_STATE, _FEATURES, _SECOND, _IMAGES = 'state.npz', 'features.f32', 'second.f32', 'images.u8'


class Measurement:
    """A measurement holds moments, inception score sums, features and images of a stream, in a folder.

    Everything is saved together: `count` says how many images of the stream are in it, and the next ones give, bit for
    bit, what an unbroken run would have given as long as the batches are cut in the same places.

    Args:
      folder: of this stream and no other; made if it is missing.
      is_split_size: samples a split of the inception score.
      image_shape: (H, W, C).
      save_seconds: between two savings; what came since the last one is lost with the process.
      period: of labels that come again and again in the same order, so that blocks hold each of them equally often.
    """

    def __init__(
        self,
        folder: Path,
        network: FeatureNetwork,
        *,
        is_split_size: int,
        image_shape: tuple[int, ...],
        save_seconds: float,
        period: int = 1,
    ):
        self._folder, self._network, self._is_split_size = Path(folder), network, is_split_size
        self._image_shape, self._save_seconds = tuple(image_shape), save_seconds
        self._block = -(-_BLOCK // period) * period
        make_folder(self._folder)
        self._clear()
        if (self._folder / _STATE).exists():
            try:
                self._load()
            except BROKEN_NPZ as error:
                log.warning('%s is damaged (%s) and is measured again.', self._folder, error)
                self._clear()
        self._saved, self._dirty = time.monotonic(), False
        self._files = {}
        for name, size in self._sizes().items():
            path = self._folder / name
            path.touch()
            file = self._files[name] = path.open('r+b')
            file.truncate(size)  # what came after the last saving comes again
            file.seek(size)

    def __enter__(self) -> 'Measurement':
        return self

    def __exit__(self, *_) -> None:
        for file in self._files.values():
            file.close()

    def add(
        self,
        images: Array,
        labels: Array | None = None,
        *,
        keep_features: Array | slice = slice(None),
        keep_images: int = 0,
    ) -> None:
        """Takes the next images.

        Args:
          images: uint8 [N, H, W, C].
          labels: int32 [N], for `agree`.
          keep_features: which of them to keep the pool features of, of both networks.
          keep_images: how many of them to keep, from the first on; none once an image of the stream was left out, so
            that the kept ones are always the first of it.
        """
        if self._num_images < self.count:
            keep_images = 0
        features = self._network.extract(images)
        self.moments = self.moments.merge(Moments.of(features.pool))
        if self.spatial is not None:
            self.spatial = self.spatial.merge(Moments.of(features.spatial))
        if self.second is not None:
            self.second = self.second.merge(Moments.of(features.second))
        if features.log_p is not None:
            self.splits.add(features.log_p)
            if self.blocks is not None:
                self.blocks.add(features.log_p)
        if labels is not None and features.classes is not None:
            self.agree += int(np.sum(features.classes == labels))
        for name, values in ((_FEATURES, features.pool), (_SECOND, features.second)):
            if name in self._files:
                self._files[name].write(kept := np.ascontiguousarray(values[keep_features], '<f4'))
        self._num_features += len(kept)
        self._files[_IMAGES].write(np.ascontiguousarray(images[:keep_images]))
        self._num_images += min(keep_images, len(images))
        self.count += len(images)
        self._dirty = True
        if time.monotonic() - self._saved >= self._save_seconds:
            self.save()

    def save(self) -> None:
        """Puts everything on disk; the state comes last, so that it never speaks of what is not there."""
        if not self._dirty:
            return
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        arrays = {'counts': np.array([self.count, self.agree, self._num_features, self._num_images], np.int64)}
        parts = {'moments': self.moments, 'splits': self.splits, 'blocks': self.blocks}
        parts |= {'spatial': self.spatial, 'second': self.second}
        for name, part in parts.items():
            if part is not None:
                arrays |= {f'{name}.{key}': value for key, value in part.state().items()}
        with replacing(self._folder / _STATE) as file:
            np.savez(file, **arrays)
        self._saved, self._dirty = time.monotonic(), False

    @property
    def features(self) -> Array:
        """Returns the kept pool features, float32 [n, D], read from disk as they are needed."""
        return self._mapped(_FEATURES, '<f4', (self._num_features, self._network.width))

    @property
    def second_features(self) -> Array | None:
        """Returns those of the second network, of the same images; None without."""
        second = self._network.second
        return self._mapped(_SECOND, '<f4', (self._num_features, second.width)) if second else None

    @property
    def images(self) -> Array:
        """Returns the kept images, uint8 [n, H, W, C], likewise."""
        return self._mapped(_IMAGES, '|u1', (self._num_images, *self._image_shape))

    @property
    def accuracy(self) -> float | None:
        """Returns the share that is classified as its label; None if nothing classifies."""
        return self.agree / self.count if self._network.classifier else None

    def remove(self) -> None:
        """Deletes the folder."""
        self.__exit__()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _clear(self) -> None:
        width, second = self._network.spatial_width, self._network.second
        self.moments = Moments.empty(self._network.width)  # of the pool features
        self.spatial = Moments.empty(width) if width else None  # those of the spatial features
        self.second = Moments.empty(second.width) if second else None  # those of the second network's features
        self.splits = Splits(self._is_split_size)  # the sums of the inception score
        self.blocks = Splits(self._block, within=self._is_split_size)  # for its error; None of older versions
        self.count = self._num_features = self._num_images = 0  # images so far, and those of which it keeps what
        self.agree = 0  # how many are classified as their label

    def _load(self) -> None:
        with np.load(self._folder / _STATE, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}

        def part(name: str) -> dict[str, Array]:
            return {key.partition('.')[2]: value for key, value in arrays.items() if key.startswith(f'{name}.')}

        self.moments = Moments.from_state(part('moments'))
        self.spatial = Moments.from_state(part('spatial')) if self._network.spatial_width else None
        self.second = Moments.from_state(part('second')) if self._network.second else None
        self.splits = Splits.from_state(part('splits'))
        self.blocks = Splits.from_state(part('blocks')) if part('blocks') else None
        self.count, self.agree, self._num_features, self._num_images = (int(value) for value in arrays['counts'])
        for name, size in self._sizes().items():
            path = self._folder / name
            if size and (not path.exists() or path.stat().st_size < size):
                raise ValueError(f'{name} is shorter than it was')

    def _sizes(self) -> dict[str, int]:
        """Returns how many bytes the files of raw values must have."""
        networks = {_FEATURES: self._network, _SECOND: self._network.second}
        sizes = {name: self._num_features * 4 * network.width for name, network in networks.items() if network}
        return sizes | {_IMAGES: self._num_images * int(np.prod(self._image_shape))}

    def _mapped(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        self._files[name].flush()
        if not shape[0]:
            return np.zeros(shape, dtype)
        return np.memmap(self._folder / name, dtype, 'r', shape=shape)
