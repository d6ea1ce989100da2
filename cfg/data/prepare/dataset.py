"""Does the short half of a preparation: from parts to the files of the data set and its manifest."""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from cfg.data.manifest import MANIFEST, config_name
from cfg.data.prepare.folders import machine_made
from cfg.data.prepare.job import Job
from cfg.data.prepare.parts import Prepared, read_part
from cfg.runtime.errors import UserError
from cfg.runtime.files import sha256_of_file, write_whole
from cfg.runtime.progress import Progress

LIBRARIES = ('pillow', 'tensorflow-datasets', 'array_record', 'numpy')


def write_data_set(job: Job, folder: epath.Path, data_dir: epath.Path) -> dict[str, Any]:
    """Writes the data set of a job whose parts are all there, into its folder below TFDS's `data_dir`.

    Returns:
      Its manifest, which is written last.

    Raises:
      UserError: when a class or all of the training split is empty, or a part is damaged.
    """
    splits, skipped, empty = _tally(job)
    if not job.options.skip:
        refuse_empty(empty)
    if not splits['train']['images']:
        raise UserError(f'None of the {job.source.splits["train"]} training images could be read.')
    # What an assembly that was stopped left behind, TFDS's own half-written folders too.
    for old in [folder, *folder.parent.glob('incomplete.*')]:
        if old.exists():
            old.rmtree()
    splits = {split: facts for split, facts in splits.items() if facts['images']}
    image_shape = (job.options.size, job.options.size, job.source.channels)
    _write_files(job, image_shape, {split: facts['images'] for split, facts in splits.items()}, data_dir)
    paths = sorted((path for path in folder.iterdir() if not machine_made(path.name)), key=lambda path: path.name)
    manifest = {
        'source': job.name,
        'input': job.source.version,
        'crop': job.options.crop,
        'image_shape': image_shape,
        'class_names': list(job.source.class_names),
        'splits': splits,
        'skipped': skipped,
        'passed_over': dict(job.source.passed_over),
        'empty_classes': [*job.source.empty_classes, *empty],
        'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'versions': versions(),
        'files': {path.name: {'bytes': path.stat().length, 'sha256': sha256_of_file(path)} for path in paths},
    }
    write_whole(folder / MANIFEST, (json.dumps(manifest, indent=1) + '\n').encode())
    return manifest


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that make the pixels and files."""
    import tensorflow as tf  # one library under several names

    return {'tensorflow': tf.__version__} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def refuse_empty(names: Sequence[str]) -> None:
    """Raises a UserError that names the first few classes without a training image, if there are any."""
    if names:
        first = ', '.join(names[:5])
        raise UserError(
            f'{len(names)} class{"es have" if len(names) > 1 else " has"} no image to train on ({first}'
            f'{", ..." if len(names) > 5 else ""}): add images, or go on without with --config.prepare.on_error=skip.'
        )


def _tally(job: Job) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]], list[str]]:
    """Returns what the manifest says of each split, the skipped images, and the classes without a training image."""
    counts = {split: Counter() for split in job.source.splits}  # of images a label
    kinds = {split: Counter() for split in job.source.splits}
    contents = {split: hashlib.sha256() for split in job.source.splits}
    enlarged, skipped = Counter(), []
    for split, *_, path in job.places():
        part = read_part(path)
        counts[split].update(image.label for image in part.images)
        kinds[split].update(part.kinds)
        contents[split].update(b''.join(image.sha256 for image in part.images))
        enlarged[split] += part.enlarged
        skipped += part.skipped
    splits = {
        split: {
            'images': counts[split].total(),
            'content_sha256': contents[split].hexdigest(),
            'kinds': dict(kinds[split].most_common()),
            'enlarged': enlarged[split],
        }
        for split in counts
    }
    empty = [name for label, name in enumerate(job.source.class_names) if not counts['train'][label]]
    return splits, skipped, empty


def _write_files(job: Job, image_shape: tuple[int, int, int], counts: dict[str, int], data_dir: epath.Path) -> None:
    # Imported here: it takes a moment, and worker processes come through the files above.
    import tensorflow_datasets as tfds

    from cfg.data.prepare.builder import PreparedImages

    places = [place for place in job.places() if place.split in counts]
    progress, finished = Progress('write', len(places), unit='part'), itertools.count(1)

    def images_of(split: str) -> Iterator[Prepared]:
        for place in places:
            if place.split == split:
                yield from read_part(place.path).images
                progress.update(next(finished))

    tfds.disable_progress_bar()  # it has one for each of many short stages
    builder = PreparedImages(
        name=config_name(job.name, job.options.size, job.options.crop),
        image_shape=image_shape,
        class_names=job.source.class_names,
        splits={split: (count, functools.partial(images_of, split)) for split, count in counts.items()},
        data_dir=data_dir,
    )
    with contextlib.redirect_stdout(None):  # it speaks of downloads, and there are none
        builder.download_and_prepare()
