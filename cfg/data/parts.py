"""The long half of a preparation: decode and resize every image, over all cores, in parts that survive a stop.

A part is an npz of up to `Job.part_size` finished images in the order of the input, written whole or not at all; a
preparation that starts again goes on with the parts that are missing.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import io
import json
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cfg.data.crop import decode, square, to_png
from cfg.data.inputs import Input, Record, printable
from cfg.runtime.errors import UserError
from cfg.runtime.files import write_whole
from cfg.runtime.progress import Progress
from cfg.runtime.stopping import StopSignal

log = logging.getLogger('cfg')


class Prepared(NamedTuple):
    """One finished image.

    Attributes:
      name: of the file that it comes from.
      label: its class.
      png: uint8 [size, size, C] as PNG.
      sha256: of label and pixels, 32 bytes.
    """

    name: str
    label: int
    png: bytes
    sha256: bytes


@dataclass
class Tally:
    """What a manifest says of many images.

    Attributes:
      kinds: number of images by how they came, 'JPEG CMYK', say.
      enlarged: number of images that were smaller than what they became.
      skipped: {'split', 'file', 'reason'} of each image that could not be read.
      classes: number of images of each label.
    """

    kinds: Counter = field(default_factory=Counter)
    enlarged: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    classes: Counter = field(default_factory=Counter)

    def add(self, other: 'Tally') -> None:
        """Takes in another tally."""
        self.kinds.update(other.kinds)
        self.classes.update(other.classes)
        self.enlarged += other.enlarged
        self.skipped += other.skipped


@dataclass(frozen=True)
class Job:
    """A preparation: what, how, and where its parts lie.

    Attributes:
      name: of the data set, `config.data.name`.
      source: where the images come from.
      folder: of the parts.
      size: height and width of the results.
      crop: see `cfg.data.crop`.
      skip: whether an image that cannot be read is left out; else it ends the preparation.
      part_size: images a part.
    """

    name: str
    source: Input
    folder: epath.Path
    size: int
    crop: str
    skip: bool
    part_size: int

    def parts(self) -> list[tuple[str, int]]:
        """(split, number) of every part, in order."""
        return [(split, i) for split, count in self.source.splits.items() for i in range(-(-count // self.part_size))]

    def range(self, split: str, number: int) -> tuple[int, int]:
        """The first image of a part, and the one after its last."""
        start = number * self.part_size
        return start, min(start + self.part_size, self.source.splits[split])

    def path(self, split: str, number: int) -> epath.Path:
        """The file of a part."""
        return self.folder / f'{split}-{number:05d}.npz'

    def task(self, split: str, number: int) -> 'Task':
        """What a worker must know to make a part."""
        records = self.source.section(split, *self.range(split, number))
        return Task(
            records, self.path(split, number), split, self.size, self.crop, self.source.channels, skip=self.skip
        )


@dataclass(frozen=True)
class Task:
    """One part to make; see `Job`."""

    records: Iterable[Record]
    path: epath.Path
    split: str
    size: int
    crop: str
    channels: int
    skip: bool


def make_parts(job: Job, *, workers: int) -> None:
    """Makes every part that is not there yet.

    Args:
      workers: processes; 1 = in this one.

    Raises:
      UserError: when an image cannot be read and is not to be skipped, or a worker dies.
      SystemExit: with 128 + the signal's number, on SIGTERM or Ctrl-C, after the parts in progress.
    """
    parts = job.parts()
    # What could not be read is tried again: it may have been mended, or leaving it out is no longer wanted.
    todo = [part for part in parts if not job.path(*part).exists() or read_facts(job.path(*part))['skipped']]
    if not todo:
        return
    if len(todo) < len(parts):
        log.info('%d of %d parts are there already.', len(parts) - len(todo), len(parts))
    counts = {part: stop - start for part in parts for start, stop in [job.range(*part)]}
    done = sum(counts[part] for part in parts) - sum(counts[part] for part in todo)
    progress = Progress('prepare', sum(counts.values()), start=done, unit='image')
    with StopSignal() as stop:
        for part in _run(job, todo, workers=workers, stopped=lambda: stop.received is not None):
            done += counts[part]
            progress.update(done)
        if stop.received is not None:
            log.info('Stopped by %s; the same command goes on with what is missing.', stop.received.name)
            raise SystemExit(128 + stop.received)


def _run(job: Job, todo: list, *, workers: int, stopped: Callable[[], bool]) -> Iterator[tuple[str, int]]:
    """Makes parts; yields each when it is finished."""
    if workers == 1:
        for part in todo:
            if stopped():
                return
            make_part(job.task(*part))
            yield part
        return
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(todo)),
        mp_context=multiprocessing.get_context('spawn'),  # a fork would copy threads' locks
        initializer=_begin_worker,
    ) as pool:
        futures = {pool.submit(make_part, job.task(*part)): part for part in todo}
        try:
            pending = set(futures)
            while pending and not stopped():
                # In turns of half a second, so that a signal is seen soon.
                finished, pending = concurrent.futures.wait(pending, 0.5, concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    yield futures[future]
        except BrokenProcessPool as error:
            raise UserError(
                'A worker process died, most likely because memory ran out: set a smaller config.prepare.workers; '
                'the same command goes on with what is missing.'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    # The workers are as many as the cores, so TensorFlow needs no threads of its own.
    os.environ.update(TF_NUM_INTRAOP_THREADS='1', TF_NUM_INTEROP_THREADS='1')
    begin_worker()


def begin_worker(*_: Any) -> None:
    """Makes a worker process leave signals to its parent, and end when the parent is gone, however it went.

    Ctrl-C, and SIGTERM from a scheduler, reach the whole group: the parent still needs its workers to end in order.
    """
    for number in StopSignal.NUMBERS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def make_part(task: Task) -> None:
    """Reads, decodes, resizes and writes one part.

    Raises:
      UserError: names an image that cannot be read, unless those are skipped.
    """
    tally, images = Tally(), []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, of odd metadata
        for record in task.records:
            try:
                if record.error:
                    raise ValueError(record.error)
                image, kind = decode(record.content, task.channels)
            except ValueError as error:
                name = printable(record.name)
                if not task.skip:
                    raise UserError(
                        f'{name} ({task.split}) cannot be read ({error}): mend or remove it, or leave such images '
                        'out with --config.prepare.on_error=skip; what is prepared is kept.'
                    ) from error
                tally.skipped.append({'split': task.split, 'file': name, 'reason': str(error)})
                continue
            tally.kinds[kind] += 1
            tally.enlarged += min(image.size) < task.size
            tally.classes[record.label] += 1
            pixels = square(image, task.size, task.crop)
            digest = hashlib.sha256(np.int32(record.label).tobytes() + pixels.tobytes()).digest()
            images.append(Prepared(printable(record.name), record.label, to_png(pixels), digest))
    write_part(task.path, images, tally)


def write_part(path: epath.Path, images: list[Prepared], tally: Tally) -> None:
    """Writes a part, whole or not at all."""
    facts = {
        'names': [image.name for image in images],
        'kinds': tally.kinds,
        'enlarged': tally.enlarged,
        'skipped': tally.skipped,
        'classes': tally.classes,
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        pngs=np.frombuffer(b''.join(image.png for image in images), np.uint8),
        ends=np.cumsum([len(image.png) for image in images], dtype=np.int64),
        labels=np.array([image.label for image in images], np.int32),
        sha256=np.frombuffer(b''.join(image.sha256 for image in images), np.uint8),
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
    )
    write_whole(path, buffer.getvalue())


def read_part(path: epath.Path) -> tuple[list[Prepared], Tally]:
    """The inverse of `write_part`.

    Raises:
      UserError: when the file is damaged.
    """
    facts = read_facts(path)
    with _damage(path):
        with path.open('rb') as content, np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        pngs, ends = arrays['pngs'].tobytes(), arrays['ends'].tolist()
        digests = [arrays['sha256'].tobytes()[i : i + 32] for i in range(0, 32 * len(ends), 32)]
        starts = [0, *ends][: len(ends)]
        images = [
            Prepared(name, int(label), pngs[start:end], digest)
            for name, label, start, end, digest in zip(
                facts['names'], arrays['labels'], starts, ends, digests, strict=True
            )
        ]
        classes = Counter({int(label): count for label, count in facts['classes'].items()})
        return images, Tally(Counter(facts['kinds']), facts['enlarged'], facts['skipped'], classes)


def read_facts(path: epath.Path) -> dict[str, Any]:
    """What a part says of its images, without reading them.

    Raises:
      UserError: when the file is damaged.
    """
    with _damage(path), path.open('rb') as content, np.load(content, allow_pickle=False) as file:
        return json.loads(file['facts'].tobytes())


@contextlib.contextmanager
def _damage(path: epath.Path) -> Iterator[None]:
    """Turns what a damaged part raises into a sentence."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib, json and numpy each raise their own kinds on a damaged file
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}): delete it, and the same command makes it again.'
        ) from error


@functools.cache
def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
