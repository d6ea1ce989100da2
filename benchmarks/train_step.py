"""Times the training step of a config on random images (benchmarks/README.md).

python benchmarks/train_step.py --config=configs/imagenet64.py [--config.train.batch_size=64] [--steps=10]
python benchmarks/train_step.py --config=benchmarks/config.py:medium_32 --peer=guided-diffusion
"""

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict

from benchmarks import common, side_by_side
from cfg.runtime import command_line

FLAGS = flags.FLAGS


def prepare(config: ConfigDict, data: dict[str, Any] | None = None) -> common.Work:
    """Prepares the training step over all local devices, on one batch that `data` is repeated for; random by default.

    Args:
      data: 'image' uint8 [n, H, W, C] and 'label' int32 [n].
    """
    import jax
    import numpy as np

    from cfg.models.flops import forward_flops
    from cfg.runs import state
    from cfg.runtime import parallel
    from cfg.settings.data import spec_of
    from cfg.settings.networks import build_network
    from cfg.training import build

    spec = spec_of(config)
    batch_size = config.train.batch_size
    build.check_batch(config)
    network = build_network(config, spec)
    params = common.random_params(network, spec)
    tx = build.make_optimizer(config)
    step = build.step_of(config, network, tx)
    replicated = parallel.replicate(state.create(params, tx))

    rng = np.random.default_rng(0)
    index = np.arange(batch_size, dtype=np.int32)
    data = data or {
        'image': rng.integers(0, 256, (batch_size, *spec.image_shape), dtype=np.uint8),
        'label': rng.integers(0, spec.num_classes, batch_size, dtype=np.int32),
    }
    images = {name: values[index % len(values)] for name, values in data.items()} | {'index': index}
    batch = next(parallel.Prefetched([images], parallel.everywhere()))

    go_on = parallel.number_for_each(0, parallel.everywhere())

    def start():
        nonlocal replicated
        replicated, metrics = step(replicated, batch, go_on)
        return metrics

    return common.Work(
        start,
        images=batch_size,
        flops=3 * batch_size * forward_flops(network, spec.image_shape),
        network=common.describe_network(config, spec.image_shape, params),
        ahead=0 if jax.default_backend() == 'cpu' else 1,
    )


def describe(config: ConfigDict, *, steps: int, warmup: int, peak_tflops: float | None = None) -> str:
    """Times some steps; returns what came out, a line a number."""
    work = prepare(config)
    times = common.measure(work, units=steps, warmup=warmup)
    rows = [
        ('batch', f'{work.images} images, {config.train.grad_accum} piece(s) a device'),
        ('images/s', f'{work.images / statistics.median(times.units):.4g}'),
        ('ms/step', common.describe_times(times.units)),
    ]
    return common.report(work, times, rows, dtype=config.model.dtype, peak_tflops=peak_tflops)


def main() -> None:
    """Prints what the flags ask for."""
    config = common.read_config()
    if FLAGS.child:
        side_by_side.serve_work(lambda: prepare(config), warmup=FLAGS.warmup)
        return
    if FLAGS.peer is None:
        print(describe(config, steps=FLAGS.steps, warmup=FLAGS.warmup, peak_tflops=FLAGS.peak_tflops))
        return
    from cfg.settings.data import spec_of

    request = common.peer_request(config, spec_of(config), 'training')
    print(side_by_side.compare(request, 'step'))


if __name__ == '__main__':
    common.define_flags()
    flags.DEFINE_integer('steps', 10, 'Timed steps.', lower_bound=1)
    command_line.run(main, memory=lambda: 'take a smaller batch')
