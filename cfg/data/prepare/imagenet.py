"""Checks the archives of ILSVRC2012 before TFDS reads them for an hour."""

import re
import tarfile
from typing import NamedTuple

from etils import epath

from cfg.runtime.errors import UserError, first_line
from cfg.runtime.files import reaching
from cfg.runtime.paths import is_remote


class Archive(NamedTuple):
    """An archive as it is published."""

    size: int  # bytes
    md5: str
    entry: str  # pattern of the names in it


# Those that TFDS reads.
ARCHIVES = {
    'ILSVRC2012_img_train.tar': Archive(147_897_477_120, '1d675b47d978889d74fa0da5fadfb00e', r'n\d{8}\.tar'),
    'ILSVRC2012_img_val.tar': Archive(6_744_924_160, '29b22e2961454d5413ddabcf34fc5622', r'ILSVRC2012_val_\d{8}\.JPEG'),
}
PUBLISHED = 'compare the archives with those published: ' + ', '.join(
    f'{name} of {one.size} bytes and MD5 {one.md5}' for name, one in ARCHIVES.items()
)
_BLOCK = 512  # bytes, of which tar files are made
_PADDING = 2**20  # bytes, at most, after the end of a tar file


def check_archives(folder: epath.Path) -> None:
    """Raises a UserError unless the user has put both archives, whole, where TFDS looks for them."""
    with reaching(folder):
        sizes = {name: path.stat().length for name in ARCHIVES if (path := folder / name).exists()}
    missing = [name for name in ARCHIVES if name not in sizes]
    if missing:
        raise UserError(
            f'{folder} lacks {" and ".join(missing)}: register at https://image-net.org/download-images, download '
            f'the ILSVRC2012 training and validation images (Task 1 & 2), and put both tar files there, or name '
            'their folder with --config.prepare.manual_dir (or, with --config.prepare.tfds_dir, the folder that '
            'contains an imagenet2012 of TFDS).'
        )
    for name, (size, md5, _) in ARCHIVES.items():
        problem = _problem(folder / name, sizes[name])
        if problem:
            raise UserError(
                f'{folder / name} {problem}: it has {sizes[name]} bytes, and the published file {size} bytes and MD5 '
                f'{md5}; download it again, compare with md5sum, and start again.'
            )


def _problem(path: epath.Path, size: int) -> str:
    """Returns what is wrong with an archive of so many bytes, by its table alone; '' if nothing is.

    TFDS labels the validation images by their places among all names, so that one more or less shifts what follows.
    """
    if size == 0:
        return 'is empty'
    if is_remote(path):  # a table of 50,000 entries takes as many requests
        return ''
    number, end, names = 0, 0, set()
    try:
        with path.open('rb') as file, tarfile.open(fileobj=file, mode='r:') as archive:
            for number, member in enumerate(archive, start=1):
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                names.add(member.name)
                if not (member.isfile() and re.fullmatch(ARCHIVES[path.name].entry, member.name)):
                    return f'is not the archive as published, as its entry {number} is {member.name!r}'
    except tarfile.TarError as error:
        after = f'is cut short or damaged after {number} entries' if number else 'is no tar file'
        return f'{after} ({first_line(error)})'
    if size < end + _BLOCK or size > end + _PADDING:
        return f'is cut short or damaged after {number} entries (it has no end)'
    if 'val' in path.name and names != {f'ILSVRC2012_val_{i + 1:08d}.JPEG' for i in range(number)}:
        return f'is not the archive as published, as its {number} entries are not numbered from 1 to {number}'
    return ''
