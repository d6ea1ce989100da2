"""A whole preparation: makes a data set, goes on with one, or checks the one that is there."""

import contextlib
import hashlib
import json
import logging
import sys
from typing import Any, NamedTuple

from etils import epath

from cfg.data.manifest import (
    MANIFEST,
    check_source,
    check_sums,
    config_name,
    folder_of,
    full_name,
    read_manifest,
    short_name,
)
from cfg.data.prepare.dataset import refuse_empty, versions, write_data_set
from cfg.data.prepare.folders import folder_path, scan_folder
from cfg.data.prepare.inputs import Input
from cfg.data.prepare.job import Job, make_parts
from cfg.data.prepare.parts import Options
from cfg.data.prepare.tfds_sets import open_tfds
from cfg.data.workers import cores
from cfg.runtime.errors import UserError, first_line
from cfg.runtime.files import check_writable, lock, write_whole
from cfg.runtime.progress import Progress

log = logging.getLogger('cfg')

PART_SIZE = 1000  # images; about ten seconds of a core


class Folders(NamedTuple):
    """Names the folders of a preparation."""

    data: epath.Path  # holds the result
    tfds: epath.Path  # where TFDS keeps its data sets
    manual: str = ''  # where TFDS looks for files that the user must fetch; '' for downloads/manual in `tfds`


def prepare(name: str, options: Options, folders: Folders, *, workers: int) -> str:
    """Prepares the data set of a `config.data.name`, or goes on with it, or checks the one that is there.

    Args:
      workers: processes; 0 = one a core.

    Returns:
      What is there now, for the user.

    Raises:
      UserError: on an input that does not fit, a prepared data set that is damaged, or a disk that is full.
    """
    folder = folder_of(folders.data, name, options.size, options.crop)
    work, part = folders.data / '.preparing', config_name(name, options.size, options.crop)
    try:
        if read_manifest(folder) is not None and not (work / part).exists():
            return _check(name, folder, options)
        check_writable(work, f'config.data.dir={folders.data}')
        with lock(work, 'prepare_data', part=part):
            if read_manifest(folder) is not None:  # by another process just now, or by one that was killed at its end
                report = _check(name, folder, options)
            else:
                report = _make(full_name(name), options, folders, workers=workers)
            if (work / part).exists():
                (work / part).rmtree()
            return report
    except OSError as error:
        where = f'{error.filename}: ' if error.filename else ''
        raise UserError(
            f'{where}{error.strerror or first_line(error)}: make room or mend that; the same command goes on from what '
            'is finished.'
        ) from error


def open_input(name: str, folders: Folders, classes_from: str = 'auto') -> Input:
    """Opens the input of a `config.data.name`, 'tfds:NAME' or 'folder:PATH'; for `classes_from` see `scan_folder`.

    Raises:
      UserError: when it cannot be found, or is no image classification data set.
    """
    root = folder_path(name)
    if root is not None:
        return scan_folder(root, classes_from)
    kind, _, rest = name.partition(':')
    if kind == 'tfds' and rest:
        manual = epath.Path(folders.manual or folders.tfds / 'downloads' / 'manual')
        return open_tfds(rest, tfds_dir=folders.tfds, manual_dir=manual)
    raise UserError(f'config.data.name={name!r} has nothing to prepare: give tfds:NAME or folder:PATH.')


def _make(name: str, options: Options, folders: Folders, *, workers: int) -> str:
    """Makes a data set whose lock is held."""
    work = folders.data / '.preparing'
    # One size or crop at a time has TFDS prepare the input; what it says meanwhile is not our result.
    of_tfds = folder_path(name) is None
    with (
        lock(work, 'prepare_data', part=short_name(name)) if of_tfds else contextlib.nullcontext(),
        contextlib.redirect_stdout(sys.stderr),
    ):
        source = open_input(name, folders, options.classes_from)
    if not options.skip:
        refuse_empty(source.empty_classes)
    job = Job(name, source, work / config_name(name, options.size, options.crop), options, PART_SIZE)
    _begin(job)
    make_parts(job, workers=workers or cores())
    folder = folder_of(folders.data, name, options.size, options.crop)
    return _summary(folder, write_data_set(job, folder, folders.data), 'Prepared.')


def _check(name: str, folder: epath.Path, options: Options) -> str:
    """Checks a finished data set against its manifest, and a folder of images that it came from if it is here."""
    manifest = read_manifest(folder)
    check_source(name, manifest, folder)
    root = folder_path(full_name(name))
    if (
        root is not None
        and root.is_dir()
        and (version := scan_folder(root, options.classes_from).version) != manifest['input']
    ):
        raise UserError(
            f'{folder} was prepared from {manifest["source"]} with {manifest["input"]}, and {root} has {version}: '
            'delete it to prepare it anew, or set another config.data.dir to keep both.'
        )
    total = sum(file['bytes'] for file in manifest['files'].values())
    check_sums(folder, manifest, Progress('check', total, unit='byte').update)
    return _summary(folder, manifest, 'It was prepared before; every file has its SHA-256.')


def _begin(job: Job) -> None:
    """Keeps the parts of an earlier start if they are of the same plan."""
    plan = {
        'source': job.name,
        'input': job.source.version,
        'versions': versions(),
        'classes': hashlib.sha256(json.dumps(list(job.source.class_names)).encode()).hexdigest(),
        'splits': dict(job.source.splits),
        'size': job.options.size,
        'crop': job.options.crop,
        'part_size': job.part_size,
    }
    path = job.folder / 'plan.json'
    before = _read_plan(path)
    if before.get('source', job.name) != job.name:
        raise UserError(
            f'{job.folder} holds the parts of {before["source"]}, which ends like {job.name}: finish that first, '
            'delete them, or set another config.data.dir.'
        )
    if before != plan:
        if before:
            changed = ', '.join(name for name in plan if before.get(name) != plan[name])
            log.info('Not as it was at the last start (%s), so it begins again.', changed)
        for old in job.folder.glob('*.npz'):
            old.unlink()
        write_whole(path, json.dumps(plan).encode())


def _read_plan(path: epath.Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError):
        return {'damaged': True}


def _summary(folder: epath.Path, manifest: dict[str, Any], first: str) -> str:
    """Says what a user wants to know, a line a fact."""
    lines = [first, f'folder: {folder}', f'source: {manifest["source"]} ({manifest["input"]})']
    height, width, channels = manifest['image_shape']
    lines.append(f'images: {height}x{width}x{channels}, crop {manifest["crop"]}')
    for split, facts in manifest['splits'].items():
        kinds = ', '.join(f'{count} {kind}' for kind, count in facts['kinds'].items())
        enlarged = f'; {facts["enlarged"]} enlarged' if facts['enlarged'] else ''
        lines.append(f'{split}: {facts["images"]} images ({kinds}{enlarged})')
        lines.append(f'{split} content sha256: {facts["content_sha256"]}')
    names = manifest['class_names']
    lines.append(f'classes: {len(names)} ({", ".join(names[:5])}{", ..." if len(names) > 5 else ""})')
    if manifest['passed_over']:
        others = ', '.join(f'{count} {ending}' for ending, count in manifest['passed_over'].items())
        lines.append(f'passed over: {others}')
    if manifest['empty_classes']:
        lines.append(f'classes without training images: {len(manifest["empty_classes"])}, see {MANIFEST}')
    for entry in manifest['skipped'][:10]:
        lines.append(f'skipped: {entry["file"]} ({entry["split"]}): {entry["reason"]}')
    if len(manifest['skipped']) > 10:
        lines.append(f'skipped: {len(manifest["skipped"]) - 10} more, see {MANIFEST}')
    total = sum(file['bytes'] for file in manifest['files'].values())
    lines.append(f'size: {total / 2**30:.3g} GiB in {len(manifest["files"])} files')
    return '\n'.join(lines)
