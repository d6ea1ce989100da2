"""Measures what guidance rules cost: the time of a batch of samples beside the counted network evaluations.

Rules take turns, round by round; the order changes from round to round. The first line is the unguided model.

python benchmarks/rule_cost.py --config=configs/digits.py [--rules="cfg; cfg(interval=(-3, 3)); apg"] [--w=1.0]
"""

import dataclasses
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

    from cfg.diffusion import recipes
    from cfg.runs import build as rbuild
    from cfg.runtime import parallel
    from cfg.settings.data import spec_of
    from cfg.settings.networks import build_network, init_params

    sampler = recipes.parse_sampler(config.sampling.sampler)
    for text in rules:
        recipe = recipes.parse_guidance(text)
        recipes.check_fit(recipe, sampler)
        if recipes.needs_companion(recipe):
            raise UserError(f'--rules: {text} needs a second network, and here is one of random weights: leave it out.')
    spec = spec_of(config)
    network = build_network(config, spec)
    params = init_params(network, spec, seed=config.seed)
    replicated = parallel.replicate({'model': params})
    batch_size = config.sampling.batch_size
    labels = np.random.default_rng(0).integers(0, spec.num_classes, batch_size, dtype=np.int32)
    settings = dataclasses.replace(rbuild.sampler_settings(config), num_steps=num_steps)

    steps, counts = {}, {}
    own = {text: (recipes.parse_guidance(text).w or (w,))[0] for text in rules}
    for name, text, strength in (('unguided', 'cfg', 0.0), *((text, text, own[text]) for text in rules)):
        of_rule = dataclasses.replace(settings, guidance=text)
        generator = rbuild.make_generator(config, spec, network, batch_size=batch_size, settings=of_rule)
        steps[name] = lambda generator=generator, w=strength: [x.images for x in generator(replicated, labels, w)]
        counts[name] = of_rule.count_passes(strength).total
    seconds = overhead.turns(steps, rounds=rounds, units=1)

    rows = [
        ('network', common.describe_network(config, spec.image_shape, params)),
        ('batch', f'{batch_size} images, {settings.sampler}, {settings.grid} grid, T={num_steps}, w={w:g}'),
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
