"""Runs `--mode=plan`, which says what a config takes until its curve is drawn: hours, money and disk."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from cfg.data.spec import DataSpec
from cfg.evaluation.points import points_of
from cfg.features.inception import WIDTH
from cfg.models.flops import forward_flops
from cfg.modes.describe_target import PARTS, REMEDIES, batch_of, compile_part, kernel_of
from cfg.report.estimate import GIB
from cfg.report.results import Results
from cfg.runs.run_files import CONFIG_FILE, METRICS_FILE, read_metrics
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.runtime.files import check_workdir
from cfg.runtime.targets import Target, TooLargeError, parse_target
from cfg.settings.data import spec_of
from cfg.settings.networks import abstract_params, build_network
from cfg.settings.sampler import read_sampler
from cfg.settings.table import feature_names
from cfg.settings.values import config_dict, require
from cfg.training.build import abstract_state

PEAK_SHARE = 0.4  # of the peak's arithmetic, as docs/pods.md has it
SWEEPS = (1000, 10_000, 50_000)  # samples a row


class Rate(NamedTuple):
    """A rate says how fast all devices together are, and how that is known."""

    name: str
    train: float  # images a second
    evaluations: float  # of the network for one image each, a second, with the drawing of samples around it
    features: float  # images a second; inf where the time of scoring is among that of evaluations


def run(config: ConfigDict, workdir: None = None) -> str:
    """Returns the plan of a config on `--target`, from what is measured in `--workdir`, or beside each other.

    Raises:
      UserError: when neither is given, the target's compiler is not there, or the workdir is of another network.
    """
    options = flags.FLAGS
    require(config.train.kind == 'model', 'train.kind', config.train.kind, "'model', whose sweep is planned")
    spec, rates, title = spec_of(config), [], ''
    if options.target:
        target = parse_target(options.target)
        title, rates = f' on {target}', _estimated(config, spec, target)
    if options.workdir:
        rates.append(_measured(config, check_workdir(options.workdir, create=False, write=False)))
    if not rates:
        raise UserError(
            '--mode=plan needs --target=gpu:h100:1, say, the --workdir of a run whose rates count, or both.'
        )
    devices = target.count if options.target else len(parallel.local_devices())
    lines = [f'plan of {spec.name}{title}, {config.train.num_steps * config.train.batch_size / 1e6:.4g}M images']
    lines += _table(config, rates, price=options.price and options.price * devices)
    return '\n'.join([*lines, *_disk(config, spec)])


def _estimated(config: ConfigDict, spec: DataSpec, target: Target) -> list[Rate]:
    """Returns the rates that the compiled programs cannot exceed, and those at a share of the peak, if lower."""
    kernel = kernel_of(config, target)
    config = config.copy_and_resolve_references()
    config.model.attention = 'xla'  # where nothing is compiled

    def images_a_second(part: str) -> float:
        batch = batch_of(config, part)
        parallel.share(batch, target.count, PARTS[part])
        found = compile_part(config, spec, target, part, kernel, batch)
        if found.memory > target.memory:
            raise TooLargeError(
                f'{target} has {target.memory / GIB:.3g} GiB a device, and {PARTS[part]}={batch} takes '
                f'{found.memory / GIB:.3g}: lower it{REMEDIES[part]}.'
            )
        return batch / found.bound_seconds

    train = images_a_second('train')
    evaluations = images_a_second('sample') * read_sampler(config).passes(1.0).total
    features = images_a_second('features') if 'inception' in feature_names(config.eval.features) else math.inf
    passes = PEAK_SHARE * target.flops * target.count / forward_flops(build_network(config, spec), spec.image_shape)
    return [
        Rate('at least', train, evaluations, features),
        Rate(f'{PEAK_SHARE:.0%} of peak', min(train, passes / 3), min(evaluations, passes), features),
    ]


def _measured(config: ConfigDict, workdir: Path) -> Rate:
    """Returns the rates of a run's own log and rows; nan where there are none yet."""
    path = workdir / CONFIG_FILE
    ours, theirs = config_dict(config)['model'], json.loads(path.read_bytes())['model'] if path.exists() else None
    if theirs is None or any(ours[name] != value for name, value in theirs.items() if name in ours):
        raise UserError(f'{workdir} holds no run of this network: give the workdir of one with the same config.model.')
    rates = [line['images_per_second'] for line in read_metrics(workdir / METRICS_FILE) if 'images_per_second' in line]
    rows = [row.settings for row in Results(workdir).read()]
    drawn = [row['evaluations'] * row['num_samples'] / row['seconds'] for row in rows if row.get('seconds')]
    return Rate('measured', *(float(np.median(values)) if values else math.nan for values in (rates, drawn)), math.inf)


def _table(config: ConfigDict, rates: list[Rate], *, price: float | None) -> list[str]:
    """Says hours, and what they cost at a price of an hour of all devices."""
    train, options = config.train, config.eval
    marks = range(train.keep_every, train.num_steps, train.keep_every) if train.keep_every else ()
    points = points_of(config, options.steps or (train.num_steps,))
    evaluations = sum(point.sampler.passes(point.w).total for point in points)

    def training(steps):
        return [steps * train.batch_size / rate.train for rate in rates]

    def sweep(samples):
        return [samples * (evaluations / rate.evaluations + len(points) / rate.features) for rate in rates]

    work = {f'train to step {step}, {_millions(step * train.batch_size)}': training(step) for step in marks}
    work[f'train to step {train.num_steps}, {_millions(train.num_steps * train.batch_size)}'] = training(
        train.num_steps
    )
    for samples in sorted({*SWEEPS, options.num_samples}):
        work[f'sweep of {len(points)} rows, {samples} samples each'] = sweep(samples)
    both = zip(training(train.num_steps), sweep(options.num_samples), strict=True)
    work['training, and a sweep of eval.num_samples'] = [sum(pair) for pair in both]
    names, width = [rate.name for rate in rates], 18 if price else 14
    lines = [f'{"time" + (", cost" if price else ""):48}' + ''.join(f'{name:>{width}}' for name in names)]
    return lines + [
        f'{name:48}' + ''.join(f'{_cell(x, price):>{width}}' for x in cells) for name, cells in work.items()
    ]


def _millions(images: int) -> str:
    return f'{images / 1e6:.4g}M images'


def _cell(seconds: float, price: float | None) -> str:
    if math.isnan(seconds):
        return '-'
    time = f'{seconds / 3600:.3g} h' if seconds >= 3600 else f'{seconds / 60:.3g} min'
    return time + (f', {price * seconds / 3600:.3g}' if price else '')


def _disk(config: ConfigDict, spec: DataSpec) -> list[str]:
    """Says what the workdir takes in the end."""
    train, options = config.train, config.eval
    params = abstract_params(build_network(config, spec), spec)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(abstract_state(config, params)))
    kept = train.keep_last + (train.num_steps // train.keep_every if train.keep_every else 0)
    rows = len(points_of(config, options.steps or (train.num_steps,)))
    samples = rows * min(options.keep_samples, options.num_samples) * math.prod(spec.image_shape)
    features = 4 * WIDTH * options.num_samples if 'inception' in feature_names(options.features) else 0
    return [
        f'disk: {kept} checkpoints of {size / 1e9:.3g} GB, {kept * size / 1e9:.3g} GB; {samples / 1e9:.2g} GB of '
        f'samples; {features / 1e9:.2g} GB for the row in progress; and the images in data.dir',
        "'at least' is the bound of the compiled programs, which no device reaches; a run's --workdir says more",
    ]
