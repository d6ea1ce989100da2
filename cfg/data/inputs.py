"""What `--mode=prepare_data` reads: data sets of TFDS, and folders of images. Nothing is decoded here.

An input knows its classes and the number of images of each split, and cuts splits into sections that any process reads.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from etils import epath

from cfg.runtime.errors import UserError, first_line
from cfg.runtime.files import is_remote, reaching

EXTENSIONS = ('.jpg', '.jpeg', '.jfif', '.png', '.gif', '.webp', '.bmp', '.tif', '.tiff', '.avif')
SPLIT_FOLDERS = {
    'train': 'train',
    'training': 'train',
    'val': 'validation',
    'valid': 'validation',
    'validation': 'validation',
    'test': 'test',
}
AT_ONCE = 100  # encoded images that a worker holds in memory; 11 MB of ImageNet
# The archives of ILSVRC2012 that TFDS reads.
IMAGENET_TARS = ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar')


class Record(NamedTuple):
    """One image of an input.

    Attributes:
      name: of the file, for people.
      label: its class.
      content: the encoded image; empty when it could not be read.
      error: why not.
    """

    name: str
    label: int
    content: bytes
    error: str = ''


class Input(Protocol):
    """A labelled image data set in whatever form it came.

    Attributes:
      version: of the data set, for the manifest; changes when the data set does.
      class_names: one a label.
      channels: 3, or 1 where all images are grey.
      splits: {name: number of images}.
      empty_classes: names that were found without any image and are not among the classes.
      passed_over: number of files that are no images by their ending, by that.
    """

    version: str
    class_names: Sequence[str]
    channels: int
    splits: Mapping[str, int]
    empty_classes: Sequence[str]
    passed_over: Mapping[str, int]

    def section(self, split: str, start: int, stop: int) -> Iterable[Record]:
        """The images number `start` to `stop` - 1 of a split, always in the same order; may be sent to a worker."""


def open_input(name: str, *, tfds_dir: epath.Path, manual_dir: str) -> Input:
    """The input of a `config.data.name`.

    Args:
      name: 'tfds:NAME' (a data set of TFDS; prepared by TFDS first if it is not yet) or 'folder:PATH'.
      tfds_dir: where TFDS keeps its data sets.
      manual_dir: where TFDS looks for files that the user must fetch; '' for `tfds_dir`/downloads/manual.

    Raises:
      UserError: when it cannot be found, or is no image classification data set.
    """
    root = folder_path(name)
    if root is not None:
        return scan_folder(root)
    kind, _, rest = name.partition(':')
    if kind == 'tfds' and rest:
        return _open_tfds(rest, tfds_dir, epath.Path(manual_dir or tfds_dir / 'downloads' / 'manual').expanduser())
    raise UserError(f'config.data.name={name!r} has nothing to prepare: give tfds:NAME or folder:PATH.')


def folder_path(name: str) -> epath.Path | None:
    """The path in a `config.data.name` of the form 'folder:PATH'; None for other names."""
    kind, _, rest = name.partition(':')
    return epath.Path(rest).expanduser() if kind == 'folder' and rest else None


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


class TfdsInput:
    """A data set that TFDS has prepared, in any of its file formats.

    Args:
      folder: of the data set and version, with its dataset_info.json.
    """

    empty_classes: Sequence[str] = ()
    passed_over: Mapping[str, int] = MappingProxyType({})

    def __init__(self, folder: epath.PathLike):
        self._folder = os.fspath(folder)
        info = _builder(self._folder).info
        self._image, self._label = _image_and_label(info, folder)
        files = {name: [split.num_bytes, *split.shard_lengths] for name, split in info.splits.items()}
        self.version = f'{info.full_name}, files {_digest(files)}'
        self.class_names = tuple(info.features[self._label].names)
        self.channels = 1 if info.features[self._image].shape[-1] == 1 else 3
        counts = {name: split.num_examples for name, split in info.splits.items()}
        # TFDS's test splits often have no labels; they serve where there is no validation split.
        wanted = [name for name in ('train', 'validation') if name in counts]
        wanted += ['test'] if 'test' in counts and 'validation' not in counts else []
        self.splits = {name: counts[name] for name in wanted if counts[name]}
        if 'train' not in self.splits:
            raise UserError(f'{info.full_name} has no train split, but {", ".join(counts) or "none"}.')

    def section(self, split: str, start: int, stop: int) -> Iterable[Record]:
        """See `Input`."""
        return _TfdsSection(self._folder, self._image, self._label, split, start, stop)


@functools.lru_cache(maxsize=1)
def _builder(folder: str) -> Any:
    """TFDS's reader of a folder; a worker opens it once for all its sections."""
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(folder)


def _image_and_label(info: Any, folder: epath.PathLike) -> tuple[str, str]:
    """The names of the two features: the ones that the data set is meant for, or else the only ones of their kind."""
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


@dataclass(frozen=True)
class _TfdsSection:
    folder: str
    image: str
    label: str
    split: str
    start: int
    stop: int

    def __iter__(self) -> Iterator[Record]:
        for i, example in enumerate(self._examples(), start=self.start):
            name = example['file_name'].decode() if 'file_name' in example else f'{self.split}/{i}'
            yield Record(name, int(example[self.label]), example[self.image])

    def _examples(self) -> Iterator[dict[str, Any]]:
        import tensorflow_datasets as tfds

        builder = _builder(self.folder)
        encoded = {self.image: tfds.decode.SkipDecoding()}
        if builder.info.file_format in tfds.core.FileFormat.with_random_access():
            source = builder.as_data_source(self.split, decoders=encoded)
            for begin in range(self.start, self.stop, AT_ONCE):
                yield from source.__getitems__(list(range(begin, min(begin + AT_ONCE, self.stop))))
            return
        # One file after the other, so that the order is that of the files.
        in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        split = f'{self.split}[{self.start}:{self.stop}]'
        examples = builder.as_dataset(split=split, decoders=encoded, shuffle_files=False, read_config=in_order)
        yield from tfds.as_numpy(examples)


def _open_tfds(name: str, tfds_dir: epath.Path, manual_dir: epath.Path) -> TfdsInput:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=tfds_dir)
    except Exception as error:  # not found, no such config, no such version: TFDS has a kind for each
        raise UserError(f'TFDS has no data set {name!r}: {first_line(error)}') from error
    if builder.is_prepared():
        return TfdsInput(builder.data_dir)
    others = sorted(builder.data_path.parent.glob('*/dataset_info.json'))
    if others and ':' not in name:  # a copy of another version is as good, and the manifest says which it was
        return TfdsInput(others[-1].parent)
    if builder.name == 'imagenet2012':
        check_imagenet_tars(manual_dir)
    try:
        builder = tfds.builder(name, data_dir=tfds_dir, file_format='array_record')
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except MemoryError:
        raise
    except Exception as error:  # what can go wrong is as wide as the data sets
        raise UserError(f'TFDS could not prepare {name!r} ({type(error).__name__}): {first_line(error)}') from error
    return TfdsInput(builder.data_dir)


def check_imagenet_tars(manual_dir: epath.Path) -> None:
    """Whether the user has put ILSVRC2012's archives where TFDS looks for them.

    Raises:
      UserError: says which files to put where.
    """
    missing = [name for name in IMAGENET_TARS if not (manual_dir / name).exists()]
    if missing:
        raise UserError(
            f'{manual_dir} lacks {" and ".join(missing)}: register at https://image-net.org/download-images, download '
            f'the ILSVRC2012 training and validation images (Task 1 & 2), and put both tar files there, or name '
            'their folder with --config.prepare.manual_dir (or, with --config.prepare.tfds_dir, the folder that '
            'contains an imagenet2012 of TFDS).'
        )


class FolderInput:
    """Images in a folder; see `scan_folder`.

    Args:
      root: names are relative to it.
      class_names: one a label.
      files: {split: [(name, size in bytes or -1, label)]}.
      empty_classes, passed_over: see `Input`.
    """

    channels = 3

    def __init__(
        self,
        root: epath.Path,
        class_names: Sequence[str],
        files: Mapping[str, Sequence[tuple[str, int, int]]],
        empty_classes: Sequence[str],
        passed_over: Mapping[str, int],
    ):
        self._root, self._files = root, files
        self.class_names, self.empty_classes = tuple(class_names), tuple(empty_classes)
        self.passed_over = dict(passed_over)
        self.splits = {split: len(members) for split, members in files.items()}
        self.version = f'{sum(self.splits.values())} files, listing {_digest([self.class_names, files])}'

    def section(self, split: str, start: int, stop: int) -> Iterable[Record]:
        """See `Input`."""
        return _FolderSection(self._root, tuple((name, label) for name, _, label in self._files[split][start:stop]))


@dataclass(frozen=True)
class _FolderSection:
    root: epath.Path
    files: Sequence[tuple[str, int]]

    def __iter__(self) -> Iterator[Record]:
        for name, label in self.files:
            try:
                yield Record(name, label, (self.root / name).read_bytes())
            except (FileNotFoundError, PermissionError) as error:  # others are not the file's fault
                yield Record(name, label, b'', error.strerror or str(error))


def scan_folder(root: epath.Path) -> FolderInput:
    """Finds the images of a folder.

    It may hold `train` and `val` (or `validation`), `test`, or else everything is the train split. Within a split,
    either each subfolder is a class with its images anywhere below, or all images lie flat and their class is what
    comes before the first `_` of their names (ADM's layout). Classes are numbered in the order of their names as
    text. Files that are not images by their ending, and names that begin with a dot, are passed over.

    Raises:
      UserError: when there is no such folder, it is laid out in neither way, or classes of the splits differ.
    """
    with reaching(root):
        if not root.is_dir():
            raise UserError(f'{root} is not a folder: give the folder of the images, --config.data.name=folder:PATH.')
        folders, files, passed_over = _walk(root)
    found = {
        split: _by_class(root / prefix, prefix, folders, files) for split, prefix in _splits(root, folders).items()
    }
    classes = sorted(name for name, members in found['train'].items() if members)
    named = {name for members in found.values() for name in members}
    odd = next((name for name in sorted(named) if not name.isprintable() or printable(name) != name), None)
    if odd is not None:
        raise UserError(f'{root} has a class whose name is not readable text, {printable(odd)!r}: rename it.')
    if not classes:
        raise UserError(f'{root} holds no images to train on ({", ".join(EXTENSIONS)}).')
    for split, members in found.items():
        unknown = sorted(name for name, paths in members.items() if paths and name not in classes)
        if unknown:
            raise UserError(
                f'The {split} split of {root} has the class {unknown[0]!r}, which has no image to train on: put images '
                'of it among those for training, or take it away.'
            )
    listed = {
        split: [(*file, label) for label, name in enumerate(classes) for file in sorted(members.get(name, ()))]
        for split, members in found.items()
    }
    empty = sorted(name for name in named if name not in classes)
    return FolderInput(
        root, classes, {split: members for split, members in listed.items() if members}, empty, passed_over
    )


def printable(name: str) -> str:
    """A file name as text that can be written anywhere: bytes that are not UTF-8 become escapes."""
    return name.encode('utf-8', 'backslashreplace').decode()


def _walk(root: epath.Path) -> tuple[list[str], list[tuple[str, int]], Counter]:
    """What is below a folder, as paths relative to it.

    Returns:
      (folders, [(image, size in bytes; -1 in a bucket)], number of other files by ending).
    """
    local = not is_remote(root)
    folders, files, others = [], [], Counter()
    # One listing a folder; links to folders are followed.
    for where, names, members in os.walk(root, followlinks=True) if local else root.walk():
        names[:] = [name for name in names if not name.startswith('.') and not (local and _is_loop(where, name))]
        place = '' if str(where) == str(root) else f'{PurePosixPath(str(where)).relative_to(str(root))}/'
        folders += [f'{place}{name.rstrip("/")}' for name in names]
        for name in members:
            ending = PurePosixPath(name).suffix.lower()
            if name.startswith('.'):
                continue
            if ending not in EXTENSIONS:
                others[printable(ending) or 'none'] += 1
            else:
                files.append((f'{place}{name}', _size(os.path.join(where, name)) if local else -1))  # noqa: PTH118
    return folders, files, others


def _is_loop(where: str, name: str) -> bool:
    """Whether a folder is a link to itself or to one above it."""
    path = os.path.realpath(os.path.join(where, name))  # noqa: PTH118
    return f'{os.path.realpath(where)}/'.startswith(f'{path}/')


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  a million times; pathlib takes several times as long
    except OSError:  # a link to nothing; reading it will say so
        return -1


def _splits(root: epath.Path, folders: Sequence[str]) -> dict[str, str]:
    """{split: its folder relative to the root, '' for all of it}."""
    top = sorted(name for name in folders if '/' not in name)
    split_of = {name: SPLIT_FOLDERS.get(name.lower()) for name in top}
    training = [name for name in top if split_of[name] == 'train']
    # A class may be called "train"; then it holds images, and not classes.
    if not training or (None in split_of.values() and not any(name.startswith(f'{training[0]}/') for name in folders)):
        return {'train': ''}
    odd = [name for name in top if split_of[name] is None]
    if odd or len(set(split_of.values())) < len(top):
        raise UserError(
            f'{root} holds {", ".join(top)}: beside {training[0]} there may be one folder val (or validation) and one '
            'folder test, and no others; rename or move them.'
        )
    return {split: name for name, split in split_of.items()}


def _by_class(
    where: epath.Path, prefix: str, folders: Sequence[str], files: Sequence[tuple[str, int]]
) -> dict[str, list[tuple[str, int]]]:
    """{class name: [(image, size)]} of one split; empty class folders too."""
    below = f'{prefix}/' if prefix else ''
    classes = [name[len(below) :] for name in folders if name.startswith(below) and '/' not in name[len(below) :]]
    members: dict[str, list[tuple[str, int]]] = {name: [] for name in classes}
    for name, size in files:
        if not name.startswith(below):
            continue
        class_name, slash, _ = name[len(below) :].partition('/')
        if not slash:
            if classes:
                raise UserError(
                    f'{where} holds both subfolders ({classes[0]}) and images ({class_name}): either every class has '
                    'a subfolder, or all images lie flat as label_name.png.'
                )
            class_name, underscore, _ = class_name.partition('_')
            if not underscore or not class_name:
                raise UserError(
                    f'{where / name[len(below) :]} has no class in its name: images that lie flat are called '
                    'label_name.png.'
                )
        members.setdefault(class_name, []).append((name, size))
    direct = [name for name, _ in files if name.startswith(below) and name[len(below) :].count('/') <= 1]
    if members and any(members.values()) and not direct:
        raise UserError(
            f'{where} holds folders of folders ({", ".join(classes[:5])}): give the folder whose subfolders are the '
            'classes, or name those above train and val.'
        )
    return members
