"""Measures what both predictions of guidance cost beside one, for each value of config.model.label_in.

An evaluation for one label and one for two labels take turns, round by round, on the first device; the order changes
from round to round.

python benchmarks/guidance_cost.py --config=configs/digits.py [--rounds=8] [--evaluations=5]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict

from benchmarks import common, overhead
from cfg.runtime import command_line

FLAGS = flags.FLAGS


def describe(config: ConfigDict, *, rounds: int, units: int) -> str:
    """Returns milliseconds, and the ratios of arithmetic and of time, a line a number.

    Args:
      units: evaluations a turn.
    """
    import jax
    import numpy as np

    from cfg.models.flops import forward_flops, guided_flops
    from cfg.models.unet import LABEL_IN
    from cfg.settings.data import spec_of
    from cfg.settings.networks import build_network, init_params

    spec = spec_of(config)
    network = build_network(config, spec)
    params = init_params(network, spec, seed=config.seed)
    batch_size = config.sampling.batch_size
    rng = np.random.default_rng(0)
    inputs = (
        {'params': jax.device_put(params)},
        jax.device_put(rng.standard_normal((batch_size, *spec.image_shape), dtype=np.float32)),
        jax.device_put(rng.uniform(-10, 10, batch_size).astype(np.float32)),
        jax.device_put(rng.integers(0, spec.num_classes, batch_size, dtype=np.int32)),
    )
    null_labels = jax.device_put(np.full(batch_size, spec.num_classes, np.int32))

    def evaluation(where, *others):
        told = network.clone(label_in=where)
        run = jax.jit(lambda *arguments: told.apply(*arguments, method='both' if others else '__call__'))
        return lambda: run(*inputs, *others)

    plain = {where: f'plain, {where}' for where in LABEL_IN}
    guided = {where: f'guided, {where}' for where in LABEL_IN}
    steps = {plain[where]: evaluation(where) for where in LABEL_IN}
    steps |= {guided[where]: evaluation(where, null_labels) for where in LABEL_IN}
    seconds = overhead.turns(steps, rounds=rounds, units=units)

    device = jax.devices()[0]
    rows = [
        ('network', common.describe_network(config, spec.image_shape, params)),
        ('device', f'{device.device_kind} ({device.platform})'),
        ('batch', f'{batch_size} images'),
        *((f'{name}, ms', common.describe_times(times)) for name, times in seconds.items()),
    ]
    for where in LABEL_IN:
        count = guided_flops(network.clone(label_in=where), spec.image_shape) / forward_flops(network, spec.image_shape)
        rows.append((f'FLOP ratio, {where}', f'{count:.4g}'))
        pairs = zip(seconds[guided[where]], seconds[plain[where]], strict=True)
        rows.append((f'time ratio, {where}', common.describe_ratios([two / one for two, one in pairs])))
    pairs = zip(seconds[guided['decoder']], seconds[guided['everywhere']], strict=True)
    rows.append(('decoder/everywhere', common.describe_ratios([one / other for one, other in pairs])))
    return '\n'.join(f'{name:<24}{value}' for name, value in rows)


def main() -> None:
    """Prints the costs."""
    print(describe(common.read_config(), rounds=FLAGS.rounds, units=FLAGS.evaluations))


if __name__ == '__main__':
    command_line.define_config('--config.sampling.batch_size=64')
    flags.DEFINE_integer('rounds', 8, 'Turns of each evaluation.', lower_bound=2)
    flags.DEFINE_integer('evaluations', 5, 'Evaluations a turn.', lower_bound=1)
    command_line.run(main, memory=lambda: 'take a smaller batch')
