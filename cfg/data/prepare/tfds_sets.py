"""Reads a data set of TFDS, in any of its file formats, as an input."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from cfg.data.disk import made_by_tfds
from cfg.data.prepare.imagenet import PUBLISHED, check_archives
from cfg.data.prepare.inputs import Input, Record, Records, digest
from cfg.runtime.errors import UserError, first_line

log = logging.getLogger('cfg')

AT_ONCE = 100  # encoded images that a worker holds in memory; 11 MB of ImageNet


def open_tfds(name: str, *, tfds_dir: epath.Path, manual_dir: epath.Path) -> Input:
    """Opens a data set of TFDS; TFDS prepares it first if it is not yet, maybe from files in `manual_dir`.

    Raises:
      UserError: when it cannot be found or prepared, or is no image classification data set.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=tfds_dir)
    except Exception as error:  # not found, no such config, no such version: TFDS has a kind for each
        raise UserError(f'TFDS has no data set {name!r}: {first_line(error)}') from error
    if builder.is_prepared():
        return read_tfds(builder.data_dir)
    others = sorted(builder.data_path.parent.glob('*/dataset_info.json'))
    if others and ':' not in name:  # a copy of another version is as good, and the manifest says which it was
        return read_tfds(others[-1].parent)
    if builder.name == 'imagenet2012':
        check_archives(manual_dir)
    builder = tfds.builder(name, data_dir=tfds_dir, file_format='array_record')
    advice = PUBLISHED if builder.name == 'imagenet2012' else ''
    made_by_tfds(builder, name, manual_dir=manual_dir, advice=advice)
    return read_tfds(builder.data_dir)


def read_tfds(folder: epath.PathLike) -> Input:
    """Opens a data set that TFDS has prepared, from the folder of its version.

    Raises:
      UserError: when it has no train split, or not one image and one class an example.
    """
    folder = os.fspath(folder)
    with _reading(folder):
        info = _builder(folder).info
    image, label = _image_and_label(info, folder)
    counts = {name: split.num_examples for name, split in info.splits.items()}
    # A test split serves where there is no validation split, and if it has labels, which many of TFDS keep secret.
    wanted = ('train', 'validation') if 'validation' in counts else ('train', 'test')
    splits = {name: counts[name] for name in wanted if counts.get(name)}
    if 'test' in splits and next(_read(folder, image, label, 'test', 0, 1)).error:
        log.info('The test split of %s has no classes and is left out.', info.full_name)
        del splits['test']
    if 'train' not in splits:
        raise UserError(f'{info.full_name} has no train split, but {", ".join(counts) or "none"}.')

    def section(split: str, start: int, stop: int) -> Records:
        return functools.partial(_read, folder, image, label, split, start, stop)

    files = {name: [split.num_bytes, *split.shard_lengths] for name, split in info.splits.items()}
    return Input(
        version=f'{info.full_name}, files {digest(files)}',
        class_names=tuple(info.features[label].names),
        channels=1 if info.features[image].shape[-1] == 1 else 3,
        splits=splits,
        section=section,
    )


@functools.lru_cache(maxsize=1)
def _builder(folder: str) -> Any:
    """Opens TFDS's reader of a folder; a worker does so once for all its sections."""
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder)


def _image_and_label(info: Any, folder: epath.PathLike) -> tuple[str, str]:
    """Names the image and the label: those that the data set is meant for, or else the only ones of their kind."""
    kinds = {name: type(feature).__name__ for name, feature in (info.features or {}).items()}
    meant = info.supervised_keys or ()
    if [kinds.get(name) for name in meant] == ['Image', 'ClassLabel']:
        return tuple(meant)
    found = []
    for kind in ('Image', 'ClassLabel'):
        names = [name for name in kinds if kinds[name] == kind]
        if len(names) != 1:
            raise UserError(
                f'{folder} has {len(names)} features of kind {kind}: only data sets with one image and one class an '
                'example can be prepared.'
            )
        found += names
    return tuple(found)


def _read(folder: str, image: str, label: str, split: str, start: int, stop: int) -> Iterator[Record]:
    examples = enumerate(_examples(folder, image, split, start, stop), start=start)
    while True:
        with _reading(folder, f', among images {start} to {stop - 1} of the {split} split'):
            i, example = next(examples, (stop, None))
            if example is None:
                return
            if example[image] is None or example[label] is None:  # of a file that is cut short
                raise ValueError('an empty record')
        name = example['file_name'].decode() if 'file_name' in example else f'{split}/{i}'
        yield Record(name, int(example[label]), example[image], '' if example[label] >= 0 else 'it has no class')


@contextlib.contextmanager
def _reading(folder: str, where: str = '') -> Iterator[None]:
    """Turns what damaged files of TFDS raise into a sentence; `where` says which they are."""
    try:
        yield
    except (MemoryError, OSError):  # a file system that is away for a moment is no damage
        raise
    except Exception as error:  # array_record, TFRecords and protobuf each raise their own kinds
        raise UserError(
            f'{folder} cannot be read ({type(error).__name__}: {first_line(error)}){where}: copy it again, or delete '
            'it so that TFDS prepares it anew.'
        ) from error


def _examples(folder: str, image: str, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
    import tensorflow_datasets as tfds

    builder = _builder(folder)
    encoded = {image: tfds.decode.SkipDecoding()}
    if builder.info.file_format in tfds.core.FileFormat.with_random_access():
        source = builder.as_data_source(split, decoders=encoded)
        for begin in range(start, stop, AT_ONCE):
            yield from source.__getitems__(list(range(begin, min(begin + AT_ONCE, stop))))
        return
    # One file after the other, so that the order is that of the files.
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    examples = builder.as_dataset(
        split=f'{split}[{start}:{stop}]', decoders=encoded, shuffle_files=False, read_config=in_order
    )
    yield from tfds.as_numpy(examples)
