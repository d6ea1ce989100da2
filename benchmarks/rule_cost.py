"""Measures what guidance rules cost: the time of a batch of samples beside the counted network evaluations.

Rules take turns, round by round; the order changes from round to round. The first line is the unguided model.

python benchmarks/rule_cost.py --config=configs/digits.py [--rules="cfg; cfg(interval=(-3, 3)); apg"] [--w=1.0]
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict

from benchmarks import common, overhead
from cfg.runtime import command_line
from cfg.runtime.errors import UserError

FLAGS = flags.FLAGS


def describe(config: ConfigDict, *, rules: Sequence[str], w: float, num_steps: int, rounds: int) -> str:
    """Returns a line a rule: milliseconds a batch, and the ratios of time and of evaluations to the unguided model.

    Raises:
      UserError: for a rule that needs another network than the model.
    """
    import numpy as np

    from cfg.diffusion.sampler import check_fit
    from cfg.runs.generate import Generator, binder
    from cfg.runtime import parallel
    from cfg.settings.data import spec_of
    from cfg.settings.networks import build_network, init_params
    from cfg.settings.sampler import read_sampler

    samplers = {text: read_sampler(config, guidance=text, num_steps=num_steps) for text in ('cfg', *rules)}
    for text in rules:
        check_fit(samplers[text].rule, samplers[text].solver)
        if samplers[text].rule.companion:
            raise UserError(f'--rules: {text} needs a second network, and here is one of random weights: leave it out.')
    spec = spec_of(config)
    network = build_network(config, spec)
    params = init_params(network, spec, seed=config.seed)
    replicated = parallel.replicate({'model': params})
    batch_size = config.sampling.batch_size
    labels = np.random.default_rng(0).integers(0, spec.num_classes, batch_size, dtype=np.int32)
    networks = {'model': binder(network, config.diffusion.prediction)}

    steps, counts = {}, {}
    own = {text: (samplers[text].rule.w or (w,))[0] for text in rules}
    for name, text, strength in (('unguided', 'cfg', 0.0), *((text, text, own[text]) for text in rules)):
        generator = Generator(networks, samplers[text], image_shape=spec.image_shape, batch_size=batch_size)
        draw = functools.partial(generator, replicated, labels, strength, seed=config.sampling.seed)
        steps[name] = lambda draw=draw: [batch.images for batch in draw()]
        counts[name] = samplers[text].passes(strength).total
    seconds = overhead.turns(steps, rounds=rounds, units=1)
    usual = samplers['cfg']

    rows = [
        ('network', common.describe_network(config, spec.image_shape, params)),
        ('batch', f'{batch_size} images, {usual.solver.text}, {usual.grid.text} grid, T={num_steps}, w={w:g}'),
    ]
    for name, times in seconds.items():
        ratios = [mine / plain for mine, plain in zip(times, seconds['unguided'], strict=True)]
        value = (
            f'{common.describe_times(times)} ms; time {common.describe_ratios(ratios)}, '
            f'evaluations {counts[name] / counts["unguided"]:.3f} of the unguided'
        )
        rows.append((name, value))
    width = max(len(name) for name, _ in rows) + 2
    return '\n'.join(f'{name:<{width}}{value}' for name, value in rows)


def main() -> None:
    """Prints the costs."""
    config = common.read_config()
    rules = [text.strip() for text in FLAGS.rules.split(';') if text.strip()]
    num_steps = FLAGS.num_steps or config.sampling.num_steps
    print(describe(config, rules=rules, w=FLAGS.w, num_steps=num_steps, rounds=FLAGS.rounds))


if __name__ == '__main__':
    command_line.define_config('--config.sampling.batch_size=64')
    flags.DEFINE_string('rules', 'cfg; cfg(interval=(-3, 3)); apg; rescale', 'Guidance rules, with ; between them.')
    flags.DEFINE_float('w', 1.0, 'Guidance strength.')
    flags.DEFINE_integer('num_steps', 16, 'T; 0 = that of the config.', lower_bound=0)
    flags.DEFINE_integer('rounds', 5, 'Turns of each rule.', lower_bound=2)
    command_line.run(main, memory=lambda: 'take a smaller batch')
