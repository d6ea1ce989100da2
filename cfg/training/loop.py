"""Runs the training loop: data, steps, logs, sample grids, checkpoints, resume."""

import contextlib
import functools
import json
import logging
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cfg.data.pipeline import Share, train_batches
from cfg.data.source import Source
from cfg.runs import state as states
from cfg.runs.checkpoints import Checkpoints
from cfg.runs.run_files import CONFIG_FILE, checkpoint_steps
from cfg.runs.state import TrainState
from cfg.runs.trained import counted
from cfg.runtime import environment, parallel, processes
from cfg.runtime.errors import UserError
from cfg.runtime.files import lock, write_whole
from cfg.runtime.progress import Progress
from cfg.runtime.stopping import StopSignal
from cfg.settings.data import open_source
from cfg.settings.networks import abstract_params, build_trained, held, init_params
from cfg.settings.values import config_dict
from cfg.training.build import check_trainable, make_optimizer, step_of
from cfg.training.logs import Logs
from cfg.training.meter import NO_SKIPS, Meter
from cfg.training.resume import restore
from cfg.training.teacher import Teacher, open_teacher, taught
from cfg.training.views import View, open_view
from cfg.training.wandb_writer import WandbWriter

log = logging.getLogger('cfg')

# The wish to stop that goes with a step: the number of a signal, or this when the data of a process cannot be read.
NO_DATA = 1000
# Batches on their way to the devices. A process without data stops with the others while it still has some: its wish is
# seen two steps later at most.
AHEAD = 3


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains until `config.train.num_steps`, from the newest checkpoint of the workdir if it has one.

    Raises:
      UserError: on input that does not fit, or when the loss is no longer finite.
    """
    with processes.held_by_first(lambda: lock(workdir, 'train')):
        _train(config, workdir)


def _train(config: ConfigDict, workdir: Path) -> None:
    check_trainable(config)
    source = processes.on_each(lambda: open_source(config))
    network = build_trained(config, source)
    # Pictures and accuracies of held-out images are the first process's alone.
    view = processes.on_first(lambda: open_view(config, source, network))
    tx = make_optimizer(config)
    teacher = processes.on_each(lambda: open_teacher(config, source)) if config.train.kind == 'student' else None
    if teacher:
        first = processes.from_first(teacher.sha256)
        processes.on_each(lambda: teacher.check_same(first))
    params = abstract_params(network, source)
    create = functools.partial(states.create, tx=tx, ema_lengths=config.train.ema_lengths)
    like = jax.eval_shape(create, params)

    # So is the reading and writing of checkpoints and logs.
    with processes.held_by_first(lambda: _open_checkpoints(config, workdir, like)) as checkpoints:
        found = processes.on_first(lambda: restore(config, source, checkpoints, like, teacher))
        start, skips = processes.from_first((int(found[0].step), found[1]) if found else (0, NO_SKIPS))
        if start >= config.train.num_steps:
            log.info('Nothing to train: the newest checkpoint is of step %d.', start)
            return

        def begin() -> TrainState:
            params = init_params(network, source, seed=config.seed)
            return create(taught(params, teacher) if teacher else params)

        state = processes.on_first(lambda: found[0] if found else begin())
        if not processes.is_first():
            state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        stop = StopSignal('the step in progress')
        with stop, processes.held_by_first(lambda: _open_logs(config, workdir, start)) as logs:
            batches = train_batches(
                source,
                batch_size=config.train.batch_size,
                seed=config.seed,
                start_step=start,
                flip=config.data.random_flip,
                share=Share(processes.index(), processes.count()),
                workers=config.data.workers,
            )
            with contextlib.closing(batches):
                step_fn, meter = step_of(config, network, tx, teacher=teacher), Meter(config, skips)
                run = _Run(config, source, step_fn, meter, checkpoints, logs, view, stop, start, teacher)
                stop.lost = lambda: run.unsaved(checkpoint_steps(workdir))
                run.steps(state, parallel.Prefetched(batches, parallel.everywhere(), ahead=AHEAD))


def _open_checkpoints(config: ConfigDict, workdir: Path, like: TrainState) -> Checkpoints:
    checkpoints = Checkpoints(workdir, keep_last=config.train.keep_last, keep_every=config.train.keep_every)
    checkpoints.check_room(like)
    return checkpoints


def _open_logs(config: ConfigDict, workdir: Path, start: int) -> Logs:
    said, project = config_dict(config), config.train.wandb_project
    beside = [WandbWriter(project, workdir, said)] if project else []
    write_whole(workdir / CONFIG_FILE, (json.dumps(said, indent=2) + '\n').encode())
    return Logs(workdir, start_step=start, beside=beside)


def _position(source: Source, step: int, batch_size: int) -> dict[str, Any]:
    """Tells where the reading of the data stands after a step; with the seed, this is all it needs to read on."""
    epoch, place = divmod(step * batch_size, len(source))
    return {
        'name': source.name,
        'fingerprint': source.fingerprint,
        'class_names': list(source.class_names),
        'image_shape': source.image_shape,
        'num_examples': len(source),
        'examples_read': step * batch_size,
        'epoch': epoch,
        'place_in_epoch': place,
    }


@dataclass
class _Run:
    """A `_Run` takes the steps of a run, with all that goes on beside them."""

    config: ConfigDict
    source: Source
    step_fn: Callable
    meter: Meter
    checkpoints: Checkpoints | None  # this and the next two: None on every process but the first
    logs: Logs | None
    view: Callable[[TrainState], View] | None  # what is logged of the network itself; None for nothing
    stop: StopSignal
    start: int  # the step that was done last
    teacher: Teacher | None = None  # of a student
    pending: deque = field(default_factory=deque)  # steps under way, with their metrics
    taken: int = 0  # the step that was begun last

    def steps(self, state: TrainState, batches: parallel.Prefetched) -> None:
        """Takes the steps from the one after `state` to `config.train.num_steps`, or to a stop.

        Raises:
          SystemExit: with 128 + the number of the signal that came to any process, after the step in progress was
            saved.
          UserError: when the data of a process cannot be read, likewise.
        """
        options, meter = self.config.train, self.meter
        progress = Progress('train', options.num_steps, start=self.start, unit='step', compiles=True)
        everywhere = parallel.everywhere()
        state = parallel.replicate_first(state, everywhere)
        stopping = 0
        for step in range(self.start + 1, options.num_steps + 1):
            self.taken = step
            waited = batches.waited
            batch = next(batches)
            meter.spent('data_wait_share', batches.waited - waited)
            wish = NO_DATA if batches.failed else self.stop.received or 0
            state, metrics = self.step_fn(state, batch, parallel.number_for_each(wish, everywhere))
            self.pending.append((step, metrics))
            last = step == options.num_steps
            saving = last or step % options.checkpoint_every == 0
            write_log = last or step % options.log_every == 0
            # Two steps may be under way before their loss is looked at, so that the device never waits for the host;
            # nothing is saved before all of them were.
            stopping = self._look(0 if saving or write_log else 2) or stopping
            if processes.told_to_stop(step):
                stopping = stopping or int(signal.SIGTERM)
            if stopping:
                self._look(0)
            if write_log and self.logs:
                self.logs.scalars(step, meter.take(step))
            progress.update(step, f'loss {meter.loss:.4f}' if meter.loss is not None else '')
            if self.checkpoints:
                self.checkpoints.check()
                if saving or stopping:
                    self._save(step, state)
            if stopping and not last:
                self._leave(step, stopping, batches.failed)
            if self.view and (last or step % options.sample_every == 0):
                self._show(step, state)
        processes.on_first(lambda: self.checkpoints.wait())

    def unsaved(self, saved: list[int]) -> str:
        """Tells in words what is lost if the process ends now, of the steps that have checkpoints."""
        last = saved[-1] if saved else 0
        since = f'the checkpoint of step {last}' if saved else 'the start, as there is no checkpoint yet'
        lost = max(self.taken - last, 0)
        return f'{counted(lost)} since {since}'

    def _look(self, most: int) -> int:
        """Waits for steps under way until at most so many are left; returns the others' largest wish to stop."""
        wish = 0
        while len(self.pending) > most:
            step, metrics = self.pending.popleft()
            values = jax.tree.map(float, parallel.unreplicate(metrics))
            wish = max(wish, int(values.pop('stop')))
            self.meter.add(step, values)
        return wish

    def _save(self, step: int, state: TrainState) -> None:
        meta = {
            'kind': held(self.config.train.kind),
            'config': config_dict(self.config),
            'data': _position(self.source, step, self.config.train.batch_size),
            'skipped': self.meter.skips,
            'environment': environment.recorded(),
        }
        if self.teacher:
            meta['teacher'] = self.teacher.sha256
        begin = time.monotonic()
        self.checkpoints.save(parallel.unreplicate(state), meta=meta)
        self.meter.spent('checkpoint_share', time.monotonic() - begin)

    def _leave(self, step: int, wish: int, failed: Exception | None) -> None:
        """Ends all processes after a step that was saved."""
        processes.on_first(lambda: self.checkpoints.wait())
        if wish == NO_DATA:
            log.info('Saved step %d.', step)

            def fail():
                if failed:
                    raise failed

            processes.on_each(fail)
        number = signal.Signals(wish)
        log.info('Stopped by %s; saved step %d. The same command goes on from there.', number.name, step)
        raise SystemExit(128 + number)

    def _show(self, step: int, state: TrainState) -> None:
        try:
            scalars, images = self.view(state)
        except UserError as error:  # no reason to end a run
            log.warning('No samples or held-out accuracies at step %d: %s', step, error)
        else:
            if scalars:
                self.logs.scalars(step, scalars)
            for name, image in images.items():
                self.logs.image(step, name, image)
        self.logs.flush()
        self.meter.restart()
