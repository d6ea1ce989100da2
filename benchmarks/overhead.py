"""Measures what a training step costs beside its arithmetic, as shares of a step.

The parts are pmap, input, logging, checkpoints and heartbeats. The step through pmap and the same step under jit take
turns, round by round. The other parts are timed as the loop runs them and divided by the steps between two of them; a
checkpoint counts with what it blocks and with what it takes from the cores while it is written in the background.

python benchmarks/overhead.py --config=configs/digits.py [--rounds=8] [--steps=5]
"""

import contextlib
import functools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict

from benchmarks import common
from cfg.runtime import command_line

FLAGS = flags.FLAGS


class Noise:
    """A `Noise` is a data set of random images in memory, of the shapes of a config; see `cfg.data.source.Source`."""

    def __init__(self, spec: Any, count: int = 2048):
        import numpy as np

        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (count, *spec.image_shape), dtype=np.uint8)
        self.labels = rng.integers(0, spec.num_classes, count, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: Any) -> dict[str, Any]:
        """Fetches images as every data set does."""
        return {'image': self.images[indices], 'label': self.labels[indices]}


def turns(steps: dict[str, Callable[[], Any]], *, rounds: int, units: int) -> dict[str, list[float]]:
    """Returns the seconds a step of each, for each round in which all take turns; the order changes each round."""
    import jax

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        jax.block_until_ready(step())
    for number in range(rounds):
        names = list(steps) if number % 2 else list(reversed(steps))
        for name in names:
            begin = time.perf_counter()
            for _ in range(units):
                jax.block_until_ready(steps[name]())
            seconds[name].append((time.perf_counter() - begin) / units)
    return seconds


def describe(config: ConfigDict, *, rounds: int, units: int) -> str:
    """Returns the shares, a line a part."""
    import jax
    import numpy as np

    from cfg.data.pipeline import train_batches
    from cfg.models.flops import forward_flops
    from cfg.runs import state
    from cfg.runs.checkpoints import Checkpoints
    from cfg.runtime import parallel, watch
    from cfg.settings.data import spec_of
    from cfg.settings.networks import build_network, init_params
    from cfg.settings.values import config_dict
    from cfg.training import build
    from cfg.training.logs import Logs
    from cfg.training.meter import NO_SKIPS, Meter
    from cfg.training.step import train_step

    spec = spec_of(config)
    build.check_batch(config)
    network = build_network(config, spec)
    params = init_params(network, spec, seed=config.seed)
    tx = build.make_optimizer(config)
    start = state.create(params, tx)
    devices = parallel.everywhere()
    images = next(train_batches(Noise(spec), batch_size=config.train.batch_size, seed=0, start_step=0))

    through_pmap = build.step_of(config, network, tx)
    bare = jax.jit(
        functools.partial(
            train_step,
            loss_fn=build.objective_of(config, network),
            tx=tx,
            ema_decay=config.train.ema_decay,
            grad_accum=config.train.grad_accum,
            seed=config.seed,
            mean_over_devices=lambda tree: tree,
            skip_nonfinite=config.train.max_skipped > 0,
        ),
        donate_argnums=(0,),
    )
    replicated, single = parallel.replicate(start), jax.device_put(start)
    batch, whole = next(parallel.Prefetched([images], devices)), jax.device_put(images)
    go_on = parallel.number_for_each(0, devices)

    def step_of_all():
        nonlocal replicated
        replicated, metrics = through_pmap(replicated, batch, go_on)
        return metrics

    def step_alone():
        nonlocal single
        single, metrics = bare(single, whole)
        return metrics

    flops = forward_flops(network, spec.image_shape)
    seconds = turns({'pmap': step_of_all, 'jit': step_alone}, rounds=rounds, units=units)
    step = statistics.median(seconds['pmap'])
    ratios = [a / b - 1 for a, b in zip(seconds['pmap'], seconds['jit'], strict=True)]
    rows = [
        ('network', common.describe_network(config, spec.image_shape, params)),
        ('batch', f'{config.train.batch_size} images over {len(devices)} devices'),
        ('step', f'{1e3 * step:.4g} ms, {3 * config.train.batch_size * flops:.3g} FLOP'),
    ]
    if len(devices) == 1:
        low, high = common.quartiles(ratios)
        rows.append(('pmap', f'{statistics.median(ratios):+.2%} of the step under jit ({low:+.2%} to {high:+.2%})'))
    else:
        rows.append(('pmap', 'compared with jit on one device only'))

    def share(name: str, each: float, every: float, note: str = '') -> None:
        rows.append((name, f'{each / (every * step):.2%} ({1e3 * each:.3g} ms in {every:g} steps{note})'))

    batches = parallel.Prefetched(
        train_batches(Noise(spec), batch_size=config.train.batch_size, seed=0, start_step=0), devices, ahead=3
    )
    next(batches)
    waited, begin = batches.waited, time.perf_counter()
    for _ in range(units):
        replicated, metrics = through_pmap(replicated, next(batches), go_on)
        jax.block_until_ready(metrics)
    took = time.perf_counter() - begin
    rows.append(('input', f'{(batches.waited - waited) / took:.2%} of {units} steps were spent waiting for it'))

    with contextlib.ExitStack() as stack:
        workdir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        logs = stack.enter_context(Logs(workdir, start_step=0))
        values = {name: float(value) for name, value in parallel.unreplicate(metrics).items()}
        meter = Meter(config, NO_SKIPS)
        each = []
        for number in range(20):
            begin = time.perf_counter()
            meter.add(number, dict(values))
            logs.scalars(number, meter.take(number + 1))
            each.append(time.perf_counter() - begin)
        share('logging', statistics.median(each), config.train.log_every)

        checkpoints = stack.enter_context(Checkpoints(workdir, keep_last=1))
        blocked, whole_time, cores = [], [], []
        for number in range(4):
            used, begin = _cpu_seconds(), time.perf_counter()
            saved = parallel.unreplicate(replicated)
            checkpoints.save(saved._replace(step=np.int32(number)), meta={'config': config_dict(config)})
            blocked.append(time.perf_counter() - begin)
            checkpoints.wait()
            whole_time.append(time.perf_counter() - begin)
            cores.append(_cpu_seconds() - used)
        every = config.train.checkpoint_every
        share('checkpoints, blocking', statistics.median(blocked), every)
        share('checkpoints, until written', statistics.median(whole_time), every, '; an upper bound')
        rows.append(('checkpoints, processor time', f'{statistics.median(cores):.2f} s each'))

        limits = watch.Limits(start=60, hang=60)
        watched = watch.Watch(workdir, 'x', (0, 1), limits, status_of=lambda _: 1)
        eye = stack.enter_context(watched)
        begin = time.perf_counter()
        for _ in range(50):
            eye.beat()
        share('heartbeat', (time.perf_counter() - begin) / 50, limits.interval / step, f', every {limits.interval:g} s')
    width = max(len(name) for name, _ in rows)
    return '\n'.join(f'{name.ljust(width)}  {text}' for name, text in rows)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints the shares."""
    print(describe(common.read_config(), rounds=FLAGS.rounds, units=FLAGS.steps))


if __name__ == '__main__':
    command_line.define_config('--config.train.batch_size=64')
    flags.DEFINE_integer('rounds', 8, 'Turns of pmap and jit.', lower_bound=2)
    flags.DEFINE_integer('steps', 5, 'Steps a turn.', lower_bound=1)
    command_line.run(main, memory=lambda: 'take a smaller batch')
