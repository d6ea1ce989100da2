"""Times guided sampling of a config, or one evaluation of its network (benchmarks/README.md).

python benchmarks/sampling.py --config=configs/imagenet64.py [--w=1.0] [--num_steps=16]
python benchmarks/sampling.py --config=benchmarks/config.py:medium_32 --peer=guided-diffusion [--forward]
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict

from benchmarks import common, side_by_side
from cfg.runtime import command_line
from cfg.runtime.errors import UserError

FLAGS = flags.FLAGS


def is_guided(w: float) -> bool:
    """Tells whether a step needs both predictions (cfg/diffusion/rules/pairs.py)."""
    return w not in (0.0, -1.0)


def prepare_forward(config: ConfigDict) -> common.Work:
    """Prepares one evaluation of the network on a batch of noise."""
    import jax
    import numpy as np

    from cfg.models.flops import forward_flops
    from cfg.runtime import parallel
    from cfg.settings.data import spec_of
    from cfg.settings.networks import build_network

    spec = spec_of(config)
    batch_size = config.sampling.batch_size
    parallel.per_device(batch_size, 'config.sampling.batch_size')
    network = build_network(config, spec)
    params = common.random_params(network, spec)
    replicated = parallel.replicate(params)
    apply = parallel.pmap(lambda params, *inputs: network.apply({'params': params}, *inputs), num_args=4)

    rng = np.random.default_rng(0)
    inputs = (
        rng.standard_normal((batch_size, *spec.image_shape), dtype=np.float32),
        rng.uniform(-10, 10, batch_size).astype(np.float32),
        rng.integers(0, spec.num_classes, batch_size, dtype=np.int32),
    )
    inputs = next(parallel.Prefetched([inputs]))
    return common.Work(
        lambda: apply(replicated, *inputs),
        images=batch_size,
        flops=batch_size * forward_flops(network, spec.image_shape),
        network=common.describe_network(config, spec.image_shape, params),
        ahead=0 if jax.default_backend() == 'cpu' else 1,
    )


def prepare(config: ConfigDict, *, w: float, num_steps: int) -> common.Work:
    """Prepares a whole batch of samples in `num_steps` steps."""
    return drawer(config, num_steps=num_steps)(w)


def drawer(config: ConfigDict, *, num_steps: int) -> Callable[[float], common.Work]:
    """Returns w -> what draws a batch of samples in `num_steps` steps, one program for all w."""
    import numpy as np

    from cfg.models.flops import forward_flops, guided_flops
    from cfg.runs.generate import Generator, binder
    from cfg.runtime import parallel
    from cfg.settings.data import spec_of
    from cfg.settings.networks import build_network
    from cfg.settings.sampler import read_sampler

    sampler = read_sampler(config, num_steps=num_steps)
    if sampler.rule.companion:
        raise UserError(
            f'config.sampling.guidance={config.sampling.guidance!r} needs a second network, and here is one of random '
            "weights: choose a rule that needs none, such as 'cfg'."
        )
    spec = spec_of(config)
    batch_size = config.sampling.batch_size
    network = build_network(config, spec)
    params = common.random_params(network, spec)
    generator = Generator(
        {'model': binder(network, config.diffusion.prediction)},
        sampler,
        image_shape=spec.image_shape,
        batch_size=batch_size,
        rounding=config.sampling.rounding,
    )
    replicated = parallel.replicate({'model': params})
    labels = np.random.default_rng(0).integers(0, spec.num_classes, batch_size, dtype=np.int32)
    what = (network, spec.image_shape)

    def of(w: float) -> common.Work:
        count = sampler.passes(w)
        return common.Work(
            lambda: [batch.images for batch in generator(replicated, labels, w, seed=config.sampling.seed)],
            images=batch_size,
            flops=batch_size * (count.single * forward_flops(*what) + count.both * guided_flops(*what)),
            network=common.describe_network(config, spec.image_shape, params),
            ahead=0,  # a batch of samples ends on the host
        )

    return of


def describe_forward(config: ConfigDict, *, repeats: int, warmup: int, peak_tflops: float | None = None) -> str:
    """Times some evaluations of the network; returns what came out, a line a number."""
    work = prepare_forward(config)
    times = common.measure(work, units=repeats, warmup=warmup)
    rows = [
        ('batch', f'{work.images} images, no guidance'),
        ('evaluations/s', f'{work.images / statistics.median(times.units):.4g}'),
        ('ms/network call', common.describe_times(times.units)),
    ]
    return common.report(work, times, rows, dtype=config.model.dtype, peak_tflops=peak_tflops)


def describe(
    config: ConfigDict, *, w: float, num_steps: int, repeats: int, warmup: int, peak_tflops: float | None = None
) -> str:
    """Times some batches of samples; returns what came out, a line a number.

    Args:
      num_steps: of the timed batches; images/s is scaled to `config.sampling.num_steps`.
    """
    from cfg.settings.sampler import read_sampler

    work = prepare(config, w=w, num_steps=num_steps)
    times = common.measure(work, units=repeats, warmup=warmup)
    median = statistics.median(times.units)
    full = config.sampling.num_steps
    scaled = '' if num_steps == full else f', extrapolated from {num_steps} steps'
    count = read_sampler(config, num_steps=num_steps).passes(w)
    calls = count.single + count.both
    rows = [
        ('batch', f'{work.images} images, w={w:g}: {count.total} predictions in {num_steps} steps'),
        ('evaluations/s', f'{work.images * count.total / median:.4g}'),
        ('ms/network call', common.describe_times([seconds / calls for seconds in times.units])),
        ('images/s', f'{work.images * num_steps / full / median:.4g} at T={full}{scaled}'),
    ]
    return common.report(work, times, rows, dtype=config.model.dtype, peak_tflops=peak_tflops)


def main() -> None:
    """Prints what the flags ask for."""
    config = common.read_config()
    num_steps = FLAGS.num_steps or config.sampling.num_steps
    if num_steps < 2:
        raise UserError(f'--num_steps={num_steps} must be at least 2, or 0 for the T of the config.')
    if FLAGS.child:
        side_by_side.serve_work(
            lambda: prepare_forward(config) if FLAGS.forward else prepare(config, w=FLAGS.w, num_steps=num_steps),
            warmup=FLAGS.warmup,
        )
        return
    common_arguments = {'repeats': FLAGS.repeats, 'warmup': FLAGS.warmup, 'peak_tflops': FLAGS.peak_tflops}
    if FLAGS.peer is not None:
        from cfg.settings.data import spec_of

        spec = spec_of(config)
        if FLAGS.forward:
            print(side_by_side.compare(common.peer_request(config, spec, 'forward'), 'network call'))
            return
        request = common.peer_request(config, spec, 'sampling', guided=is_guided(FLAGS.w), num_steps=num_steps)
        print(side_by_side.compare(request, f'batch of samples with {num_steps} steps'))
    elif FLAGS.forward:
        print(describe_forward(config, **common_arguments))
    else:
        print(describe(config, w=FLAGS.w, num_steps=num_steps, **common_arguments))


if __name__ == '__main__':
    common.define_flags()
    flags.DEFINE_integer('repeats', 5, 'Timed batches of samples, or evaluations with --forward.', lower_bound=1)
    flags.DEFINE_float('w', 1.0, 'Guidance strength; 0 costs half.')
    flags.DEFINE_integer('num_steps', 0, 'Steps of the timed batches; 0 = the T of the config.', lower_bound=0)
    flags.DEFINE_bool('forward', False, 'Time single evaluations of the network instead of sampling.')
    command_line.run(main, memory=lambda: 'take a smaller batch')
