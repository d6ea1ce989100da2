"""Tells which class the images of a folder are of: that of their subfolder, or that of their names."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from cfg.runtime.errors import UserError

Files = list[tuple[str, int]]  # (path, size)

# What cameras, phones and collectors of images put before the first _ of a name.
_SOURCES = re.compile(
    'img|dsc[nf]?|dcim|pxl|mvimg|vid|images?|photo|pic|picture|frame|scan|screenshot'
    '|google|bing|baidu|flickr|pixabay|unsplash|pinterest|instagram',
    re.IGNORECASE,
)


def by_class(
    root: epath.Path, place: str, folders: Sequence[str], images: Files, classes_from: str
) -> dict[str, Files]:
    """Returns {class name: [(image, size)]} of the split in the folder `place` of `root`; empty class folders too.

    By 'folders' each subfolder is a class with its images anywhere below. By 'names' the class is what comes before the
    first `_` of an image's name, wherever it lies (ADM's layout). 'auto' takes the subfolders where there are any.

    Raises:
      UserError: when an image has no class, or 'auto' finds subfolders that contradict the names.
    """
    below = f'{place}/' if place else ''
    inside = [(name.removeprefix(below), name, size) for name, size in images if name.startswith(below)]
    classes = [
        name.removeprefix(below) for name in folders if name.startswith(below) and name.count('/') == below.count('/')
    ]
    if classes_from == 'names' or (classes_from == 'auto' and not classes):
        return _by_name(root, inside)
    members: dict[str, Files] = {name: [] for name in classes}
    for short, name, size in inside:
        class_name, slash, _ = short.partition('/')
        if not slash:
            beside = f'both subfolders ({classes[0]}) and images' if classes else 'images without a subfolder'
            raise UserError(
                f'{root / place} holds {beside} ({short}): either every class has a subfolder, or all images lie flat '
                'as label_name.png.'
            )
        members.setdefault(class_name, []).append((name, size))
    if inside and all(short.count('/') > 1 for short, *_ in inside):
        raise UserError(
            f'{root / place} holds folders of folders ({", ".join(classes[:5])}): give the folder whose subfolders '
            'are the classes, or name those above train and val.'
        )
    if classes_from == 'auto':
        _check_no_contradiction(root / place, members)
    return members


def _by_name(root: epath.Path, inside: Iterable[tuple[str, str, int]]) -> dict[str, Files]:
    members: dict[str, Files] = {}
    for _, name, size in inside:
        class_name = _class_in(name)
        if not class_name:
            raise UserError(
                f'{root / name} has no class in its name: give each class a subfolder, or call images that lie flat '
                'label_name.png.'
            )
        members.setdefault(class_name, []).append((name, size))
    return members


def _class_in(path: str) -> str:
    """Returns what comes before the first `_` of a file's name; '' if it has none."""
    class_name, underscore, _ = path.rpartition('/')[2].partition('_')
    return class_name if underscore else ''


def _check_no_contradiction(folder: epath.Path, members: Mapping[str, Files]) -> None:
    """Refuses class folders among which classes that the names give are scattered, as in parts of ADM's layout.

    What cameras and programs write into names contradicts nothing, and WordNet's numbers are classes. In numbered
    folders ('part1', 'part2') one scattered class is enough if classes have several images. Else it takes half of the
    images, names that do not hold the folder's, and what comes first must not be a number of persons or shots.
    """
    named = {name: Counter(_class_in(path) for path, _ in files) for name, files in members.items()}
    counts = Counter()
    for starts in named.values():
        counts.update(starts)
    homes = Counter(start for starts in named.values() for start in starts)
    stems = {re.sub('[0-9]+', '', name) for name in members}  # folders '0', '1' are rather classes than parts
    numbered = len(stems) == 1 and any(map(str.isalpha, *stems)) and counts.total() >= 2 * len(counts)
    scattered = [
        start
        for start, count in homes.items()
        if count > 1 and not _SOURCES.fullmatch(start) and (numbered or not _is_counter(start, counts[start] / count))
    ]
    if '' in counts or not scattered or all(len(starts) < 2 for starts in named.values()):
        return
    if all(re.fullmatch('n[0-9]{8}', name) for name in members):  # of ImageNet and the sets that were made for it
        return
    own = sum(_holds_word(path, name) for name, files in members.items() for path, _ in files)
    if not numbered and (2 * own >= counts.total() or 2 * sum(counts[it] for it in scattered) < counts.total()):
        return
    readings = [f'{len(names)} classes ({_first(names)})' for names in (sorted(members), sorted(counts))]
    raise UserError(
        f'{folder} can be read in two ways: {readings[0]} by its subfolders, or {readings[1]} by what comes before the '
        f"first _ of the names (ADM's layout), and {len(scattered)} of these lie in several subfolders: say which with "
        '--config.prepare.classes_from=folders or --config.prepare.classes_from=names.'
    )


def _is_counter(start: str, images: float) -> bool:
    """Tells whether a name begins with a number that is no class: S012, or one of few images a folder."""
    return any(map(str.isdigit, start)) and not (start.isdigit() and images >= 10)


def _first(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _holds_word(path: str, word: str) -> bool:
    """Tells whether the name of a file holds a word, or several, whatever stands between them."""
    name, word = (re.sub(r'[\W_]+', '_', text).lower() for text in (path.rpartition('/')[2], word))
    return f'_{word}_' in f'_{name}_'


def spelled_alike(found: Mapping[str, Mapping[str, Files]]) -> dict[str, dict[str, Files]]:
    """Spells classes as the training images do, where a letter and its accent are one character or two.

    Args:
      found: {split: {class name: files}}; names that are equal in Unicode's form NFC are one class.
    """
    spelling: dict[str, str] = {}
    alike: dict[str, dict[str, Files]] = {}
    for split in sorted(found, key=lambda name: name != 'train'):
        alike[split] = {}
        for name in sorted(found[split]):
            known = spelling.setdefault(unicodedata.normalize('NFC', name), name)
            alike[split].setdefault(known, []).extend(found[split][name])
    return {split: alike[split] for split in found}


def shown(name: str) -> str:
    """Quotes a name, with escapes beside it where it holds letters that look like others."""
    return repr(name) if name.isascii() else f'{name!r} ({name!a})'


def lookalike(name: str, classes: Sequence[str]) -> str:
    """Tells of a class whose name differs in capitals, spaces, or the form of letters alone; '' if there is none."""

    def plain(text: str) -> str:
        return re.sub(r'[\W_]+', '', unicodedata.normalize('NFKC', text).casefold())

    found = next((other for other in classes if plain(other) == plain(name)), None)
    return '' if found is None else f', though {shown(found)} has some'
