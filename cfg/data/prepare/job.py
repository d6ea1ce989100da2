"""Does the long half of a preparation: every part of an input, over all cores.

A preparation that starts again goes on with the parts that are missing.
"""

import concurrent.futures
import functools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

from etils import epath

from cfg.data.prepare import parts
from cfg.data.prepare.inputs import Input
from cfg.data.prepare.parts import Options
from cfg.data.workers import begin_worker
from cfg.runtime.errors import UserError
from cfg.runtime.progress import Progress
from cfg.runtime.stopping import StopSignal

log = logging.getLogger('cfg')


class Place(NamedTuple):
    """The place of a part: images number `start` to `stop` - 1 of a split, and the file that holds them finished."""

    split: str
    start: int
    stop: int
    path: epath.Path


@dataclass(frozen=True)
class Job:
    """A job is a preparation: what, how, and where its parts lie."""

    name: str  # of the data set, `config.data.name`
    source: Input  # where the images come from
    folder: epath.Path  # of the parts
    options: Options  # for all images
    part_size: int  # images a part

    def places(self) -> list[Place]:
        """Lists every part, in order."""
        return [
            Place(split, start, min(start + self.part_size, count), self.folder / f'{split}-{number:05d}.npz')
            for split, count in self.source.splits.items()
            for number, start in enumerate(range(0, count, self.part_size))
        ]

    def task(self, place: Place) -> Callable[[], None]:
        """Returns what makes a part, in this process or another."""
        records = self.source.section(place.split, place.start, place.stop)
        return functools.partial(parts.make_part, place.path, place.split, records, self.source.channels, self.options)


def make_parts(job: Job, *, workers: int) -> None:
    """Makes every part that is not there yet.

    Args:
      workers: processes; 1 = in this one.

    Raises:
      UserError: when an image cannot be read and is not to be skipped, or a worker dies.
      SystemExit: with 128 + the signal's number, on SIGTERM or Ctrl-C, after the parts in progress.
    """
    places = job.places()
    # What could not be read is tried again: it may have been mended, or leaving it out is no longer wanted.
    todo = [place for place in places if not place.path.exists() or parts.read_facts(place.path)['skipped']]
    if not todo:
        return
    if len(todo) < len(places):
        log.info('%d of %d parts are there already.', len(places) - len(todo), len(places))
    total = sum(job.source.splits.values())
    done = total - sum(place.stop - place.start for place in todo)
    progress = Progress('prepare', total, start=done, unit='image')
    with StopSignal('each part in progress', 'the parts in progress') as stop:
        for place in _run(job, todo, workers=workers, stopped=lambda: stop.received is not None):
            done += place.stop - place.start
            progress.update(done)
        if stop.received is not None:
            log.info('Stopped by %s; the same command goes on with what is missing.', stop.received.name)
            raise SystemExit(128 + stop.received)


def _run(job: Job, todo: Sequence[Place], *, workers: int, stopped: Callable[[], bool]) -> Iterator[Place]:
    """Makes parts, and yields each when it is finished."""
    if workers == 1:
        for part in todo:
            if stopped():
                return
            job.task(part)()
            yield part
        return
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(todo)),
        mp_context=multiprocessing.get_context('spawn'),  # a fork would copy threads' locks
        initializer=_begin_worker,
    ) as pool:
        futures = {pool.submit(job.task(part)): part for part in todo}
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
