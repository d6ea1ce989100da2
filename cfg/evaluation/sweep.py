"""The sweep of `--mode=eval`: every metric of any product of checkpoints, T, seeds and w, each row measured once.

A row is measured in a folder of its own under `unfinished/`, from where a process that died goes on in the middle of
it. A finished row is one line of the results file of the job that measured it.
"""

import contextlib
import copy
import datetime
import hashlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from cfg import setup
from cfg.data.source import Source
from cfg.data.spec import DataSpec
from cfg.errors import UserError
from cfg.evaluation import loading, references
from cfg.evaluation.measurement import Measurement
from cfg.evaluation.results import Row, read_results
from cfg.evaluation.rows import append, digest, repair, results_path, table, versions
from cfg.evaluation.sample_files import write_samples
from cfg.evaluation.scoring import score, warnings
from cfg.files import lock
from cfg.generate import Generator, draw_labels
from cfg.progress import Progress
from cfg.stopping import StopSignal

log = logging.getLogger('cfg')

UNFINISHED = 'unfinished'

# Fields that say how the work is divided, and not what is measured.
DIVISION = ('job', 'save_seconds')


class Point(NamedTuple):
    """One point of the product that a sweep is."""

    step: int
    ema: bool
    num_steps: int
    seed: int
    w: float


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """All metrics of every row of the sweep that no results file holds yet; prints the table of the rows asked for.

    Raises:
      UserError: on input that does not fit, before any sample is drawn.
      SystemExit: on SIGTERM or Ctrl-C, after what is measured was saved.
    """
    job = setup.parse_job(config.eval.job)
    part = results_path(workdir, job).stem
    with lock(workdir, 'eval', part=part), StopSignal() as stop:
        _Sweep(config, workdir, job, stop).run()


class _Sweep:
    """What all rows share, opened and checked before the first one is measured."""

    def __init__(self, config: ConfigDict, workdir: Path, job: tuple[int, int], stop: StopSignal):
        self._config, self._workdir, self._stop = config, workdir, stop
        options = config.eval
        source = setup.open_source(config) if not options.reference else None
        self._spec: DataSpec | Source = source or loading.spec_of_run(config, workdir)
        self._network = setup.build_network(config, self._spec)
        self._uncond = loading.open_uncond(config, self._spec.image_shape)
        self._generators: dict[int, Generator] = {}
        self._params: tuple[tuple[int, bool] | None, Any] = (None, None)
        self.p_uncond = loading.find_checkpoints(config, workdir, options.steps or (-1,))
        for p_uncond in self.p_uncond.values():
            loading.check_guidable(options.w, p_uncond, self._uncond)
        if source is not None:
            loading.check_data(config, workdir)
        self._generator(config.sampling.num_steps)  # says whether the batch fits the devices
        self._results = results_path(workdir, job)
        repair(self._results)
        self._features = loading.open_features(
            config, workdir, self._spec.image_shape, f'The data set {self._spec.name}'
        )
        self._reference = references.open_reference(config, self._features, stop)
        self._source, self._facts = source, {}
        self._warnings = warnings(
            options,
            self._features,
            self._reference,
            num_samples=options.num_samples,
            image_shape=self._spec.image_shape,
        )
        for text in self._warnings:
            log.warning('%s', text)
        shared = self._shared_identity()
        points = list(self._points())
        digests = {pair: loading.sha256(self._load(*pair)) for pair in dict.fromkeys((p.step, p.ema) for p in points)}
        number, count = job
        self._asked = [
            self._identity(point, shared, digests[point.step, point.ema]) for point in points[number - 1 :: count]
        ]

    def _points(self) -> Iterator[Point]:
        """The product; parameters change as rarely as they can."""
        options, sampling = self._config.eval, self._config.sampling
        return (
            Point(*values)
            for values in itertools.product(
                self.p_uncond,
                dict.fromkeys(options.ema or (sampling.ema,)),
                dict.fromkeys(options.num_steps or (sampling.num_steps,)),
                dict.fromkeys(options.seeds or (sampling.seed,)),
                dict.fromkeys(float(w) for w in options.w),
            )
        )

    def run(self) -> None:
        """Measures what is missing and prints the table."""
        done = self._done()
        todo = [(point, row) for point, row in self._asked if row['identity'] not in done]
        log.info('%d of the %d rows of the sweep are to be done.', len(todo), len(self._asked))
        for _, row in self._asked:  # finished, by a process that died before it could tidy up
            if row['identity'] in done:
                shutil.rmtree(self._workdir / UNFINISHED / row['identity'], ignore_errors=True)
        if todo:
            self._facts = self._reference.facts(self._config.eval.num_samples)
            if self._source is not None:
                self._facts |= references.floor(self._config, self._source, self._features, self._stop)
        progress = Progress('eval', len(todo) * self._config.eval.num_samples, unit='sample')
        failures, elsewhere = [], 0
        for number, (point, identity) in enumerate(todo):
            folder = self._workdir / UNFINISHED / identity['identity']
            with contextlib.ExitStack() as held:
                folder.parent.mkdir(exist_ok=True)
                try:
                    held.enter_context(lock(folder.parent, 'eval', part=folder.name))
                except UserError:
                    elsewhere += 1
                    continue
                try:
                    if identity['identity'] not in self._done():  # by another job, meanwhile
                        self._measure(point, identity, folder, progress, number)
                except UserError as error:  # one bad row is no reason to lose the others
                    failures.append(f'step {point.step}: {error}')
                    log.warning('%s', failures[-1])
                    continue
                shutil.rmtree(folder, ignore_errors=True)
        done = self._done()
        print(table([done[row['identity']] for _, row in self._asked if row['identity'] in done]))
        if elsewhere:
            log.warning('%d rows are left to another process that measures them.', elsewhere)
        if failures:
            count = len(self._asked)
            raise UserError(f'{len(failures)} of {count} rows could not be measured; the first: {failures[0]}')

    def _done(self) -> dict[str, Row]:
        """The rows of every job, by identity."""
        return {row['identity']: row for row in read_results(self._workdir) if 'identity' in row}

    def _measure(self, point: Point, identity: Row, folder: Path, progress: Progress, number: int) -> None:
        """Draws the samples that are missing, scores all, and writes the row."""
        options, begin = self._config.eval, time.monotonic()
        labels = draw_labels(
            options.labels, num_samples=options.num_samples, num_classes=self._spec.num_classes, seed=point.seed
        )
        params = self._on_devices(point)
        with Measurement(
            folder,
            self._features,
            is_split_size=options.is_split_size,
            image_shape=self._spec.image_shape,
            save_seconds=options.save_seconds,
        ) as measured:
            if measured.count:
                log.info('%d of %d samples of w=%g are there.', measured.count, len(labels), point.w)
            batches = self._generator(point.num_steps)(params, labels, point.w, seed=point.seed, start=measured.count)
            for batch in batches:
                measured.add(batch.images, batch.labels, keep_images=max(options.keep_samples - batch.start, 0))
                progress.update(
                    number * len(labels) + measured.count, f'step {point.step}, T = {point.num_steps}, w = {point.w:g}'
                )
                self._stop.leave(measured.save)
            measured.save()
            row = identity | score(measured, self._reference, options) | self._facts
            kept = measured.images
            name = f'step{point.step:08d}_w{point.w:g}_{identity["identity"][:8]}.npz'
            row['samples'] = write_samples(self._workdir, name, kept, labels[: len(kept)]) if len(kept) else None
        row |= {
            'warnings': self._warnings,
            'p_uncond': self.p_uncond[point.step],
            'features_file_sha256': self._features.file_sha256,
            'config_sha256': config_sha256(self._config),
            'device': jax.devices()[0].device_kind,
            'versions': versions(),
            'seconds': round(time.monotonic() - begin, 3),
            'finished': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        }
        append(self._results, row)

    def _generator(self, num_steps: int) -> Generator:
        if num_steps not in self._generators:
            self._generators[num_steps] = setup.make_generator(
                self._config,
                self._spec,
                self._network,
                batch_size=self._config.sampling.batch_size,
                uncond=self._uncond and self._uncond.model,
                num_steps=num_steps,
            )
        return self._generators[num_steps]

    def _load(self, step: int, ema: bool) -> Any:
        like = setup.abstract_params(self._network, self._spec)
        return loading.load_params(self._workdir, step, like, ema=ema)

    def _on_devices(self, point: Point) -> Any:
        """The parameters of a point; those of one checkpoint at a time are in memory."""
        key = (point.step, point.ema)
        if self._params[0] != key:
            self._params = (None, None)
            self._params = (key, loading.on_devices_with(self._load(*key), self._uncond))
        return self._params[1]

    def _shared_identity(self) -> Row:
        options = self._config.eval
        second = {} if self._uncond is None else {'uncond_params_sha256': self._uncond.sha256}
        return second | {
            'num_samples': options.num_samples,
            'labels': options.labels,
            'is_split_size': options.is_split_size,
            'neighbours_dtype': options.neighbours_dtype,
            'kid_subsets': options.kid_subsets,
            'kid_subset_size': options.kid_subset_size,
            'num_reference_features': self._reference.num_features,
            'features': self._features.name,
            'features_sha256': self._features.sha256,
            'classifier': self._features.classifier,
            'reference_sha256': self._reference.sha256,
        }

    def _identity(self, point: Point, shared: Row, params_sha256: str) -> tuple[Point, Row]:
        """What makes a row the measurement that it is, with its digest under 'identity'."""
        settings = setup.sampler_settings(self._config, point.num_steps)
        row = {
            'step': point.step,
            'w': point.w,
            'ema': point.ema,
            'seed': point.seed,
            'sampling': {
                'sampler': 'ancestral',
                **{name: getattr(settings, name) for name in settings.__dataclass_fields__},
                'prediction': self._config.diffusion.prediction,
                'dtype': self._config.model.dtype,
            },
            'params_sha256': params_sha256,
            **shared,
        }
        return point, {'identity': digest(row)} | row


def config_sha256(config: ConfigDict) -> str:
    """Of the whole config, but for how the work is divided."""
    values = copy.deepcopy(setup.config_dict(config))
    for name in DIVISION:
        del values['eval'][name]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
