"""`--mode=prepare_data`: from any input to a prepared data set with its manifest."""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import itertools
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath

from cfg.data.inputs import folder_path, open_input, scan_folder
from cfg.data.parts import Job, Prepared, Tally, cores, make_parts, read_part
from cfg.data.prepared import (
    MANIFEST,
    check_source,
    check_sums,
    config_name,
    file_sha256,
    folder_of,
    full_name,
    read_manifest,
    short_name,
)
from cfg.runtime.errors import UserError, first_line
from cfg.runtime.files import check_writable, lock, write_whole
from cfg.runtime.progress import Progress

log = logging.getLogger('cfg')

PART_SIZE = 1000  # images; about ten seconds of a core
LIBRARIES = ('pillow', 'tensorflow-datasets', 'array_record', 'numpy')
PLAN = 'plan.json'


def prepare(
    name: str,
    *,
    data_dir: epath.Path,
    tfds_dir: epath.Path,
    manual_dir: str,
    size: int,
    crop: str,
    skip: bool,
    workers: int,
) -> str:
    """Prepares a data set, or goes on with it, or checks the one that is there.

    Args:
      name: a `config.data.name` with something to prepare.
      data_dir: holds the result.
      tfds_dir, manual_dir: see `cfg.data.inputs.open_input`.
      size: height and width of the images.
      crop: 'area' or 'adm'.
      skip: whether what cannot be read, and classes without images, are left out; else they end the preparation.
      workers: processes; 0 = one a core.

    Returns:
      What is there now, for the user.

    Raises:
      UserError: on an input that does not fit, a prepared data set that is damaged, or a disk that is full.
    """
    folder = folder_of(data_dir, name, size, crop)
    work = data_dir / '.preparing'
    try:
        parts = work / config_name(name, size, crop)
        if read_manifest(folder) is not None and not parts.exists():
            return _check(name, folder)
        check_writable(work, f'config.data.dir={data_dir}')
        with lock(work, 'prepare_data', part=config_name(name, size, crop)):
            if read_manifest(folder) is not None:  # by another process just now, or by one that was killed at its end
                report = _check(name, folder)
                if parts.exists():
                    parts.rmtree()
                return report
            # One size or crop at a time has TFDS prepare the input; what it says meanwhile is not our result.
            of_tfds = folder_path(full_name(name)) is None
            with (
                lock(work, 'prepare_data', part=short_name(name)) if of_tfds else contextlib.nullcontext(),
                contextlib.redirect_stdout(sys.stderr),
            ):
                source = open_input(full_name(name), tfds_dir=tfds_dir, manual_dir=manual_dir)
            if source.empty_classes and not skip:
                raise UserError(_about_empty_classes(source.empty_classes))
            job = Job(full_name(name), source, parts, size, crop, skip, PART_SIZE)
            _begin(job)
            make_parts(job, workers=workers or cores())
            manifest = _assemble(job, folder, data_dir)
            parts.rmtree()
    except OSError as error:
        where = f'{error.filename}: ' if error.filename else ''
        raise UserError(
            f'{where}{error.strerror or first_line(error)}: make room or mend that; the same command goes on from what '
            'is finished.'
        ) from error
    return _summary(folder, manifest, 'Prepared.')


def _check(name: str, folder: epath.Path) -> str:
    """Checks a finished data set against its manifest, and a folder of images that it came from if it is here."""
    manifest = read_manifest(folder)
    check_source(name, manifest, folder)
    _check_same_input(full_name(name), manifest, folder)
    total = sum(file['bytes'] for file in manifest['files'].values())
    check_sums(folder, manifest, Progress('check', total, unit='byte').update)
    return _summary(folder, manifest, 'It was prepared before; every file has its SHA-256.')


def _check_same_input(name: str, manifest: dict[str, Any], folder: epath.Path) -> None:
    """Whether a folder of images, if it is here, is still what was prepared.

    Raises:
      UserError: when it is another, or files came or went.
    """
    root = folder_path(name)
    if root is None or not root.is_dir():
        return
    version = scan_folder(root).version
    if version != manifest['input']:
        raise UserError(
            f'{folder} was prepared from {manifest["source"]} with {manifest["input"]}, and {root} has {version}: '
            'delete it to prepare it anew, or set another config.data.dir to keep both.'
        )


def _begin(job: Job) -> None:
    """Keeps the parts of an earlier start if they are of the same plan."""
    plan = {
        'source': job.name,
        'input': job.source.version,
        'versions': _versions(),
        'classes': hashlib.sha256(json.dumps(list(job.source.class_names)).encode()).hexdigest(),
        'splits': dict(job.source.splits),
        'size': job.size,
        'crop': job.crop,
        'part_size': job.part_size,
    }
    path = job.folder / PLAN
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
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        return {'damaged': True}


def _versions() -> dict[str, str]:
    """Of the libraries that make the pixels and files."""
    import tensorflow as tf  # one library under several names

    return {'tensorflow': tf.__version__} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def _about_empty_classes(names: Any) -> str:
    first = ', '.join(list(names)[:5])
    return (
        f'{len(names)} class{"es have" if len(names) > 1 else " has"} no image to train on ({first}'
        f'{", ..." if len(names) > 5 else ""}): add images, or go on without with --config.prepare.on_error=skip.'
    )


def _assemble(job: Job, folder: epath.Path, data_dir: epath.Path) -> dict[str, Any]:
    """From parts to the files of TFDS and the manifest."""
    splits, skipped, empty = _tally(job)
    if empty and not job.skip:
        raise UserError(_about_empty_classes(empty))
    if not splits['train']['images']:
        raise UserError(f'None of the {job.source.splits["train"]} training images could be read.')
    # What an assembly that was stopped left behind, TFDS's own half-written folders too.
    for old in [folder, *folder.parent.glob('incomplete.*')]:
        if old.exists():
            old.rmtree()
    channels = job.source.channels
    image_shape = (job.size, job.size, channels)
    counts = {split: facts['images'] for split, facts in splits.items() if facts['images']}
    _write_files(job, image_shape, counts, data_dir)

    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    manifest = {
        'source': job.name,
        'input': job.source.version,
        'crop': job.crop,
        'image_shape': image_shape,
        'class_names': list(job.source.class_names),
        'splits': {split: splits[split] for split in counts},
        'skipped': skipped,
        'passed_over': dict(job.source.passed_over),
        'empty_classes': [*job.source.empty_classes, *empty],
        'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'versions': _versions(),
        'files': {path.name: {'bytes': path.stat().length, 'sha256': file_sha256(path)} for path in paths},
    }
    write_whole(folder / MANIFEST, (json.dumps(manifest, indent=1) + '\n').encode())
    return manifest


def _tally(job: Job) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]], list[str]]:
    """(what the manifest says of each split, the images that were skipped, the classes without a training image)."""
    tallies = {split: Tally() for split in job.source.splits}
    contents = {split: hashlib.sha256() for split in job.source.splits}
    for split, number in job.parts():
        images, tally = read_part(job.path(split, number))
        tallies[split].add(tally)
        contents[split].update(b''.join(image.sha256 for image in images))
    splits = {
        split: {
            'images': sum(tally.classes.values()),
            'content_sha256': contents[split].hexdigest(),
            'kinds': dict(tally.kinds.most_common()),
            'enlarged': tally.enlarged,
        }
        for split, tally in tallies.items()
    }
    trained = tallies['train'].classes
    empty = [name for label, name in enumerate(job.source.class_names) if not trained[label]]
    return splits, [entry for tally in tallies.values() for entry in tally.skipped], empty


def _write_files(job: Job, image_shape: tuple[int, int, int], counts: dict[str, int], data_dir: epath.Path) -> None:
    # Imported here: it takes a moment, and worker processes come through the files above.
    import tensorflow_datasets as tfds

    from cfg.data.builder import PreparedImages

    parts = [part for part in job.parts() if part[0] in counts]
    progress, finished = Progress('write', len(parts), unit='part'), itertools.count(1)

    def images_of(split: str) -> Iterator[Prepared]:
        for part in parts:
            if part[0] == split:
                yield from read_part(job.path(*part))[0]
                progress.update(next(finished))

    tfds.disable_progress_bar()  # it has one for each of many short stages
    builder = PreparedImages(
        name=config_name(job.name, job.size, job.crop),
        image_shape=image_shape,
        class_names=job.source.class_names,
        splits={split: (count, functools.partial(images_of, split)) for split, count in counts.items()},
        data_dir=data_dir,
    )
    with contextlib.redirect_stdout(None):  # it speaks of downloads, and there are none
        builder.download_and_prepare()


def _summary(folder: epath.Path, manifest: dict[str, Any], first: str) -> str:
    """What a user wants to know, a line a fact."""
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
        lines.append(f'no images by their ending: {others}')
    if manifest['empty_classes']:
        lines.append(f'classes without training images: {len(manifest["empty_classes"])}, see {MANIFEST}')
    for entry in manifest['skipped'][:10]:
        lines.append(f'skipped: {entry["file"]} ({entry["split"]}): {entry["reason"]}')
    if len(manifest['skipped']) > 10:
        lines.append(f'skipped: {len(manifest["skipped"]) - 10} more, see {MANIFEST}')
    total = sum(file['bytes'] for file in manifest['files'].values())
    lines.append(f'size: {total / 2**30:.3g} GiB in {len(manifest["files"])} files')
    return '\n'.join(lines)
