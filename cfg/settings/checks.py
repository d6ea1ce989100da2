"""Checks a config: a wrong value ends here, in one sentence that names the field, before any long work.

`cfg.settings.table` says what each field must be by itself; what fields must be to each other is checked here.
"""

import itertools
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from cfg.data.built_in import BUILT_IN
from cfg.diffusion import sampler as samplers
from cfg.diffusion.rules import Cfg
from cfg.settings.sampler import check_levels, check_texts, check_w
from cfg.settings.table import SEED, TABLE
from cfg.settings.values import require


def check_config(config: ConfigDict) -> None:
    """Checks every field of a config, and then the relations between them; paths become what the user means by them.

    Raises:
      UserError: names the first field that is out of range and what it must be.
    """
    for part, fields in TABLE.items():
        values = config[part] if part else config
        for name, check in fields.items():
            field, value = f'{part}.{name}'.strip('.'), values[name]
            meant = check.read(value, f'config.{field}')
            require(check.holds(meant), field, value, check.words)
            if meant is not value:
                with values.ignore_type():  # a config file may say None, or give a Path
                    values[name] = meant
    data, diffusion, train = config.data, config.diffusion, config.train
    if data.name in BUILT_IN:
        splits = BUILT_IN[data.name].splits
        require(data.split in splits, 'data.split', data.split, f'one of {", ".join(splits)}')
    _check_networks(config)
    low, high = diffusion.logsnr_min, diffusion.logsnr_max
    require(low < high, 'diffusion.logsnr_min', low, f'smaller than logsnr_max={high}')
    decay, steps = train.decay_steps, train.num_steps
    require(decay == 0 or decay >= steps, 'train.decay_steps', decay, f'0, or at least num_steps={steps}')
    check_texts(config)
    parse_job(config.eval.job)
    _check_study(config)


def parse_job(job: str) -> tuple[int, int]:
    """Returns (i, n) of 'i/n', the i-th of n jobs, counted from 1.

    Raises:
      UserError: when it is not that.
    """
    found = re.fullmatch('([0-9]+)/([0-9]+)', job)
    place, count = map(int, found.groups()) if found else (0, 0)
    require(1 <= place <= count, 'eval.job', job, "'i/n', the i-th of n jobs, from '1/n' to 'n/n'")
    return place, count


def _check_networks(config: ConfigDict) -> None:
    """Checks that widths divide into heads and groups."""
    model = config.model
    one = (model.num_heads > 0) != (model.head_channels > 0)
    require(one, 'model.num_heads', model.num_heads, 'positive, or else model.head_channels: one of the two')
    heads = {'model': 'num_heads' if model.num_heads else 'head_channels', 'classifier': 'head_channels'}
    for part, divisor in heads.items():
        options = config[part]
        widths = [mult * options.channels for mult in options.channel_mult]
        whole = all(width % 1 == 0 for width in widths)
        require(whole, f'{part}.channel_mult', options.channel_mult, TABLE[part]['channel_mult'].words)
        for width, name in itertools.product(map(int, widths), ('norm_groups', divisor)):
            require(width % options[name] == 0, f'{part}.{name}', options[name], f'a divisor of {width} channels')


def _check_study(config: ConfigDict) -> None:
    """Checks what Fig. 2 and, unless it is drawn alone, the study beside it read."""
    mixture = config.mixture
    if config.data.name == 'mixture':
        check_w(Cfg(), samplers.parse_solver(config.sampling.sampler), 'mixture.w', mixture.w)
    if not mixture.guidance:
        return
    rules = [samplers.parse_rule(text, 'mixture.guidance') for text in mixture.guidance]
    solvers = {
        name: [samplers.parse_solver(text, f'mixture.{name}') for text in mixture[name]]
        for name in ('rule_samplers', 'samplers')
    }
    grid = samplers.parse_grid(mixture.grid, 'mixture.grid')
    ends = {'logsnr_min': config.diffusion.logsnr_min, 'logsnr_max': config.diffusion.logsnr_max}
    for name, steps in (('rule_samplers', 'num_steps'), ('samplers', 'steps')):
        for solver in solvers[name]:
            check_levels(grid, solver, mixture[steps], ends, fields=(f'mixture.{name}', f'mixture.{steps}'))
    for text, steps in mixture.tilted:
        solver = samplers.parse_solver(text, 'mixture.tilted')
        check_levels(grid, solver, steps, ends, fields=('mixture.tilted', 'mixture.tilted'))
    require(len(mixture.rule_samplers) > 0, 'mixture.rule_samplers', mixture.rule_samplers, 'at least one sampler')
    for name, found in ({'guidance': rules} | solvers).items():
        different = len({it.text for it in found}) == len(found)
        require(different, f'mixture.{name}', tuple(mixture[name]), 'different from each other')
    for rule in rules:
        exact = rule.name != 'one_pass'
        require(exact, 'mixture.guidance', tuple(mixture.guidance), 'rules that need no network that takes w')
        for option in ('workdir', 'step'):
            kept = getattr(rule, option, None) in (None, '', -1)
            require(kept, 'mixture.guidance', rule.text, f'without {option}: here all models are exact')
        fitting = [solver for solver in solvers['rule_samplers'] if samplers.fits(rule, solver)]
        if not fitting:
            samplers.check_fit(rule, solvers['rule_samplers'][-1])
        for solver in fitting:
            check_w(rule, solver, 'mixture.w', mixture.w)
    some = len(mixture.steps) > 0 or not mixture.samplers
    require(some, 'mixture.steps', mixture.steps, 'one or more whole numbers of at least 2')
    last = config.sampling.seed + mixture.num_seeds - 1
    few = SEED.holds(last) or config.data.name != 'mixture'
    require(few, 'mixture.num_seeds', mixture.num_seeds, f'so few that the last seed, {last}, is below 2^32')
    _check_extent(mixture.means, mixture.stddev, mixture.extent)


def _check_extent(means: Sequence[tuple[float, float]], stddev: float, extent: float) -> None:
    # Densities are integrated over [-2 extent, 2 extent]^2, in steps of extent / 100.
    reach = max(abs(coordinate) for mean in means for coordinate in mean)
    low, high = 0.5 * (reach + 6.0 * stddev), 40.0 * stddev
    words = f'from {low:g} to {high:g}, so that the panels hold the classes and a cell is small beside one'
    require(low <= extent <= high, 'mixture.extent', extent, words)
