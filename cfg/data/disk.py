"""Reads data sets on disk as a `Source`: prepared ones, and small ones of TFDS as they are."""

import functools
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath

from cfg.data.crop import from_png
from cfg.data.manifest import check_sizes, config_name, find_manifest, folder_of
from cfg.runtime.errors import UserError, first_line
from cfg.runtime.progress import end_line

RETRY_AFTER = (0.5, 4.0)  # seconds before a read that failed is tried again


class RecordSource:
    """Reads a split of a data set of TFDS, a `cfg.data.source.Source` that may be sent to other processes.

    A subclass sets all of these.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: Sequence[str]
    fingerprint: str
    _count: int  # of images
    _split: str
    _place: str  # where it lies, for people
    _remedies: tuple[str, str]  # of files that cannot be read, and of images without a class

    @property
    def num_classes(self) -> int:
        """Returns how many classes there are."""
        return len(self.class_names)

    def __len__(self) -> int:
        return self._count

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != '_records'}

    def _open(self) -> Any:
        """Returns TFDS's builder."""
        raise NotImplementedError

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        return self._open().as_data_source(self._split, decoders={'image': tfds.decode.SkipDecoding()})

    def _read(self, indices: list[int]) -> Sequence[dict[str, Any]]:
        return self._records.__getitems__(indices)

    def fetch(self, indices: Iterable[int]) -> dict[str, np.ndarray]:
        """Reads examples, see `cfg.data.source.Source`.

        Raises:
          UserError: when the files cannot be read.
        """
        indices = [int(i) for i in indices]
        for delay in (*RETRY_AFTER, None):
            try:
                records = self._read(indices)
                images = np.stack([from_png(record['image']) for record in records])
                break
            except MemoryError:
                raise
            except Exception as error:  # array_record, protobuf and Pillow each raise their own kinds
                if delay is None:
                    raise UserError(
                        f'{self._place} cannot be read ({type(error).__name__}: {first_line(error)}): '
                        f'{self._remedies[0]}.'
                    ) from error
                time.sleep(delay)  # a network may have hiccups
                self.__dict__.pop('_records', None)
        labels = np.array([record['label'] for record in records], np.int32)
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= self.num_classes:
            raise UserError(
                f'{self._place} holds images of the {self._split} split without a class of 0 to '
                f'{self.num_classes - 1}: {self._remedies[1]}.'
            )
        return {'image': images, 'label': labels}


class PreparedSource(RecordSource):
    """Reads a split of a prepared data set.

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
        self._place, self._remedies = str(folder), _REMEDIES
        self.image_shape = tuple(manifest['image_shape'])
        self.name = f'{config_name(name, self.image_shape[0], manifest["crop"])}/{split}'
        self.class_names = tuple(manifest['class_names'])
        held = [facts['content_sha256'], self.class_names]
        self.fingerprint = hashlib.sha256(json.dumps(held).encode()).hexdigest()

    def _open(self) -> Any:
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self._folder)


_REMEDIES = (
    'see whether it can be reached, and whether --mode=prepare_data with the same config finds a damaged file',
    'delete it and run --mode=prepare_data, which refuses such or leaves them out',
)


class TfdsSource(RecordSource):
    """Reads a split of a data set of TFDS whose images are small as they are; TFDS downloads it where it is missing.

    Its fingerprint is a digest of its version and of the sizes of its files, whose content TFDS has checked.

    Raises:
      UserError: when TFDS is not installed, or cannot download it.
    """

    def __init__(self, name: str, tfds_name: str, *, data_dir: epath.Path, split: str):
        self._tfds_name, self._dir, self._split = tfds_name, data_dir, split
        builder = self._open()
        made_by_tfds(builder, tfds_name)
        features, files = builder.info.features, builder.info.splits.get(split)
        self._place, remedy = str(builder.data_dir), 'delete it, and TFDS downloads it anew'
        self._remedies = remedy, remedy
        self._count = len(self._records)
        self.name = f'{name}/{split}'
        self.image_shape = tuple(features['image'].shape)
        self.class_names = tuple(features['label'].names)
        held = [builder.info.full_name, split, self._count, files and [files.num_bytes, *files.shard_lengths]]
        self.fingerprint = hashlib.sha256(json.dumps(held).encode()).hexdigest()

    def _open(self) -> Any:
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise UserError(
                f'TFDS, which has {self._tfds_name}, cannot be imported ({first_line(error)}): install '
                'requirements.txt.'
            ) from error
        # Random access needs ArrayRecord files.
        return tfds.builder(self._tfds_name, data_dir=self._dir, file_format='array_record')

    def _read(self, indices: list[int]) -> Sequence[dict[str, Any]]:
        return [self._records[i] for i in indices]  # all that tfds.testing.mock_data has


def made_by_tfds(builder: Any, name: str, *, manual_dir: epath.Path | None = None, advice: str = '') -> None:
    """Has TFDS download and prepare a data set where it is not there yet, maybe from files in `manual_dir`.

    Raises:
      UserError: when it cannot, with what TFDS says, and then `advice`.
    """
    import tensorflow_datasets as tfds

    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except MemoryError:
        raise
    except Exception as error:  # what can go wrong is as wide as the data sets
        end_line(always=True)  # after TFDS's progress
        said = f'TFDS could not prepare {name!r} ({type(error).__name__}): {first_line(error)}'
        raise UserError(f'{said}; {advice}' if advice else said) from error
