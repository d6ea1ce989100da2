"""What `--mode=prepare_data` reads: data sets of TFDS, and folders of images. Nothing is decoded here.

An input knows its classes and the number of images of each split, and reads any range of them in any process.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from cfg.errors import UserError

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.gif', '.webp', '.bmp')
SPLIT_FOLDERS = {'train': 'train', 'val': 'validation', 'validation': 'validation', 'test': 'test'}
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
    """A labelled image data set in whatever form it came; sent to worker processes whole.

    Attributes:
      version: of the data set, for the manifest; changes when the data set does.
      class_names: one a label.
      channels: 3, or 1 where all images are grey.
      splits: {name: number of images}.
      empty_classes: names that were found without any image and are not among the classes.
    """

    version: str
    class_names: Sequence[str]
    channels: int
    splits: Mapping[str, int]
    empty_classes: Sequence[str]

    def read(self, split: str, start: int, stop: int) -> Iterator[Record]:
        """The images number `start` to `stop` - 1 of a split, always in the same order."""


def open_input(name: str, *, data_dir: epath.Path, manual_dir: str) -> Input:
    """The input of a `config.data.name`.

    Args:
      name: 'tfds:NAME' (a data set of TFDS; prepared by TFDS first if it is not yet) or 'folder:PATH'.
      data_dir: of TFDS.
      manual_dir: where TFDS looks for files that the user must fetch; '' for `data_dir`/downloads/manual.

    Raises:
      UserError: when it cannot be found, or is no image classification data set.
    """
    kind, _, rest = name.partition(':')
    if kind == 'tfds' and rest:
        return _open_tfds(rest, data_dir, epath.Path(manual_dir or data_dir / 'downloads' / 'manual'))
    if kind == 'folder' and rest:
        return scan_folder(epath.Path(rest))
    raise UserError(f'config.data.name={name!r} has nothing to prepare: give tfds:NAME or folder:PATH.')


class TfdsInput:
    """A data set that TFDS has prepared, in any of its file formats.

    Args:
      folder: of the data set and version, with its dataset_info.json.
    """

    empty_classes: Sequence[str] = ()

    def __init__(self, folder: epath.PathLike):
        self._folder = str(folder)
        self._builder = None
        info = self._open().info
        features = info.features or {}
        self._image = _only(features, 'Image', folder)
        self._label = _only(features, 'ClassLabel', folder)
        self._name = 'file_name' if 'file_name' in features else None
        self.version = info.full_name
        self.class_names = tuple(features[self._label].names)
        self.channels = 1 if features[self._image].shape[-1] == 1 else 3
        counts = {name: split.num_examples for name, split in info.splits.items()}
        # TFDS's test splits often have no labels; they serve where there is no validation split.
        wanted = [name for name in ('train', 'validation') if name in counts]
        wanted += ['test'] if 'test' in counts and 'validation' not in counts else []
        self.splits = {name: counts[name] for name in wanted if counts[name]}
        if 'train' not in self.splits:
            raise UserError(f'{info.full_name} has no train split, but {", ".join(counts) or "none"}.')

    def __getstate__(self):
        return self.__dict__ | {'_builder': None}

    def _open(self) -> Any:
        if self._builder is None:
            import tensorflow_datasets as tfds

            self._builder = tfds.builder_from_directory(self._folder)
        return self._builder

    def read(self, split: str, start: int, stop: int) -> Iterator[Record]:
        """See `Input`."""
        for i, example in enumerate(self._examples(split, start, stop), start=start):
            name = f'{split}/{i}' if self._name is None else example[self._name].decode()
            yield Record(name, int(example[self._label]), example[self._image])

    def _examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        import tensorflow_datasets as tfds

        builder = self._open()
        encoded = {self._image: tfds.decode.SkipDecoding()}
        if builder.info.file_format in tfds.core.FileFormat.with_random_access():
            yield from builder.as_data_source(split, decoders=encoded).__getitems__(list(range(start, stop)))
            return
        # One file after the other, so that the order is that of the files.
        in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        examples = builder.as_dataset(
            split=f'{split}[{start}:{stop}]', decoders=encoded, shuffle_files=False, read_config=in_order
        )
        yield from tfds.as_numpy(examples)


def _only(features: Any, kind: str, folder: epath.PathLike) -> str:
    names = [name for name, feature in features.items() if type(feature).__name__ == kind]
    if len(names) != 1:
        raise UserError(
            f'{folder} has {len(names)} features of kind {kind}: only data sets with one image and one class an '
            'example can be prepared.'
        )
    return names[0]


def _open_tfds(name: str, data_dir: epath.Path, manual_dir: epath.Path) -> TfdsInput:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # not found, no such config, no such version: TFDS has a kind for each
        raise UserError(f'TFDS has no data set {name!r}: {_first_line(error)}') from error
    if builder.is_prepared():
        return TfdsInput(builder.data_dir)
    if builder.name == 'imagenet2012':
        check_imagenet_tars(manual_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # what can go wrong is as wide as the data sets
        raise UserError(f'TFDS could not prepare {name!r} ({type(error).__name__}): {_first_line(error)}') from error
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
            'their folder with --config.prepare.manual_dir.'
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


class FolderInput:
    """Images in a folder; see `scan_folder`.

    Args:
      root: names are relative to it.
      class_names: one a label.
      files: {split: [(name, label)]}.
      empty_classes: see `Input`.
    """

    channels = 3

    def __init__(
        self,
        root: epath.Path,
        class_names: Sequence[str],
        files: Mapping[str, Sequence[tuple[str, int]]],
        empty_classes: Sequence[str],
    ):
        self.root, self.files = root, files
        self.class_names, self.empty_classes = tuple(class_names), tuple(empty_classes)
        self.splits = {split: len(members) for split, members in files.items()}
        listing = json.dumps([self.class_names, files], sort_keys=True).encode()
        self.version = f'{sum(self.splits.values())} files, listing {hashlib.sha256(listing).hexdigest()[:16]}'

    def read(self, split: str, start: int, stop: int) -> Iterator[Record]:
        """See `Input`."""
        for name, label in self.files[split][start:stop]:
            try:
                yield Record(name, label, (self.root / name).read_bytes())
            except OSError as error:
                yield Record(name, label, b'', error.strerror or str(error))


def scan_folder(root: epath.Path) -> FolderInput:
    """Finds the images of a folder.

    It may hold `train` and `val` (or `validation`, `test`), or else everything is the train split. Within a split,
    either each subfolder is a class with its images anywhere below, or all images lie flat and their class is what
    comes before the first `_` of their names (ADM's layout). Classes are numbered in the order of their names as
    text. Files that are not images by their ending, and names that begin with a dot, are passed over.

    Raises:
      UserError: when there is no such folder, it is laid out in neither way, or classes of the splits differ.
    """
    if not root.is_dir():
        raise UserError(f'{root} is not a folder: give the folder of the images, --config.data.name=folder:PATH.')
    entries = _entries(root)
    folders = [path for path in entries if path.is_dir()]
    parts = {'train': root}
    if folders and {path.name for path in folders} <= set(SPLIT_FOLDERS) and 'train' in {p.name for p in folders}:
        parts = {SPLIT_FOLDERS[path.name]: path for path in folders}
    found = {split: _by_class(path) for split, path in parts.items()}
    classes = sorted(name for name, files in found['train'].items() if files)
    empty = sorted({name for split in found.values() for name, files in split.items() if not files} - set(classes))
    if not classes:
        raise UserError(f'{parts["train"]} holds no images ({", ".join(EXTENSIONS)}).')
    files = {}
    for split, members in found.items():
        unknown = sorted(name for name, paths in members.items() if paths and name not in classes)
        if unknown:
            raise UserError(
                f'{parts[split]} has the class {unknown[0]!r}, which {parts["train"]} has no image of: '
                'put images of it there, or take it away.'
            )
        paths = [(path, label) for label, name in enumerate(classes) for path in sorted(members.get(name, ()))]
        files[split] = [(str(path.relative_to(root)), label) for path, label in paths]
    return FolderInput(root, classes, {split: members for split, members in files.items() if members}, empty)


def _entries(folder: epath.Path) -> list[epath.Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith('.')), key=lambda path: path.name)


def _by_class(folder: epath.Path) -> dict[str, list[epath.Path]]:
    """{class name: images} of one split; empty class folders too."""
    entries = _entries(folder)
    folders = [path for path in entries if path.is_dir()]
    flat = [path for path in entries if _is_image(path)]
    if folders and flat:
        raise UserError(
            f'{folder} holds both subfolders ({folders[0].name}) and images ({flat[0].name}): either every class has '
            'a subfolder, or all images lie flat as label_name.png.'
        )
    if folders:
        return {path.name: [file for file in _walk(path) if _is_image(file)] for path in folders}
    members: dict[str, list[epath.Path]] = {}
    for path in flat:
        name, underscore, _ = path.name.partition('_')
        if not underscore or not name:
            raise UserError(f'{path} has no class in its name: images that lie flat are called label_name.png.')
        members.setdefault(name, []).append(path)
    return members


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    for path in _entries(folder):
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _is_image(path: epath.Path) -> bool:
    return path.suffix.lower() in EXTENSIONS
