"""Measures the sweep of `--mode=eval`: every metric of any product of checkpoints, samplers and guidance, each once.

A row is measured in a folder of its own under `unfinished/`, from where a process that died goes on in the middle of
it. A finished row is one file, see `cfg.report.results`.

Where a job is several processes, they share the networks' work on every batch; the first one keeps what is measured.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfg.diffusion.rules.base import Rule
from cfg.diffusion.sampler import parse_rule
from cfg.evaluation import npz, references
from cfg.evaluation.measurement import Measurement
from cfg.evaluation.points import Planned, Point, config_sha256, plan, points_of
from cfg.evaluation.scoring import Scoring
from cfg.features import opening
from cfg.features.network import shared
from cfg.models.flops import guided_flops
from cfg.report.results import Results
from cfg.report.rows import Row
from cfg.report.sample_files import write_samples
from cfg.report.tables import text_table
from cfg.runs.companions import Networks, check_guidable, make_generator, on_devices, open_companions
from cfg.runs.generate import Generator, draw_labels
from cfg.runs.trained import TrainedRun
from cfg.runtime import processes
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock
from cfg.runtime.progress import Progress
from cfg.runtime.stopping import StopSignal
from cfg.settings.checks import parse_job
from cfg.settings.data import open_source

log = logging.getLogger('cfg')

UNFINISHED = 'unfinished'


def evaluate(config: ConfigDict, workdir: Path, draw: Callable[[int], Any] | None = None) -> int | None:
    """Measures every row of the sweep that is not measured yet; prints the table of the rows asked for.

    Args:
      draw: shows the rows that are there, given how many of the sweep are missing. It is called on the first process
        as rows are finished, as long as it takes a twentieth of the time, and at the end.

    Returns:
      On the first process, how many rows are still missing because other jobs have not measured them yet.

    Raises:
      UserError: on input that does not fit, before any sample is drawn.
      SystemExit: on SIGTERM or Ctrl-C, after what is measured was saved.
    """
    job = parse_job(config.eval.job)
    processes.on_first(Results(workdir).check)
    part = 'eval{}of{}'.format(*job)
    with processes.held_by_first(lambda: lock(workdir, 'eval', part=part)), StopSignal() as stop:
        # What the first process finds missing, such as the moments of the real images, it makes for all.
        return processes.in_turn(lambda: _Sweep(config, workdir, job, stop)).run(draw)


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


class _Sweep:
    """A sweep holds what all rows share, opened and checked before the first one is measured.

    The reference, the warnings and the results are the first process's alone.
    """

    def __init__(self, config: ConfigDict, workdir: Path, job: tuple[int, int], stop: StopSignal):
        self._config, self._workdir, self._stop = config, workdir, stop
        options = config.eval
        source = open_source(config) if not options.reference else None
        self._models: dict[tuple[int, bool], TrainedRun] = {}
        for step, ema in itertools.product(options.steps or (-1,), options.ema or (config.sampling.ema,)):
            model = TrainedRun.of_config(config, workdir, step, ema=ema)
            self._models[model.step, ema] = model
        self._spec = model.spec  # of all steps, as the network is
        self._generators: dict[tuple, Generator] = {}
        self._held: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._companions: dict[tuple[Rule, bool], Networks] = {}
        for text, model in itertools.product(options.guidance or (config.sampling.guidance,), self._models.values()):
            rule = parse_rule(text, 'eval.guidance')
            key = dataclasses.replace(rule, w=None), model.ema
            if key not in self._companions:
                self._companions[key] = open_companions(config, model, rule)
            check_guidable(rule.w or options.w, model, rule, self._companions[key])
        if source is not None:
            model.check_data(config)
        else:
            npz.File(Path(options.reference), 'config.eval.reference')
        points = self._all = points_of(config, dict.fromkeys(step for step, _ in self._models))
        self._generator(points[0])  # says whether the batch fits the devices
        self._results = Results(workdir)
        self._features = opening.open_features(config, self._spec.image_shape, f'The data set {self._spec.name}')
        self._source, self._beside, self._elsewhere = source, None, 0
        if not processes.is_first():
            return
        self._results.read()  # says now what is wrong with a row
        reference = references.open_reference(config, self._features, stop)
        self._scoring = Scoring(options, self._features, reference, options.num_samples, self._spec.image_shape)
        for text in self._scoring.warnings:
            log.warning('%s', text)
        number, count = job
        self._rows = [plan(config, point, self._networks(point), self._scoring.method) for point in points]
        self._asked = self._rows[number - 1 :: count]

    def run(self, draw: Callable[[int], Any] | None) -> int | None:
        """Measures what is missing and prints the table; see `evaluate`."""
        first = processes.from_first(self._features.sha256)
        processes.on_each(lambda: self._features.check_same(first))
        todo = processes.on_first(self._missing) or []
        points = [self._all[place] for place in processes.from_first([self._all.index(row.point) for row in todo])]
        progress = Progress('eval', len(points) * self._config.eval.num_samples, unit='sample')
        failures, redraw = [], _Redraw(draw)
        for number, point in enumerate(points):
            self._stop.leave(lambda: None, processes.largest(self._stop.received or 0))  # came while a row was scored
            needed = {point.sampler for point in points[number:]}  # the others go, with their compiled programs
            self._generators = {sampler: made for sampler, made in self._generators.items() if sampler in needed}
            row = todo[number] if processes.is_first() else None
            with contextlib.ExitStack() as held:
                if not processes.from_first(row is not None and self._take(row, held)):
                    continue
                try:
                    self._measure(point, row, progress, number)
                except UserError as error:  # one bad row is no reason to lose the others
                    failures.append(f'step {point.step}: {error}')
                    log.warning('%s', failures[-1])
                else:
                    if number + 1 < len(points):  # after the last one it is drawn in any case
                        processes.on_first(lambda: redraw(self._count_missing))
        if points:
            processes.on_first(lambda: redraw(self._count_missing, last=True))
        return processes.on_first(lambda: self._report(failures))

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
            self._beside = self._scoring.reference.beside(self._config.eval.num_samples)
            if self._source is not None:
                floor = references.floor(self._config, self._source, self._features, self._stop)
                self._beside = dataclasses.replace(self._beside, **floor)
        return todo

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

    def _report(self, failures: list[str]) -> int:
        self._results.write_lines()
        done = {row.identity: row for row in self._results.read()}
        asked = [done[row.identity] for row in self._asked if row.identity in done]
        print(text_table(sorted(asked, key=lambda row: row.order)))
        if self._elsewhere:
            log.warning('%d rows are left to another process that measures them.', self._elsewhere)
        if failures:
            count = len(self._asked)
            raise UserError(f'{len(failures)} of {count} rows could not be measured; the first: {failures[0]}')
        return self._count_missing()

    def _folder(self, row: Planned) -> Path:
        return self._workdir / UNFINISHED / row.identity

    def _measure(self, point: Point, row: Planned | None, progress: Progress, number: int) -> None:
        """Draws the samples that are missing, scores all, and writes the row; `row` is the first process's."""
        options, begin = self._config.eval, time.monotonic()
        labels = draw_labels(
            options.labels, num_samples=options.num_samples, num_classes=self._spec.num_classes, seed=point.seed
        )
        params = processes.on_each(lambda: self._on_devices(point))  # a row that one cannot read is nobody's
        network = shared(self._features)
        with processes.held_by_first(
            lambda: Measurement(
                self._folder(row),
                network,
                is_split_size=options.is_split_size,
                image_shape=self._spec.image_shape,
                save_seconds=options.save_seconds,
            )
        ) as measured:
            start = processes.from_first(measured.count if measured else None)
            if start:
                log.info('%d of %d samples of w=%g are there.', start, len(labels), point.w)
            batches = self._generator(point)(params, labels, point.w, seed=point.seed, start=start)
            for batch in batches:
                if measured:
                    measured.add(batch.images, batch.labels, keep_images=max(options.keep_samples - batch.start, 0))
                else:
                    network.extract(batch.images)  # its share, for the first process
                count = batch.start + len(batch.images)
                progress.update(number * len(labels) + count, str(point))
                self._stop.leave(
                    lambda: processes.on_first(lambda: measured.save()), processes.largest(self._stop.received or 0)
                )
            processes.on_first(lambda: self._finish(measured, row, labels, begin))

    def _finish(self, measured: Measurement, planned: Planned, labels: Any, begin: float) -> None:
        """Scores what was measured and writes the row."""
        measured.save()
        scores, point = self._scoring.scores(measured), planned.point
        kept, samples = measured.images[: self._config.eval.keep_samples], None
        if len(kept):
            name = f'step{point.step:08d}_w{point.w:g}_{planned.identity[:8]}.npz'
            samples = write_samples(self._workdir, name, kept, labels[: len(kept)])
        row = Row(
            source=planned.source,
            method=self._scoring.method,
            scores=scores,
            beside=self._beside,
            origin=self._scoring.origin(self._models[point.step, point.ema].warnings(point.w, point.sampler)),
            p_uncond=self._models[point.step, point.ema].p_uncond,
            label_in=self._config.model.label_in,
            **self._cost(point),
            samples=samples,
            config_sha256=config_sha256(self._config),
            seconds=round(time.monotonic() - begin, 3),
        )
        self._results.write(row)
        measured.remove()

    def _networks(self, point: Point) -> Networks:
        return {'model': self._models[point.step, point.ema]} | self._companions[point.sampler.rule, point.ema]

    def _generator(self, point: Point) -> Generator:
        if point.sampler not in self._generators:
            self._generators[point.sampler] = make_generator(self._config, self._networks(point), point.sampler)
        return self._generators[point.sampler]

    def _on_devices(self, point: Point) -> Any:
        """Returns the parameters of a point; those of one checkpoint, and of one rule beside it, are on the devices."""
        step, rule = (point.step, point.ema), (point.sampler.rule, point.ema)
        model, companions = {'model': self._models[step]}, self._companions[rule]
        for kind, key, networks in (('model', step, model), ('companions', rule, companions)):
            if self._held.get(kind, (None,))[0] != key:
                self._held.pop(kind, None)  # what is there is let go of first
                self._held[kind] = key, on_devices(networks)
        return self._held['model'][1] | self._held['companions'][1]

    @functools.cached_property
    def _both(self) -> float:
        """Returns the arithmetic of two predictions at once, in those of one."""
        model = next(iter(self._models.values()))
        return guided_flops(model.network, self._spec.image_shape) / model.flops

    def _cost(self, point: Point) -> dict[str, float]:
        """Counts network evaluations for one sample, and their arithmetic in those of the model for one prediction."""
        companions = self._companions[point.sampler.rule, point.ema]
        passes = point.sampler.passes(point.w, second_uncond='uncond' in companions)
        second = sum(it.flops for name, it in companions.items() if name != 'classifier')
        classifier = companions['classifier'].flops if 'classifier' in companions else 0.0
        model = self._models[point.step, point.ema].flops
        alone = passes.single + passes.back  # the gradient of an input takes about the products of a pass
        others = (passes.second * second + passes.classifier * classifier) / model
        return {'evaluations': passes.total, 'cost': round(alone + self._both * passes.both + others, 3)}
