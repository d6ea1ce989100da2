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

from cfg.data.inputs import open_input
from cfg.data.parts import Job, Prepared, Tally, cores, make_parts, read_part
from cfg.data.prepared import (
    ALIASES,
    MANIFEST,
    check_sums,
    config_name,
    file_sha256,
    folder_of,
    read_manifest,
)
from cfg.errors import UserError
from cfg.files import is_remote, lock, write_whole
from cfg.progress import Progress

log = logging.getLogger('cfg')

PART_SIZE = 1000  # images; about ten seconds of a core
LIBRARIES = ('pillow', 'tensorflow-datasets', 'array_record', 'numpy')
PLAN = 'plan.json'


def prepare(name: str, *, data_dir: epath.Path, size: int, crop: str, skip: bool, workers: int, manual_dir: str) -> str:
    """Prepares a data set, or goes on with it, or checks the one that is there.

    Args:
      name: a `config.data.name` with something to prepare.
      data_dir: of TFDS; holds the result.
      size: height and width of the images.
      crop: 'area' or 'adm'.
      skip: whether what cannot be read, and classes without images, are left out; else they end the preparation.
      workers: processes; 0 = one a core.
      manual_dir: see `cfg.data.inputs.open_input`.

    Returns:
      What is there now, for the user.

    Raises:
      UserError: on an input that does not fit, or a prepared data set that is damaged.
    """
    folder = folder_of(data_dir, name, size, crop)
    manifest = read_manifest(folder)
    if manifest is not None:
        total = sum(file['bytes'] for file in manifest['files'].values())
        progress = Progress('check', total, unit='byte')
        check_sums(folder, manifest, progress.update)
        return _summary(folder, manifest, 'It was prepared before; every file has its SHA-256.')

    with contextlib.redirect_stdout(sys.stderr):  # what TFDS says is not our result
        source = open_input(ALIASES.get(name, name), data_dir=data_dir, manual_dir=manual_dir)
    if source.empty_classes and not skip:
        raise UserError(_about_empty_classes(source.empty_classes))
    parts = data_dir / '.preparing' / config_name(name, size, crop)
    parts.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if is_remote(parts) else lock(parts, 'prepare_data'):
        job = Job(name, source, parts, size, crop, skip, PART_SIZE)
        _begin(job)
        make_parts(job, workers=workers or cores())
        manifest = _assemble(job, ALIASES.get(name, name), folder, data_dir)
        parts.rmtree()
    return _summary(folder, manifest, 'Prepared.')


def _begin(job: Job) -> None:
    """Keeps the parts of an earlier start if they are of the same plan."""
    plan = {
        'input': job.source.version,
        'classes': hashlib.sha256(json.dumps(list(job.source.class_names)).encode()).hexdigest(),
        'splits': dict(job.source.splits),
        'size': job.size,
        'crop': job.crop,
        'part_size': job.part_size,
    }
    path = job.folder / PLAN
    if path.exists() and json.loads(path.read_text()) != plan:
        log.info('The images are not those of the last start, so it begins again.')
        for old in job.folder.glob('*.npz'):
            old.unlink()
        path.unlink()
    if not path.exists():
        write_whole(path, json.dumps(plan).encode())


def _about_empty_classes(names: Any) -> str:
    first = ', '.join(list(names)[:5])
    return (
        f'{len(names)} class{"es have" if len(names) > 1 else " has"} no image to train on ({first}'
        f'{", ..." if len(names) > 5 else ""}): add images, or go on without with --config.prepare.on_error=skip.'
    )


def _assemble(job: Job, source_name: str, folder: epath.Path, data_dir: epath.Path) -> dict[str, Any]:
    """From parts to the files of TFDS and the manifest."""
    splits, skipped, empty = _tally(job)
    if empty and not job.skip:
        raise UserError(_about_empty_classes(empty))
    if not splits['train']['images']:
        raise UserError(f'None of the {job.source.splits["train"]} training images could be read.')
    if folder.exists():  # without a manifest: an assembly that was stopped
        folder.rmtree()
    channels = job.source.channels
    image_shape = (job.size, job.size, channels)
    _write_files(job, image_shape, {split for split in splits if splits[split]['images']}, data_dir)

    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    manifest = {
        'source': source_name,
        'input': job.source.version,
        'crop': job.crop,
        'image_shape': image_shape,
        'class_names': list(job.source.class_names),
        'splits': {split: facts for split, facts in splits.items() if facts['images']},
        'skipped': skipped,
        'empty_classes': [*job.source.empty_classes, *empty],
        'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'versions': {name: importlib.metadata.version(name) for name in LIBRARIES},
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


def _write_files(job: Job, image_shape: tuple[int, int, int], splits: set[str], data_dir: epath.Path) -> None:
    # Imported here: it takes a moment, and worker processes come through the files above.
    import tensorflow_datasets as tfds

    from cfg.data.builder import PreparedImages

    parts = [part for part in job.parts() if part[0] in splits]
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
        splits={split: functools.partial(images_of, split) for split in job.source.splits if split in splits},
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
    lines.append(f'classes: {len(manifest["class_names"])}')
    if manifest['empty_classes']:
        lines.append(f'classes without training images: {len(manifest["empty_classes"])}, see {MANIFEST}')
    for entry in manifest['skipped'][:10]:
        lines.append(f'skipped: {entry["file"]} ({entry["split"]}): {entry["reason"]}')
    if len(manifest['skipped']) > 10:
        lines.append(f'skipped: {len(manifest["skipped"]) - 10} more, see {MANIFEST}')
    total = sum(file['bytes'] for file in manifest['files'].values())
    lines.append(f'size: {total / 2**30:.3g} GiB in {len(manifest["files"])} files')
    return '\n'.join(lines)
