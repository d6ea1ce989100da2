"""Measures the sweep of `--mode=eval`: every metric of any product of checkpoints, samplers and guidance, each once.

A row is measured in a folder of its own under `unfinished/`, from where a process that died goes on in the middle of
it. A finished row is one file, see `cfg.report.results`.

Where a job is several processes, they share the networks' work on every batch; the first one keeps what is measured.
"""

import contextlib
import dataclasses
import functools
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cfg.evaluation import edm2, references
from cfg.evaluation.drawing import Drawing
from cfg.evaluation.measurement import Measurement
from cfg.evaluation.points import Planned, Point, config_sha256, plan, points_of
from cfg.evaluation.scoring import Scoring
from cfg.features import opening
from cfg.features.network import shared
from cfg.report.results import Results
from cfg.report.rows import Row
from cfg.report.sample_files import PAIRS, write_pairs, write_samples
from cfg.report.tables import terminal_table
from cfg.runs.generate import draw_labels
from cfg.runtime import processes
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock
from cfg.runtime.progress import Progress
from cfg.runtime.stopping import StopSignal
from cfg.settings.checks import parse_job
from cfg.settings.data import open_source

log = logging.getLogger('cfg')

UNFINISHED = 'unfinished'


def evaluate(
    config: ConfigDict,
    workdir: Path,
    draw: Callable[[int], Any] | None = None,
    *,
    then: Callable[['Sweep'], Any] | None = None,
) -> int | None:
    """Measures every row of the sweep that is not measured yet; prints the table of the rows asked for.

    Args:
      draw: shows the rows that are there, given how many of the sweep are missing. It is called on the first process
        as rows are finished, as long as it takes a twentieth of the time, and at the end.
      then: is called on every process when these rows are measured and shown, and may ask for others.

    Returns:
      On the first process, how many rows are still missing because other jobs have not measured them yet.

    Raises:
      UserError: on input that does not fit, before any sample is drawn.
      SystemExit: on SIGTERM or Ctrl-C, after what is measured was saved.
    """
    with opened(config, workdir) as sweep:
        job = parse_job(config.eval.job)
        processes.on_each(lambda: sweep.ask(sweep.points, num_samples=config.eval.num_samples, job=job))
        failures = sweep.measure(draw)
        try:
            return processes.on_first(lambda: sweep.report(failures))
        finally:  # also where some rows could not be measured
            if then is not None:
                then(sweep)


@contextlib.contextmanager
def opened(config: ConfigDict, workdir: Path, *, fewest: int | None = None) -> Iterator['Sweep']:
    """Opens and checks all that a sweep needs, and keeps others from the same share of its workdir, while entered.

    Args:
      fewest: samples of a row that is chosen by, which must be more than there are features.
    """
    processes.on_first(Results(workdir).check)
    part = 'eval{}of{}'.format(*parse_job(config.eval.job))
    with processes.held_by_first(lambda: lock(workdir, 'eval', part=part)), StopSignal() as stop:
        # What the first process finds missing, such as the moments of the real images, it makes for all.
        yield processes.in_turn(lambda: Sweep(config, workdir, stop, fewest))


class _Redraw:
    """Calls a function that draws, as often as that takes a twentieth of the time, and logs what it raises."""

    def __init__(self, draw: Callable[[int], Any] | None):
        self._draw, self._next = draw, 0.0

    def __call__(self, count_missing: Callable[[], int], *, last: bool = False) -> None:
        begin = time.monotonic()
        if not self._draw or (begin < self._next and not last):
            return
        try:
            self._draw(count_missing())
        except (UserError, OSError) as error:  # no reason to end a sweep
            log.warning('The report is not drawn: %s', error)
        end = time.monotonic()
        self._next = end + 19 * (end - begin)


class Sweep:
    """A sweep holds what all rows share, opened and checked before the first one is measured; see `opened`.

    `ask` says which rows are meant, and `measure` measures them; another `ask` may follow. The reference, the warnings
    and the results are the first process's alone.
    """

    def __init__(self, config: ConfigDict, workdir: Path, stop: StopSignal, fewest: int | None):
        self._config, self._workdir, self._stop = config, workdir, stop
        options = config.eval
        self._source = open_source(config) if not options.reference else None
        self.drawing = Drawing(config, workdir)
        self.points = points_of(config, self.drawing.steps)  # the product that the config names
        if self._source is not None:
            self.drawing.model(self.points[0]).check_data(config)
        else:
            edm2.reference_file(Path(options.reference), 'config.eval.reference')
        self.drawing.generator(self.points[0])  # says whether the batch fits the devices
        self._results = Results(workdir)
        spec = self.drawing.spec
        self._features = opening.open_features(config, spec.image_shape, f'The data set {spec.name}')
        if fewest is not None and fewest <= self._features.width:
            raise UserError(
                f'config.tune.first_samples={fewest} is too small: FID means little with no more samples than the '
                f'{self._features.width} features of {self._features.name}.'
            )
        if not processes.is_first():
            return
        self._results.read()  # says now what is wrong with a row
        reference = references.open_reference(config, self._features, stop)
        self._scoring = Scoring(options, self._features, reference, options.num_samples, spec.image_shape)

    def ask(
        self, points: Sequence[Point], *, num_samples: int, job: tuple[int, int] = (1, 1), mark: tuple[str, ...] = ()
    ) -> None:
        """Says which rows are measured next, those of points with so many samples each.

        Args:
          job: (i, n) for the i-th of n jobs that share these rows.
          mark: sentences that these rows keep among their warnings.
        """
        self._asked_of, self._num_samples, self._mark = list(points), num_samples, mark
        self._beside, self._elsewhere = None, 0
        if not processes.is_first():
            return
        self._scoring = dataclasses.replace(self._scoring, num_samples=num_samples)
        for text in self._scoring.warnings:
            log.warning('%s', text)
        number, count = job
        networks = self.drawing.networks
        self._rows = [plan(self._config, it, networks(it), self._scoring.method) for it in points]
        self._asked = self._rows[number - 1 :: count]

    def measure(
        self, draw: Callable[[int], Any] | None = None, *, what: str = 'eval', before: int = 0, after: int = 0
    ) -> list[str]:
        """Measures the rows that are missing; returns a sentence for each that cannot be.

        Args:
          draw: see `evaluate`.
          what: is going on, for the progress, in which so many samples came `before` these rows and come `after` them.
        """
        for network in filter(None, (self._features, self._features.second)):
            first = processes.from_first(network.sha256)
            processes.on_each(functools.partial(network.check_same, first))
        todo = processes.on_first(self._missing) or []
        places = processes.from_first([self._asked_of.index(row.point) for row in todo])
        points = [self._asked_of[place] for place in places]
        total = before + len(points) * self._num_samples + after
        progress = Progress(what, total, unit='sample', start=before, compiles=bool(points))
        failures, redraw = [], _Redraw(draw)
        for number, point in enumerate(points):
            self.leave_if_stopped()  # by what came while a row was scored
            # What comes after has samplers of these rows.
            self.drawing.keep(it.sampler for it in (self._asked_of if after else points[number:]))
            row = todo[number] if processes.is_first() else None
            with contextlib.ExitStack() as held:
                if not processes.from_first(row is not None and self._take(row, held)):
                    continue
                try:
                    self._measure(point, row, progress, before + number * self._num_samples)
                except UserError as error:  # one bad row is no reason to lose the others
                    failures.append(f'step {point.step}: {error}')
                    log.warning('%s', failures[-1])
                else:
                    if number + 1 < len(points):  # after the last one it is drawn in any case
                        processes.on_first(lambda: redraw(self._count_missing))
        if points:
            processes.on_first(lambda: redraw(self._count_missing, last=True))
        return failures

    def _count_missing(self) -> int:
        return sum(row.identity not in self._results for row in self._rows)

    def _missing(self) -> list[Planned]:
        """Returns the rows that are to be measured."""
        todo = [row for row in self._asked if row.identity not in self._results]
        log.info('%d of the %d rows of the sweep are to be done.', len(todo), len(self._asked))
        for row in self._asked:  # finished, by a process that died before it could tidy up
            if row.identity in self._results:
                shutil.rmtree(self._folder(row), ignore_errors=True)
        if todo:
            how = {'labels': self._config.eval.labels, 'num_classes': self.drawing.spec.num_classes}
            self._beside = self._scoring.reference.beside(self._num_samples, **how)
            if self._floor:
                self._beside = dataclasses.replace(self._beside, **self._floor.fields)
        return todo

    @functools.cached_property
    def _floor(self) -> references.Floor | None:
        """Returns what held-out images score, and the training images that samples are compared with."""
        if self._source is None:
            return None
        return references.floor(self._config, self._source, self._features, self._stop)

    def _take(self, row: Planned, held: contextlib.ExitStack) -> bool:
        """Locks a row for this job, until `held` is closed; False if it is another's, or done meanwhile."""
        folder = self._folder(row)
        folder.parent.mkdir(exist_ok=True)
        try:
            held.enter_context(lock(folder.parent, 'eval', part=folder.name))
        except UserError:
            self._elsewhere += 1
            return False
        return row.identity not in self._results

    def identity(self, point: Point) -> str:
        """Returns the identity of the row of a point with as many samples as are asked for. On the first process."""
        return plan(self._config, point, self.drawing.networks(point), self._scoring.method).identity

    def finished(self) -> list[tuple[Point, str]]:
        """Returns those of this job's points that are measured, with the identities of their rows, on every process."""
        rows = processes.on_first(lambda: [row for row in self._asked if row.identity in self._results]) or []
        found = processes.from_first([(self._asked_of.index(row.point), row.identity) for row in rows])
        return [(self._asked_of[place], identity) for place, identity in found]

    def leave_if_stopped(self) -> None:
        """Ends all processes if one was told to stop."""
        self._stop.leave(lambda: None, processes.largest(self._stop.received or 0))

    def found(self) -> list[Row | None]:
        """Returns the rows that were asked for, in their order, on the first process; None for one that is missing.

        Raises:
          UserError: when another process was measuring some of them.
        """
        if self._elsewhere:
            raise UserError(
                f'{self._elsewhere} rows are being measured by another process: start again when it has ended.'
            )
        done = {row.identity: row for row in self._results.read()}
        return [done.get(row.identity) for row in self._asked]

    def report(self, failures: Sequence[str]) -> int:
        """Prints the table of the rows asked for; returns how many are missing. On the first process alone.

        Raises:
          UserError: when some could not be measured.
        """
        self._results.write_lines()
        done = {row.identity: row for row in self._results.read()}
        asked = [done[row.identity] for row in self._asked if row.identity in done]
        print(terminal_table(sorted(asked, key=lambda row: row.order)))
        if self._elsewhere:
            log.warning('%d rows are left to another process that measures them.', self._elsewhere)
        if failures:
            count = len(self._asked)
            raise UserError(f'{len(failures)} of {count} rows could not be measured; the first: {failures[0]}')
        return self._count_missing()

    def _folder(self, row: Planned) -> Path:
        return self._workdir / UNFINISHED / row.identity

    def _measure(self, point: Point, row: Planned | None, progress: Progress, before: int) -> None:
        """Draws the samples that are missing, scores all, and writes the row; `row` is the first process's."""
        options, spec, begin = self._config.eval, self.drawing.spec, time.monotonic()
        labels = draw_labels(
            options.labels, num_samples=self._num_samples, num_classes=spec.num_classes, seed=point.seed
        )
        params = processes.on_each(lambda: self.drawing.on_devices(point))  # a row that one cannot read is nobody's
        network = shared(self._features)
        with processes.held_by_first(
            lambda: Measurement(
                self._folder(row),
                network,
                is_split_size=options.is_split_size,
                image_shape=spec.image_shape,
                save_seconds=options.save_seconds,
                period=spec.num_classes if options.labels == 'balanced' else 1,
            )
        ) as measured:
            start = processes.from_first(measured.count if measured else None)
            if start:
                log.info('%d of %d samples of w=%g are there.', start, len(labels), point.w)
            batches = self.drawing.generator(point)(params, labels, point.w, seed=point.seed, start=start)
            for batch in batches:
                if measured:
                    measured.add(batch.images, batch.labels, keep_images=max(options.keep_samples - batch.start, 0))
                else:
                    network.extract(batch.images)  # its share, for the first process
                count = batch.start + len(batch.images)
                progress.update(before + count, str(point))
                self._stop.leave(
                    lambda: processes.on_first(lambda: measured.save()), processes.largest(self._stop.received or 0)
                )
            processes.on_first(lambda: self._finish(measured, row, labels, begin))

    def _finish(self, measured: Measurement, planned: Planned, labels: Any, begin: float) -> None:
        """Scores what was measured and writes the row."""
        measured.save()
        scores, point = self._scoring.scores(measured, labels), planned.point
        model = self.drawing.model(point)
        kept, samples = measured.images[: self._config.eval.keep_samples], None
        if len(kept):
            name = f'step{point.step:08d}_w{point.w:g}_{planned.identity[:8]}.npz'
            samples = write_samples(self._workdir, name, kept, labels[: len(kept)])
        if self._floor and self._floor.training:
            copying = self._floor.training.copying(references.telling(measured))
            scores = dataclasses.replace(scores, authenticity=copying.authenticity, near_copies=copying.near_copies)
            if samples:
                closest = np.argsort(copying.distances[: len(kept)], kind='stable')[:PAIRS]
                write_pairs(self._workdir, samples, kept[closest], self._floor.images(copying.nearest[closest]))
        row = Row(
            source=planned.source,
            method=self._scoring.method,
            scores=scores,
            beside=self._beside,
            origin=self._scoring.origin((*model.warnings(point.w, point.sampler), *self._mark)),
            p_uncond=model.p_uncond,
            label_in=self._config.model.label_in,
            **self.drawing.cost(point),
            samples=samples,
            config_sha256=config_sha256(self._config),
            seconds=round(time.monotonic() - begin, 3),
        )
        self._results.write(row)
        measured.remove()
