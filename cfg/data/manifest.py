"""Prepared data sets: their names, where they lie, and their manifests. No pixel is read here.

`DIR/prepared_images/NAME_SIZE_CROP/1.0.0` is a data set of TFDS (`cfg.data.prepare.builder`) with one more file,
manifest.json, which is written last: a folder without it is not finished.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from etils import epath

from cfg.runtime.errors import UserError
from cfg.runtime.files import reaching, sha256_of_file
from cfg.runtime.paths import user_path

BUILDER, VERSION = 'prepared_images', '1.0.0'
MANIFEST = 'manifest.json'
# Short names of config.data.name.
ALIASES = {'imagenet': 'tfds:imagenet2012'}


def is_preparable(name: str) -> bool:
    """Tells whether a `config.data.name` is one of those that are prepared."""
    kind, _, rest = ALIASES.get(name, name).partition(':')
    return kind in ('tfds', 'folder') and bool(rest and short_name(name))


def full_name(name: str) -> str:
    """Returns a `config.data.name` without aliases, as it stands in manifests."""
    return ALIASES.get(name, name).rstrip('/')


def short_name(name: str) -> str:
    """Returns what a data set is called in file names and results; it is the same wherever the data set lies.

    'imagenet' and 'tfds:imagenet2012' -> 'imagenet2012'; 'folder:/data/cats' -> 'cats'.
    """
    kind, colon, rest = ALIASES.get(name, name).partition(':')
    if kind == 'folder':
        rest = PurePosixPath(rest).name
    return re.sub(r'[^\w.-]+', '-', rest if colon else kind)


def default_dir(data_dir: str) -> epath.Path:
    """Returns `config.data.dir`, or TFDS's own folder when it is empty."""
    chosen = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
    return epath.Path(user_path(chosen, 'config.data.dir' if data_dir else 'TFDS_DATA_DIR'))


def config_name(name: str, size: int, crop: str) -> str:
    """Returns the name of a prepared data set among others."""
    return f'{short_name(name)}_{size}_{crop}'


def folder_of(data_dir: epath.Path, name: str, size: int, crop: str) -> epath.Path:
    """Returns where a data set lies when it is prepared."""
    return data_dir / BUILDER / config_name(name, size, crop) / VERSION


def read_manifest(folder: epath.Path) -> dict[str, Any] | None:
    """Reads the manifest of a prepared data set; None if it has none.

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
    """Reads the manifest of the data set of a config; raises a UserError when it is not prepared."""
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
    """Raises a UserError unless a data set was prepared under the same name: two folders may end alike."""
    if full_name(name) != manifest['source']:
        raise UserError(
            f'{folder} was prepared as {manifest["source"]}, not {full_name(name)}: use that config.data.name (its '
            'path need not exist on this machine), or prepare the other in another config.data.dir.'
        )


def check_sizes(folder: epath.Path, manifest: dict[str, Any]) -> None:
    """Raises a UserError that names the first file which is not there or, as in a broken copy, not of its size."""
    for name, expected in manifest['files'].items():
        path = folder / name
        with reaching(path):
            size = path.stat().length if path.exists() else None
        if size != expected['bytes']:
            found = 'is missing' if size is None else f'has {size} bytes, not {expected["bytes"]}'
            raise UserError(f'{path} {found}: copy it again, or delete {folder} and run --mode=prepare_data.')


def check_sums(folder: epath.Path, manifest: dict[str, Any], report_done: Callable[[int], None]) -> None:
    """Raises a UserError that names the first file whose content is not what was written.

    `report_done` is called with the number of bytes read so far.
    """
    check_sizes(folder, manifest)
    done = 0
    for name, expected in manifest['files'].items():
        if sha256_of_file(folder / name) != expected['sha256']:
            raise UserError(
                f'{folder / name} is damaged: its SHA-256 is not that of {MANIFEST}; copy it again, or delete '
                f'{folder} and run --mode=prepare_data.'
            )
        done += expected['bytes']
        report_done(done)
