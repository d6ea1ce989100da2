"""Computes how training scales: arithmetic, gradients on the wire, memory, length of a run. Nothing is measured.

python benchmarks/scaling_on_paper.py --config=configs/imagenet64.py [--devices=8,32,256] [--utilisation=0.4]
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import ConfigDict

from benchmarks import common
from benchmarks.sampling import is_guided
from cfg.runtime import command_line, targets
from cfg.runtime.errors import UserError

FLAGS = flags.FLAGS
GIB = 2.0**30


class Chip(NamedTuple):
    """A chip is one device of JAX, with how it reaches the others.

    Attributes:
      peak: dense bfloat16 FLOP/s.
      memory: bytes that programs may use at most.
      ring: bytes/s that a device sends while a ring runs through it in both directions.
      island: devices that are joined so.
      network: bytes/s that a device sends to other islands.
    """

    peak: float
    memory: float
    ring: float
    island: int
    network: float


# A ring in both directions uses two of the links of a TPU (4 of v5e and v6e, 6 of v4 and v5p), whatever the shape of
# the slice; a torus with rings along every axis can do two or three times better.
#   v4    45 GB/s a link and direction: jax-ml.github.io/scaling-book/tpus
#   v5e   docs.cloud.google.com/tpu/docs/v5e: 400 GB/s both ways over 4 links = 50 GB/s a link and direction
#   v5p   docs.cloud.google.com/tpu/docs/v5p: 1200 GB/s both ways over 6 links = 100 GB/s
#   v6e   docs.cloud.google.com/tpu/docs/v6e: 800 GB/s both ways over 4 links = 100 GB/s
#   H100  SXM data sheet: NVLink 900 GB/s both ways = 450 GB/s; DGX H100: 8 GPUs, one 400 Gb/s adapter each
# Between slices of TPUs: the data centre's network, 50 Gb/s a chip for v5p, 6.4 Tb/s for the 256 chips of v5e; v4 and
# v6e are taken like v5e.
_LINKS = {
    'v4': (2 * 45e9, 4096, 25e9 / 8),
    'v5e': (2 * 50e9, 256, 25e9 / 8),
    'v5p': (2 * 100e9, 8960, 50e9 / 8),
    'v6e': (2 * 100e9, 256, 25e9 / 8),
    'h100': (450e9, 8, 400e9 / 8),
}
CHIPS = {
    name: Chip(1e12 * targets.CHIPS[name]['tflops'], GIB * targets.CHIPS[name]['gib'], *links)
    for name, links in _LINKS.items()
}


class Model(NamedTuple):
    """A model is what a config asks of any machine.

    Attributes:
      parameters: of the network.
      forward_flops: of one image; a training step takes three times as many.
      guided_flops: of both predictions of guidance for one image.
      activations: bytes an image that the backward pass keeps, without and with train.remat.
    """

    parameters: int
    forward_flops: float
    guided_flops: float
    activations: tuple[float, float]


class Step(NamedTuple):
    """A step is the seconds of one training step's parts on one machine, all devices alike.

    Attributes:
      compute: forward and backward pass.
      all_reduce: of the gradients.
    """

    compute: float
    all_reduce: float

    @property
    def separate(self) -> float:
        """Returns the seconds of one after the other."""
        return self.compute + self.all_reduce

    @property
    def overlapped(self) -> float:
        """Returns the seconds at best: behind the backward pass, which is two thirds of the arithmetic."""
        return self.compute / 3 + max(self.compute * 2 / 3, self.all_reduce)


class Plan(NamedTuple):
    """A plan says how a batch fits into a device.

    Attributes:
      grad_accum: train.grad_accum.
      remat: train.remat.
      memory: bytes that --mode=describe adds up.
    """

    grad_accum: int
    remat: bool
    memory: float


def ring_seconds(size: float, devices: int, bandwidth: float) -> float:
    """Returns the seconds of an all-reduce of `size` bytes over a ring: each device sends 2 (n - 1) / n of them."""
    return 2 * (devices - 1) / devices * size / bandwidth


def all_reduce_seconds(size: float, devices: int, chip: Chip) -> float:
    """Returns the seconds of an all-reduce of `size` bytes, within islands and then between them.

    Between islands each device sends its part of the island's sum.

    Raises:
      UserError: when the devices do not fill their islands.
    """
    if devices <= chip.island:
        return ring_seconds(size, devices, chip.ring)
    if devices % chip.island:
        raise UserError(f'--devices={devices} is not a multiple of the {chip.island} devices that are joined directly.')
    between = ring_seconds(size / chip.island, devices // chip.island, chip.network)
    return ring_seconds(size, chip.island, chip.ring) + between


def step_of(model: Model, chip: Chip, *, devices: int, batch_size: int, utilisation: float) -> Step:
    """Computes one step of a batch that is divided over the devices, with float32 gradients.

    Args:
      utilisation: the part of the peak that forward and backward pass reach, taken as the same for every share.
    """
    compute = 3 * model.forward_flops * batch_size / devices / (utilisation * chip.peak)
    return Step(compute, all_reduce_seconds(4 * model.parameters, devices, chip))


def training_memory(model: Model, *, share: int, grad_accum: int, remat: bool) -> float:
    """Returns the bytes of a device, as --mode=describe adds them up."""
    parameters = 4 * model.parameters
    gradient = parameters * (2 if grad_accum > 1 else 1)
    return 4 * parameters + gradient + share // grad_accum * model.activations[remat]


def plan_of(model: Model, chip: Chip, *, share: int, headroom: float = 0.8) -> Plan | None:
    """Returns the fewest pieces that fit into `headroom` of the memory, without remat if possible, or None."""
    for remat in (False, True):
        for grad_accum in (n for n in range(1, share + 1) if share % n == 0):
            memory = training_memory(model, share=share, grad_accum=grad_accum, remat=remat)
            if memory <= headroom * chip.memory:
                return Plan(grad_accum, remat, memory)
    return None


def checkpoint_bytes(model: Model) -> float:
    """Returns the bytes of parameters, their average and two moments in float32."""
    return 16.0 * model.parameters


def sweep_flops(model: Model, config: ConfigDict) -> float:
    """Returns the FLOP of the samples of all of eval.w at one checkpoint, T and seed, without the feature network."""
    of_steps = sum(model.guided_flops if is_guided(w) else model.forward_flops for w in config.eval.w)
    return of_steps * config.eval.num_samples * config.sampling.num_steps


def model_of(config: ConfigDict) -> Model:
    """Counts a model from the network of a config; nothing is computed."""
    import jax

    from cfg.models.flops import forward_flops, guided_flops
    from cfg.modes import describe
    from cfg.settings.data import spec_of
    from cfg.settings.networks import abstract_params, build_network

    spec = spec_of(config)
    network = build_network(config, spec)
    params = abstract_params(network, spec)
    activations = []
    for remat in (False, True):
        changed = config.copy_and_resolve_references()
        changed.train.remat = remat
        rematted = build_network(changed, spec)
        activations.append(float(describe.activation_bytes(changed, rematted, spec, params)))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    flops = [count_flops(network, spec.image_shape) for count_flops in (forward_flops, guided_flops)]
    return Model(count, *flops, (activations[0], activations[1]))


def speed_table(model: Model, *, batch_size: int, counts: list[int], utilisation: float) -> list[str]:
    """Returns step times and images/s, a row for each chip and number of devices, in Markdown."""
    lines = [
        '| chip | devices | images a device | compute, ms | all-reduce, ms | images/s, separate | efficiency '
        '| images/s, overlapped | efficiency |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for name, chip in CHIPS.items():
        for devices in counts:
            if batch_size % devices:
                continue
            step = step_of(model, chip, devices=devices, batch_size=batch_size, utilisation=utilisation)
            rates = ' | '.join(
                f'{batch_size / seconds:.0f} | {step.compute / seconds:.2f}'
                for seconds in (step.separate, step.overlapped)
            )
            lines.append(
                f'| {name} | {devices} | {batch_size // devices} | {1e3 * step.compute:.4g} | '
                f'{1e3 * step.all_reduce:.3g} | {rates} |'
            )
    return lines


def run_table(model: Model, config: ConfigDict, *, counts: list[int], utilisation: float) -> list[str]:
    """Returns how each machine trains the whole run: what fits, how long, how many chip-hours, in Markdown."""
    train = config.train
    lines = [
        '| chip | devices | train.grad_accum | train.remat | memory, GiB | s/step | days | chip-hours '
        f'| hours in {train.checkpoint_every} steps |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for name, chip in CHIPS.items():
        for devices in counts:
            if train.batch_size % devices:
                continue
            plan = plan_of(model, chip, share=train.batch_size // devices)
            if plan is None:
                lines.append(f'| {name} | {devices} | does not fit | | | | | | |')
                continue
            step = step_of(model, chip, devices=devices, batch_size=train.batch_size, utilisation=utilisation)
            # Computing the forward pass again takes a third more; the utilisation does not count it.
            seconds = step.separate + (step.compute / 3 if plan.remat else 0.0)
            hours = seconds * train.num_steps / 3600
            lines.append(
                f'| {name} | {devices} | {plan.grad_accum} | {plan.remat} | {plan.memory / GIB:.3g} of '
                f'{chip.memory / GIB:.3g} | {seconds:.3g} | {hours / 24:.3g} | {hours * devices:.0f} | '
                f'{seconds * train.checkpoint_every / 3600:.2g} |'
            )
    return lines


def describe(config: ConfigDict, *, counts: list[int], utilisation: float, write_rate: float) -> str:
    """Returns both tables, and what they assume.

    Args:
      counts: numbers of devices.
      utilisation: see `step_of`.
      write_rate: bytes/s at which a checkpoint is written and read.
    """
    model = model_of(config)
    train, size, sweep = config.train, checkpoint_bytes(model), sweep_flops(model, config)
    hours = ', '.join(f'{sweep / (utilisation * chip.peak) / 3600:.0f} of {name}' for name, chip in CHIPS.items())
    return '\n'.join(
        [
            f'{model.parameters:,} parameters, gradients {4 * model.parameters / 1e9:.4g} GB (float32); '
            f'{3 * model.forward_flops / 1e9:.4g} GFLOP an image of training; batch {train.batch_size}; '
            f'{100 * utilisation:g} % of the peak is assumed',
            '',
            *speed_table(model, batch_size=train.batch_size, counts=counts, utilisation=utilisation),
            '',
            f'The run of {train.num_steps:,} steps, all-reduce not overlapped, memory at most 80 % of the chip:',
            '',
            *run_table(model, config, counts=counts, utilisation=utilisation),
            '',
            f'A checkpoint: {size / 1e9:.3g} GB, {size / write_rate:.2g} s at {write_rate / 1e9:g} GB/s.',
            f'The samples of a sweep ({len(config.eval.w)} values of w, {config.eval.num_samples:,} each, T = '
            f'{config.sampling.num_steps}), chip-hours: {hours}.',
        ]
    )


def counts_of(text: str) -> list[int]:
    """Reads the numbers of --devices.

    Raises:
      UserError: when it is not a list of positive numbers.
    """
    parts = text.split(',')
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f'--devices={text} must be positive numbers with commas between them.')
    return [int(part) for part in parts]


def main() -> None:
    """Prints what the flags ask for."""
    counts = counts_of(FLAGS.devices)
    options = {'utilisation': FLAGS.utilisation, 'write_rate': 1e9 * FLAGS.write_gbytes}
    print(describe(common.read_config(), counts=counts, **options))


if __name__ == '__main__':
    command_line.define_config('--config.train.batch_size=256')
    flags.DEFINE_string(
        'devices', '8,32,256', 'Numbers of devices; those over which the batch does not divide are left out.'
    )
    flags.DEFINE_float('utilisation', 0.4, 'The part of the peak that training reaches.', lower_bound=1e-9)
    flags.DEFINE_float('write_gbytes', 0.5, 'GB/s at which checkpoints are written.', lower_bound=1e-9)
    command_line.run(main, memory=lambda: 'take a smaller batch')
