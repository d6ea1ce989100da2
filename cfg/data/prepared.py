"""Prepared data sets: where they lie, their manifest, and reading them.

`DIR/prepared_images/NAME_SIZE_CROP/1.0.0` is a data set of TFDS (`cfg.data.builder`) with one more file, manifest.json,
which is written last: a folder without it is not finished.
"""

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath

from cfg.data.crop import from_png
from cfg.runtime.errors import UserError, first_line
from cfg.runtime.files import reaching

BUILDER, VERSION = 'prepared_images', '1.0.0'
MANIFEST = 'manifest.json'
RETRY_AFTER = (0.5, 4.0)  # seconds before a read that failed is tried again
# Short names of config.data.name.
ALIASES = {'imagenet': 'tfds:imagenet2012'}


def is_preparable(name: str) -> bool:
    """Whether a `config.data.name` is one of those that are prepared."""
    kind, _, rest = ALIASES.get(name, name).partition(':')
    return kind in ('tfds', 'folder') and bool(rest and short_name(name))


def full_name(name: str) -> str:
    """A `config.data.name` without aliases, as it stands in manifests."""
    return ALIASES.get(name, name).rstrip('/')


def short_name(name: str) -> str:
    """What a data set is called in file names and results; the same wherever it lies.

    'imagenet' and 'tfds:imagenet2012' -> 'imagenet2012'; 'folder:/data/cats' -> 'cats'.
    """
    kind, colon, rest = ALIASES.get(name, name).partition(':')
    if kind == 'folder':
        rest = PurePosixPath(rest).name
    return re.sub(r'[^\w.-]+', '-', rest if colon else kind)


def default_dir(data_dir: str) -> epath.Path:
    """`config.data.dir`, or TFDS's own folder when it is empty."""
    return epath.Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def config_name(name: str, size: int, crop: str) -> str:
    """The name of a prepared data set among others."""
    return f'{short_name(name)}_{size}_{crop}'


def folder_of(data_dir: epath.Path, name: str, size: int, crop: str) -> epath.Path:
    """Where a data set lies when it is prepared."""
    return data_dir / BUILDER / config_name(name, size, crop) / VERSION


def read_manifest(folder: epath.Path) -> dict[str, Any] | None:
    """The manifest of a prepared data set; None if it has none.

    Raises:
      UserError: when it is damaged.
    """
    path = folder / MANIFEST
    with reaching(path):
        if not path.exists():
            return None
        content = path.read_bytes()
    try:
        manifest = json.loads(content)
        missing = {'source', 'splits', 'files', 'class_names', 'image_shape', 'crop'} - manifest.keys()
        if missing:
            raise ValueError(f'no {missing}')
    except (ValueError, AttributeError) as error:
        raise UserError(
            f'{path} is damaged ({type(error).__name__}): copy it again, or delete {folder} and run '
            '--mode=prepare_data.'
        ) from error
    return manifest


def find_manifest(name: str, *, data_dir: epath.Path, size: int, crop: str) -> dict[str, Any]:
    """The manifest of the data set of a config.

    Raises:
      UserError: when it is not prepared.
    """
    folder = folder_of(data_dir, name, size, crop)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(
            f'config.data.name={name!r} is not prepared at {size} pixels with crop {crop!r}: {folder} has no '
            f'{MANIFEST}; run --mode=prepare_data with the same config first, or set config.data.dir.'
        )
    check_source(name, manifest, folder)
    return manifest


def check_source(name: str, manifest: dict[str, Any], folder: epath.Path) -> None:
    """Whether a data set was prepared under the same name: two folders may end alike.

    Raises:
      UserError: when it was not.
    """
    if full_name(name) != manifest['source']:
        raise UserError(
            f'{folder} was prepared as {manifest["source"]}, not {full_name(name)}: use that config.data.name (its '
            'path need not exist on this machine), or prepare the other in another config.data.dir.'
        )


def file_sha256(path: epath.Path) -> str:
    """Of a file's content, in pieces."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def check_sizes(folder: epath.Path, manifest: dict[str, Any]) -> None:
    """Whether every file is there and whole by its size: what a copy that broke off does not pass.

    Raises:
      UserError: names the first that is not.
    """
    for name, expected in manifest['files'].items():
        path = folder / name
        with reaching(path):
            size = path.stat().length if path.exists() else None
        if size != expected['bytes']:
            found = 'is missing' if size is None else f'has {size} bytes, not {expected["bytes"]}'
            raise UserError(f'{path} {found}: copy it again, or delete {folder} and run --mode=prepare_data.')


def check_sums(folder: epath.Path, manifest: dict[str, Any], report_done: Any) -> None:
    """Whether every file has the content that was written.

    Args:
      report_done: called with the number of bytes read so far.

    Raises:
      UserError: names the first that has not.
    """
    check_sizes(folder, manifest)
    done = 0
    for name, expected in manifest['files'].items():
        if file_sha256(folder / name) != expected['sha256']:
            raise UserError(
                f'{folder / name} is damaged: its SHA-256 is not that of {MANIFEST}; copy it again, or delete '
                f'{folder} and run --mode=prepare_data.'
            )
        done += expected['bytes']
        report_done(done)


def fingerprint(split: dict[str, Any], class_names: Sequence[str]) -> str:
    """A digest of what a split holds: its pixels and labels in their order, and the names of the classes."""
    return hashlib.sha256(json.dumps([split['content_sha256'], list(class_names)]).encode()).hexdigest()


class PreparedSource:
    """One split of a prepared data set, with random access; may be sent to other processes.

    Args:
      folder: of the data set.
      manifest: its own.
      split: one of the manifest's.
      name: what the user calls the data set.

    Attributes: see `cfg.data.source.Source`.
    """

    def __init__(self, folder: epath.Path, manifest: dict[str, Any], split: str, name: str):
        if split not in manifest['splits']:
            raise UserError(
                f'config.data.split={split!r} must be one of {", ".join(manifest["splits"])}: {folder} has no other.'
            )
        self._folder, self._split = folder, split
        height, _, _ = manifest['image_shape']
        self.name = f'{config_name(name, height, manifest["crop"])}/{split}'
        self.class_names = tuple(manifest['class_names'])
        self.num_classes = len(self.class_names)
        self.image_shape = tuple(manifest['image_shape'])
        self.fingerprint = fingerprint(manifest['splits'][split], self.class_names)
        self._count = manifest['splits'][split]['images']

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
        """See `cfg.data.source.Source`.

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
        return {'image': images, 'label': np.array([record['label'] for record in records], np.int32)}


def open_prepared(name: str, *, data_dir: epath.Path, size: int, crop: str, split: str) -> PreparedSource:
    """The split of a prepared data set.

    Raises:
      UserError: when it is not prepared, files are missing or cut off, or it has no such split.
    """
    manifest = find_manifest(name, data_dir=data_dir, size=size, crop=crop)
    folder = folder_of(data_dir, name, size, crop)
    check_sizes(folder, manifest)
    return PreparedSource(folder, manifest, split, name)
