"""Reads a prepared data set on disk as a `Source`."""

import functools
import hashlib
import json
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from cfg.data.crop import from_png
from cfg.data.manifest import check_sizes, config_name, find_manifest, folder_of
from cfg.runtime.errors import UserError, first_line

RETRY_AFTER = (0.5, 4.0)  # seconds before a read that failed is tried again


class PreparedSource:
    """Reads a split of a prepared data set, a `cfg.data.source.Source` that may be sent to other processes.

    Its fingerprint is a digest of pixels and labels in their order, and of the names of the classes. `name` is what the
    user calls the data set.

    Raises:
      UserError: when it is not prepared, files are missing or cut off, or it has no such split.
    """

    def __init__(self, name: str, *, data_dir: epath.Path, size: int, crop: str, split: str):
        manifest = find_manifest(name, data_dir=data_dir, size=size, crop=crop)
        folder = folder_of(data_dir, name, size, crop)
        check_sizes(folder, manifest)
        if split not in manifest['splits']:
            raise UserError(
                f'config.data.split={split!r} must be one of {", ".join(manifest["splits"])}: {folder} has no other.'
            )
        facts = manifest['splits'][split]
        self._folder, self._split, self._count = folder, split, facts['images']
        self.image_shape = tuple(manifest['image_shape'])
        self.name = f'{config_name(name, self.image_shape[0], manifest["crop"])}/{split}'
        self.class_names = tuple(manifest['class_names'])
        self.num_classes = len(self.class_names)
        held = [facts['content_sha256'], self.class_names]
        self.fingerprint = hashlib.sha256(json.dumps(held).encode()).hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != '_records'}

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self._folder)
        return builder.as_data_source(self._split, decoders={'image': tfds.decode.SkipDecoding()})

    def fetch(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads examples, see `cfg.data.source.Source`.

        Raises:
          UserError: when the files cannot be read.
        """
        indices = [int(i) for i in indices]
        for delay in (*RETRY_AFTER, None):
            try:
                records = self._records.__getitems__(indices)
                images = np.stack([from_png(record['image']) for record in records])
                break
            except MemoryError:
                raise
            except Exception as error:  # array_record, protobuf and Pillow each raise their own kinds
                if delay is None:
                    raise UserError(
                        f'{self._folder} cannot be read ({type(error).__name__}: {first_line(error)}): see whether it '
                        'can be reached, and whether --mode=prepare_data with the same config finds a damaged file.'
                    ) from error
                time.sleep(delay)  # a network may have hiccups
                self.__dict__.pop('_records', None)
        labels = np.array([record['label'] for record in records], np.int32)
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= self.num_classes:
            raise UserError(
                f'{self._folder} holds images of the {self._split} split without a class of 0 to '
                f'{self.num_classes - 1}: delete it and run --mode=prepare_data, which refuses such or leaves them out.'
            )
        return {'image': images, 'label': labels}
