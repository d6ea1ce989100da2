"""Reads a folder of images as an input."""

import functools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from etils import epath

from cfg.data.manifest import BUILDER
from cfg.data.prepare.classes import by_class, lookalike, shown, spelled_alike
from cfg.data.prepare.inputs import Input, Record, Records, digest
from cfg.runtime.errors import UserError
from cfg.runtime.files import reaching
from cfg.runtime.paths import is_remote, user_path

EXTENSIONS = ('.jpg', '.jpeg', '.jfif', '.png', '.gif', '.webp', '.bmp', '.tif', '.tiff', '.avif')
# Files and folders that file systems, desktops, NAS boxes, editors and this program put among images. A thumbnail among
# them would be one more image, and its folder one more class.
MACHINE_MADE = re.compile(
    r'@(eaDir|Recycle|Recently-Snapshot|sharebin|tmp|Transcode)|#recycle|TheVolumeSettingsFolder'  # NAS boxes
    r'|[#~.]snapshot|\.zfs|lost\+found'  # file systems
    r'|\$RECYCLE\.BIN|RECYCLER|FOUND\.\d{3}|System Volume Information|(eh)?Thumbs\.db|desktop\.ini'  # Windows
    r'|__MACOSX|\.DS_Store|\.AppleDouble|\.Trashes|\.Spotlight-V100|\.fseventsd|\.TemporaryItems|\.DocumentRevisions-V100'
    r'|Network Trash Folder|Temporary Items|Icon\r'  # macOS, with the line before
    r'|\.Trash(-\d+)?|\.thumbnails|\.git|\.ipynb_checkpoints|__pycache__'  # desktops and editors
    rf'|{BUILDER}',
    re.IGNORECASE,
)
SPLIT_FOLDERS = {
    'train': 'train',
    'training': 'train',
    'val': 'validation',
    'valid': 'validation',
    'validation': 'validation',
    'test': 'test',
}


def folder_path(name: str) -> epath.Path | None:
    """Returns the path in a `config.data.name` of the form 'folder:PATH'; None for other names."""
    kind, _, rest = name.partition(':')
    return epath.Path(user_path(rest, 'config.data.name=folder') or rest) if kind == 'folder' and rest else None


def scan_folder(root: epath.Path, classes_from: str = 'auto') -> Input:
    """Finds the images of a folder.

    It may hold `train` and `val` (or `validation`), `test`, or else everything is the train split. How the class of an
    image is told see `cfg.data.prepare.classes.by_class`. Classes are numbered in the order of their names as text.
    Files that are not images by their ending, and what machines made, are passed over and counted.

    Args:
      classes_from: 'folders', 'names', or 'auto' for what the folder looks like.

    Raises:
      UserError: when there is no such folder, it is laid out in neither way or in both, or classes of the splits
        differ.
    """
    with reaching(root):
        if not root.is_dir():
            raise UserError(f'{root} is not a folder: give the folder of the images, --config.data.name=folder:PATH.')
        folders, images, passed_over = _walk(root)
    places = _splits(root, folders)
    found = {split: by_class(root, place, folders, images, classes_from) for split, place in places.items()}
    found = spelled_alike(found)
    classes = tuple(sorted(name for name, members in found['train'].items() if members))
    named = sorted({name for members in found.values() for name in members})
    odd = next((name for name in named if not name.isprintable() or printable(name) != name), None)
    if odd is not None:
        raise UserError(f'{root} has a class whose name is not readable text, {printable(odd)!r}: rename it.')
    if not classes:
        raise UserError(f'{root} holds no images to train on ({", ".join(EXTENSIONS)}).')
    for split, members in found.items():
        unknown = sorted(name for name, paths in members.items() if paths and name not in classes)
        if unknown:
            raise UserError(
                f'The {split} split of {root} has the class {shown(unknown[0])}, which has no image to train '
                f'on{lookalike(unknown[0], classes)}: put images of it among those for training, or take it away.'
            )
    files = {
        split: [(*file, label) for label, name in enumerate(classes) for file in sorted(members.get(name, ()))]
        for split, members in found.items()
        if any(members.values())
    }
    splits = {split: len(members) for split, members in files.items()}

    def section(split: str, start: int, stop: int) -> Records:
        return functools.partial(_read, root, [(name, label) for name, _, label in files[split][start:stop]])

    return Input(
        version=f'{sum(splits.values())} files, listing {digest([classes, files])}',
        class_names=classes,
        channels=3,
        splits=splits,
        section=section,
        empty_classes=tuple(name for name in named if name not in classes),
        passed_over=passed_over,
    )


def _read(root: epath.Path, files: Sequence[tuple[str, int]]) -> Iterator[Record]:
    for name, label in files:
        try:
            yield Record(name, label, (root / name).read_bytes())
        except (FileNotFoundError, PermissionError) as error:  # others are not the file's fault
            yield Record(name, label, b'', error.strerror or str(error))


def printable(name: str) -> str:
    """Makes a file name text that can be written anywhere: bytes that are not UTF-8 become escapes."""
    return name.encode('utf-8', 'backslashreplace').decode()


def _walk(root: epath.Path) -> tuple[list[str], list[tuple[str, int]], Counter]:
    """Lists what is below a folder, as paths relative to it.

    Returns:
      (folders, [(image, size in bytes; -1 in a bucket)], number of other files by ending or name, and of folders that
      were not looked into by their names with a /).
    """
    local = not is_remote(root)
    folders, files, others = [], [], Counter()
    # One listing a folder; links to folders are followed.
    for where, names, members in os.walk(root, followlinks=True) if local else root.walk():
        others.update(f'{made}/' for name in names if (made := machine_made(name.rstrip('/'))))
        names[:] = [
            name for name in names if not machine_made(name.rstrip('/')) and not (local and _is_loop(where, name))
        ]
        place = '' if str(where) == str(root) else f'{PurePosixPath(str(where)).relative_to(str(root))}/'
        folders += [f'{place}{name.rstrip("/")}' for name in names]
        for name in members:
            ending = PurePosixPath(name).suffix.lower()
            if made := machine_made(name):
                others[made] += 1
            elif ending not in EXTENSIONS:
                others[printable(ending) or 'none'] += 1
            else:
                files.append((f'{place}{name}', _size(os.path.join(where, name)) if local else -1))  # noqa: PTH118
    return folders, files, others


def machine_made(name: str) -> str:
    """Returns as what a file or folder that no person made is counted; '' of any other name."""
    if MACHINE_MADE.fullmatch(name):
        return name.strip()
    return ('._*' if name.startswith('._') else '.*') if name.startswith('.') else ''


def _is_loop(where: str, name: str) -> bool:
    """Tells whether a folder is a link to itself or to one above it."""
    path = os.path.realpath(os.path.join(where, name))  # noqa: PTH118
    return f'{os.path.realpath(where)}/'.startswith(f'{path}/')


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  a million times; pathlib takes several times as long
    except OSError:  # a link to nothing; reading it will say so
        return -1


def _splits(root: epath.Path, folders: Sequence[str]) -> dict[str, str]:
    """Returns {split: its folder relative to the root, '' for all of it}."""
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
