"""The training loop: data, steps, logs, sample grids, checkpoints, resume."""

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cfg import parallel, setup
from cfg.data.grids import mosaic
from cfg.data.pipeline import Share, train_batches
from cfg.data.prepared import short_name
from cfg.data.source import Source
from cfg.errors import UserError
from cfg.files import lock, write_whole
from cfg.models.unet import UNet
from cfg.progress import Progress
from cfg.stopping import StopSignal
from cfg.training import state as states
from cfg.training.build import check_batch, make_optimizer, make_step
from cfg.training.checkpoints import Checkpoints
from cfg.training.state import TrainState

log = logging.getLogger('cfg')

CONFIG_FILE = 'config.json'

# Fields that may differ between the parts of one run. The first change its length and what is written, not its numbers
# (grad_accum and remat: only their rounding); the others are what people change on purpose in the middle of a run.
FREE_FIELDS = (
    'num_steps',
    'log_every',
    'sample_every',
    'checkpoint_every',
    'keep_last',
    'keep_every',
    'grad_accum',
    'remat',
)
FREE_BY_INTENT = ('learning_rate', 'grad_clip')
# Where the data lie and who reads them may change; what they are is told by their fingerprint.
FREE_DATA_FIELDS = ('dir', 'workers')
FREE = {'train': FREE_FIELDS, 'data': FREE_DATA_FIELDS}


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains until `config.train.num_steps`, from the newest checkpoint of the workdir if it has one.

    Raises:
      UserError: on input that does not fit, or when the loss is no longer finite.
    """
    with lock(workdir, 'train'):
        _train(config, workdir)


def _train(config: ConfigDict, workdir: Path) -> None:
    if config.model.learned_variance:
        raise UserError(
            'config.model.learned_variance=True is for imported networks: the loss trains no variances; '
            'set it to False.'
        )
    source = setup.open_source(config)
    check_batch(config)
    network = setup.build_network(config, source)
    parallel.per_device(config.sampling.batch_size, 'config.sampling.batch_size')

    with Checkpoints(workdir, keep_last=config.train.keep_last, keep_every=config.train.keep_every) as checkpoints:
        tx = make_optimizer(config)
        state = _restore(config, source, checkpoints, setup.abstract_params(network, source), tx)
        if state is None:
            state = states.create(setup.init_params(network, source, seed=config.seed), tx)
        start = int(state.step)
        if start >= config.train.num_steps:
            log.info('Nothing to train: the newest checkpoint is of step %d.', start)
            return
        write_whole(workdir / CONFIG_FILE, (json.dumps(setup.config_dict(config), indent=2) + '\n').encode())
        # Imported here: it brings TensorFlow, which no other mode needs.
        from cfg.training.logs import Logs

        with StopSignal() as stop:
            batches = train_batches(
                source,
                batch_size=config.train.batch_size,
                seed=config.seed,
                start_step=start,
                flip=config.data.random_flip,
                share=Share(*parallel.process()),
                workers=config.data.workers,
            )
            with contextlib.closing(batches), Logs(workdir, start_step=start) as logs:
                _run(config, source, parallel.prefetch(batches), network, tx, state, checkpoints, logs, stop)
            checkpoints.wait()


def _restore(config: ConfigDict, source: Source, checkpoints: Checkpoints, params: Any, tx: Any) -> TrainState | None:
    steps = checkpoints.steps()
    if not steps:
        return None
    meta = checkpoints.meta(steps[-1])
    if meta.get('imported'):
        raise UserError(
            f'{checkpoints.folder / str(steps[-1])} was imported and has no optimizer to go on with: it can be sampled '
            'and evaluated; give another --workdir to train in.'
        )
    _check_same_run(config, meta['config'], checkpoints.folder)
    _check_same_data(source, meta, checkpoints.folder)
    like = jax.eval_shape(lambda p: states.create(p, tx), params)
    log.info('Resuming from step %d.', steps[-1])
    return checkpoints.restore_state(steps[-1], like, meta=meta)


def _check_same_run(config: ConfigDict, old: dict[str, Any], folder: Path) -> None:
    """A workdir belongs to one run: what changes its numbers by accident must stay.

    Raises:
      UserError: names the first field that differs from the config of the newest checkpoint.
    """
    new = setup.config_dict(config)
    for part in ('seed', 'data', 'model', 'diffusion', 'train'):
        before, now = old.get(part), new[part]
        if not isinstance(now, dict):
            before, now, part = {part: before}, {part: now}, ''
        for name, value in now.items():
            if part == 'data' and name == 'name':
                same = name in before and short_name(before[name]) == short_name(value)
            else:
                same = before.get(name, value) == value
            if same or name in FREE.get(part, ()):
                continue  # a field that an older version did not have keeps that version's behaviour
            field = f'{part}.{name}'.strip('.')
            if part == 'train' and name in FREE_BY_INTENT:
                log.info('config.%s is now %r; it was %r.', field, value, before[name])
                continue
            raise UserError(
                f'The checkpoints in {folder} come from config.{field}={before[name]!r}, not {value!r}: '
                'go on with that value, or give another --workdir.'
            )


def _check_same_data(source: Source, meta: dict[str, Any], folder: Path) -> None:
    """Whether the images are those that the run began with.

    Raises:
      UserError: when they are others.
    """
    before = meta.get('data', {}).get('fingerprint', source.fingerprint)  # older versions wrote none
    if before != source.fingerprint:
        raise UserError(
            f'The checkpoints in {folder} were trained on other images than those of {source.name} (fingerprint '
            f'{before[:12]}, not {source.fingerprint[:12]}): set config.data.dir to those, or give another --workdir.'
        )


def _position(source: Source, step: int, batch_size: int) -> dict[str, Any]:
    """Where the reading of the data stands after a step; with the seed, all that is needed to read on."""
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


def _run(
    config: ConfigDict,
    source: Source,
    batches: Iterator[Any],
    network: UNet,
    tx: Any,
    state: TrainState,
    checkpoints: Checkpoints,
    logs: Any,
    stop: StopSignal,
) -> None:
    """The steps from `state.step` to `config.train.num_steps`, or to a stop signal.

    Raises:
      SystemExit: with 128 + the signal's number, after the step in progress was saved.
    """
    options = config.train
    start = int(state.step)
    meta = {'config': setup.config_dict(config)}
    step_fn = make_step(config, network, source.image_shape, tx=tx)
    draw_grid = _grid_drawer(config, source, network) if options.sample_every else None
    meter = _Meter(options.batch_size)
    progress = Progress('train', options.num_steps, start=start, unit='step')

    def save(step: int) -> None:
        position = _position(source, step, options.batch_size)
        checkpoints.save(parallel.unreplicate(replicated), meta=meta | {'data': position})

    replicated = parallel.replicate(state)
    pending: deque = deque()
    for step in range(start + 1, options.num_steps + 1):
        try:
            batch = next(batches)
        except Exception:
            # Data that cannot be read cost no finished step.
            while pending:
                meter.add(_finite(*pending.popleft()))
            checkpoints.wait()
            if step - 1 not in (start, *checkpoints.steps()):
                save(step - 1)
                checkpoints.wait()
                log.info('Saved step %d.', step - 1)
            raise
        replicated, metrics = step_fn(replicated, batch)
        pending.append((step, metrics))
        last = step == options.num_steps
        stopping = stop.received  # once a step: a signal that comes below is for the next one
        saving = last or step % options.checkpoint_every == 0 or stopping is not None
        write_log = last or step % options.log_every == 0
        # Two steps may be under way before their loss is looked at, so that the device never waits for the host;
        # nothing is saved before all of them were.
        while len(pending) > (0 if saving or write_log else 2):
            meter.add(_finite(*pending.popleft()))
        if write_log:
            logs.scalars(step, meter.take())
        progress.update(step, f'loss {meter.loss:.4f}' if meter.loss is not None else '')
        if saving:
            save(step)
        if stopping and not last:
            checkpoints.wait()
            log.info('Stopped by %s; saved step %d. The same command goes on from there.', stopping.name, step)
            raise SystemExit(128 + stopping)
        if draw_grid and (last or step % options.sample_every == 0):
            try:
                logs.image(step, 'samples', draw_grid(replicated))
            except UserError as error:  # a picture is no reason to end a run
                log.warning('No sample grid at step %d: %s', step, error)
            logs.flush()
            meter.restart()


class _Meter:
    """Averages of the metrics between two log lines, and the rate."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._values: list[dict[str, float]] = []
        self._since: float | None = None
        self._timed = 0
        self.loss: float | None = None

    def add(self, values: dict[str, float]) -> None:
        self._values.append(values)
        self.loss = values['loss']
        if self._since is None:  # the first step compiles
            self.restart()
        else:
            self._timed += 1

    def restart(self) -> None:
        """Leaves what came before out of the rate."""
        self._since, self._timed = time.monotonic(), 0

    def take(self) -> dict[str, float]:
        means = {name: float(np.mean([v[name] for v in self._values])) for name in self._values[0]}
        if self._timed:
            rate = self._timed / (time.monotonic() - self._since)
            means |= {'steps_per_second': rate, 'images_per_second': rate * self._batch_size}
        self._values = []
        self.restart()
        return means


def _finite(step: int, metrics: Any) -> dict[str, float]:
    """The metrics of a step as numbers.

    Raises:
      UserError: when the loss or the gradient is not finite.
    """
    values = {name: float(value) for name, value in parallel.unreplicate(metrics).items()}
    for name, value in values.items():
        if not np.isfinite(value):
            raise UserError(
                f'The {name} of step {step} is {value}: training stopped, and the checkpoints before it are intact; '
                'lower config.train.learning_rate or set config.train.grad_clip to go on from the last of them.'
            )
    return values


def _grid_drawer(config: ConfigDict, source: Source, network: UNet):
    """A function from the replicated state to a uint8 grid: one row a w, one column a class, same noise in a column."""
    columns = min(source.num_classes, 10)
    devices = len(parallel.local_devices())
    generator = setup.make_generator(config, source, network, batch_size=-(-columns // devices) * devices)
    labels = np.arange(columns)

    def draw(state: TrainState) -> np.ndarray:
        params = state.ema_params if config.sampling.ema else state.params
        rows = [batch.images for w in config.sampling.w for batch in generator(params, labels, w)]
        return mosaic(np.concatenate(rows), (len(config.sampling.w), columns), width=640)

    return draw
