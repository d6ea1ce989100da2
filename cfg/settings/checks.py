"""Checks a config: a wrong value ends here, in one sentence that names the field, before any long work.

`TABLE` says what each field must be by itself, its type included; `RELATIONS` what fields must be to each other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cfg.data.crop import CROPS
from cfg.data.digits import SPLITS
from cfg.data.images import ROUNDINGS
from cfg.data.prepared import is_preparable
from cfg.diffusion import sampler as samplers
from cfg.diffusion.options import is_finite
from cfg.diffusion.process import PREDICTIONS
from cfg.models.time import TIMES
from cfg.models.unet import LABEL_IN
from cfg.settings.data import BUILT_IN
from cfg.settings.sampler import check_texts, check_w
from cfg.settings.values import require

DTYPES = ('float32', 'bfloat16')
FEATURES = ('inception', 'small_classifier')
TABLES = ('table1_imagenet64', 'table2_imagenet128')  # of the paper, see cfg/report/paper.py


class Check(NamedTuple):
    """A check says what a field must be.

    Attributes:
      holds: value -> whether it is that.
      words: the same, for the user.
    """

    holds: Callable[[Any], bool]
    words: str


def _whole(low: int, *, bits: int = 31, words: str = '') -> Check:
    """Returns the check for whole numbers from `low` on that fit the integers of the devices."""

    def holds(value):
        return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**bits

    return Check(holds, words or f'a whole number of at least {low} and below 2^{bits}')


def _number(low: float, high: float = math.inf, words: str = '', *, above: bool = False, below: bool = False) -> Check:
    """Returns the check for finite numbers in [low, high], without `low` or `high` itself if `above` or `below`."""

    def holds(value):
        return is_finite(value) and low <= value <= high and not ((above and value == low) or (below and value == high))

    return Check(holds, words or f'a finite number of at least {low:g}')


def _one_of(*values: str) -> Check:
    return Check(lambda value: value in values, f'one of {", ".join(values)}')


def _either(*values: str) -> Check:
    return Check(lambda value: value in values, ' or '.join(map(repr, values)))


def _several(one: Check, words: str, *, least: int = 0, most: float = math.inf) -> Check:
    """Returns the check for a tuple each of whose values passes `one`."""

    def holds(values):
        return isinstance(values, tuple | list) and least <= len(values) <= most and all(map(one.holds, values))

    return Check(holds, words)


_FLAG = Check(lambda value: isinstance(value, bool), 'True or False')
_TEXT = Check(lambda value: isinstance(value, str), 'a text')
_FOLDER = Check(lambda value: _TEXT.holds(value) and value != '', 'a folder')
_SEED = _whole(0, bits=32)
_SHARE = _number(0, 1, 'in [0, 1)', below=True)
_POSITIVE = _number(0, words='positive', above=True)
_STRENGTHS = _several(_number(-math.inf), 'one or more finite numbers', least=1)
_STEPS = _several(_whole(2), 'whole numbers of at least 2')
_LOGSNR = _number(-20, 20, 'within -20 and 20 for float32')
_NAME = Check(
    lambda name: _TEXT.holds(name) and (name in BUILT_IN or is_preparable(name)),
    f'one of {", ".join(BUILT_IN)}, imagenet, tfds:NAME, folder:PATH',
)


def _texts(*examples: str) -> Check:
    return _several(_TEXT, f'a tuple of texts, such as {examples!r}')


_NETWORK = {
    'channels': _whole(1),
    'channel_mult': _several(_POSITIVE, 'positive factors that give whole numbers of channels', least=1),
    'num_res_blocks': _whole(1),
    'attention_resolutions': _several(_whole(1), 'whole numbers'),
    'norm_groups': _whole(1),
    'dropout': _SHARE,
}

# By the names of parts and fields in configs/default.py.
TABLE: dict[str, dict[str, Check]] = {
    '': {'seed': _SEED},
    'data': {
        'name': _NAME,
        'dir': _TEXT,
        'image_size': _whole(1),
        'crop': _one_of(*CROPS),
        'split': _TEXT,
        'random_flip': _FLAG,
        'workers': _whole(0),
    },
    'prepare': {
        'workers': _whole(0),
        'on_error': _either('stop', 'skip'),
        'tfds_dir': _TEXT,
        'manual_dir': _TEXT,
    },
    'model': _NETWORK
    | {
        'num_heads': _whole(0),
        'head_channels': _whole(0),
        'time': _one_of(*TIMES),
        'label_in': _one_of(*LABEL_IN),
        'learned_variance': _FLAG,
        'dtype': _one_of(*DTYPES),
    },
    'classifier': _NETWORK | {'head_channels': _whole(1)},
    'diffusion': {
        'prediction': Check(lambda value: value in PREDICTIONS, f'one of {PREDICTIONS}'),
        'logsnr_min': _LOGSNR,
        'logsnr_max': _LOGSNR,
    },
    'train': dict.fromkeys(
        ('num_steps', 'batch_size', 'grad_accum', 'log_every', 'checkpoint_every', 'keep_last'), _whole(1)
    )
    | dict.fromkeys(('warmup_steps', 'decay_steps', 'max_skipped', 'sample_every', 'keep_every'), _whole(0))
    | dict.fromkeys(('remat', 'stratified'), _FLAG)
    | dict.fromkeys(('beta1', 'beta2', 'ema_decay'), _SHARE)
    | dict.fromkeys(('weight_decay', 'grad_clip'), _number(0))
    | {
        'kind': _either('model', 'classifier'),
        'p_uncond': _number(0, 1, 'a probability in [0, 1]'),
        'learning_rate': _POSITIVE,
    },
    'sampling': {
        'guidance': _TEXT,
        'sampler': _TEXT,
        'grid': _TEXT,
        'num_steps': _whole(2),
        'logvar_interp': _number(0, 1, 'in [0, 1]'),
        'clip_x': _FLAG,
        'seed': _SEED,
        'batch_size': _whole(1),
        'ema': _FLAG,
        'rounding': _one_of(*ROUNDINGS),
        'step': _whole(-1, words='a step, or -1 for the newest'),
        'uncond_workdir': _TEXT,
        'w': _STRENGTHS,
        'labels': _several(_whole(0), 'whole numbers of at least 0'),
        'num_samples': _whole(1),
    },
    'eval': {
        'w': _STRENGTHS,
        'num_samples': _whole(2),
        'guidance': _texts('cfg', 'apg'),
        'sampler': _texts('ancestral', 'ddim'),
        'grid': _texts('paper', 'uniform'),
        'steps': _several(_whole(-1), 'whole numbers'),
        'ema': _several(_FLAG, 'made of True and False'),
        'num_steps': _STEPS,
        'logvar_interp': _several(_number(0, 1), 'numbers in [0, 1]'),
        'seeds': _several(_SEED, 'whole numbers of at least 0 and below 2^32'),
        'job': _TEXT,
        'labels': _either('random', 'balanced'),
        'features': _one_of(*FEATURES),
        'neighbours_dtype': _either('float32', 'float16'),
        'kid_subset_size': _whole(2),
        'keep_samples': _whole(0),
        'save_seconds': _number(0),
    }
    | dict.fromkeys(('is_split_size', 'batch_size', 'kid_subsets'), _whole(1))
    | dict.fromkeys(('weights', 'cache_dir', 'reference', 'samples', 'classifier_workdir'), _TEXT),
    'stats': {'path': _TEXT, 'num_images': _whole(0)},
    'report': {
        'title': _TEXT,
        'w': _STRENGTHS,
        'grid_shape': _several(_whole(1), '(rows, columns), whole numbers of at least 1', least=2, most=2),
        'one_class': _whole(0),
        'workdirs': _several(_FOLDER, "a tuple of folders, such as ('runs/p02',)"),
        'paper': Check(lambda value: value in ('', *TABLES), f"'' or one of {', '.join(TABLES)}"),
    },
    'processes': {'start_seconds': _number(1), 'hang_seconds': _number(1)},
    'adm': {'checkpoint': _TEXT, 'kind': _either('model', 'classifier'), 'new_attention_order': _FLAG},
    'mixture': {
        'means': _several(_several(_number(-math.inf), '', least=2, most=2), 'up to 6 points (x, y)', least=1, most=6),
        'w': _STRENGTHS,
        'num_samples': _whole(1),
        'guidance': _texts('cfg', 'apg'),
        'rule_samplers': _texts('ancestral', 'ddim'),
        'num_steps': _whole(2),
        'samplers': _texts('ancestral', 'ddim'),
        'steps': _STEPS,
        'steps_w': _STRENGTHS,
        'grid': _TEXT,
        'seed_samples': _whole(1),
        'num_seeds': _whole(1),
    }
    | dict.fromkeys(('stddev', 'extent', 'weaker_stddev'), _POSITIVE),
}


def check_config(config: ConfigDict) -> None:
    """Checks every field of a config, and then the relations between them.

    Raises:
      UserError: names the first field that is out of range and what it must be.
    """
    for part, fields in TABLE.items():
        values = config[part] if part else config
        for name, check in fields.items():
            require(check.holds(values[name]), f'{part}.{name}'.strip('.'), values[name], check.words)
    for check in RELATIONS:
        check(config)


def parse_job(job: str) -> tuple[int, int]:
    """Returns (i, n) of 'i/n', the i-th of n jobs, counted from 1.

    Raises:
      UserError: when it is not that.
    """
    parts = job.split('/')
    whole = len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts)
    right = whole and 1 <= int(parts[0]) <= int(parts[1])
    require(right, 'eval.job', job, "'i/n', the i-th of n jobs, from '1/n' to 'n/n'")
    return int(parts[0]), int(parts[1])


def _check_job(config: ConfigDict) -> None:
    parse_job(config.eval.job)


def _check_split(config: ConfigDict) -> None:
    data = config.data
    require(data.name != 'digits' or data.split in SPLITS, 'data.split', data.split, f'one of {", ".join(SPLITS)}')


def _check_networks(config: ConfigDict) -> None:
    """Checks that widths divide into heads and groups."""
    model = config.model
    one = (model.num_heads > 0) != (model.head_channels > 0)
    require(one, 'model.num_heads', model.num_heads, 'positive, or else model.head_channels: one of the two')
    heads = {'model': 'num_heads' if model.num_heads else 'head_channels', 'classifier': 'head_channels'}
    for part, divisor in heads.items():
        options = config[part]
        whole = all(mult * options.channels % 1 == 0 for mult in options.channel_mult)
        require(whole, f'{part}.channel_mult', options.channel_mult, _NETWORK['channel_mult'].words)
        for mult in options.channel_mult:
            width = int(options.channels * mult)
            for name in ('norm_groups', divisor):
                require(width % options[name] == 0, f'{part}.{name}', options[name], f'a divisor of {width} channels')


def _check_levels(config: ConfigDict) -> None:
    low, high = config.diffusion.logsnr_min, config.diffusion.logsnr_max
    require(low < high, 'diffusion.logsnr_min', low, f'smaller than logsnr_max={high}')


def _check_decay(config: ConfigDict) -> None:
    decay, steps = config.train.decay_steps, config.train.num_steps
    require(decay == 0 or decay >= steps, 'train.decay_steps', decay, f'0, or at least num_steps={steps}')


def _check_study(config: ConfigDict) -> None:
    """Checks what only the study beside Fig. 2 reads."""
    mixture = config.mixture
    if not mixture.guidance:
        return
    rules = [samplers.parse_rule(text, 'mixture.guidance') for text in mixture.guidance]
    solvers = {
        name: [samplers.parse_solver(text, f'mixture.{name}') for text in mixture[name]]
        for name in ('rule_samplers', 'samplers')
    }
    samplers.parse_grid(mixture.grid, 'mixture.grid')
    require(len(mixture.rule_samplers) > 0, 'mixture.rule_samplers', mixture.rule_samplers, 'at least one sampler')
    for name, found in ({'guidance': rules} | solvers).items():
        different = len({it.text for it in found}) == len(found)
        require(different, f'mixture.{name}', tuple(mixture[name]), 'different from each other')
    for rule in rules:
        for option in ('workdir', 'step'):
            kept = getattr(rule, option, None) in (None, '', -1)
            require(kept, 'mixture.guidance', rule.text, f'without {option}: here all models are exact')
        if not any(samplers.fits(rule, solver) for solver in solvers['rule_samplers']):
            samplers.check_fit(rule, solvers['rule_samplers'][-1])
        check_w(rule, 'mixture.w', mixture.w)
    some = len(mixture.steps) > 0 or not mixture.samplers
    require(some, 'mixture.steps', mixture.steps, 'one or more whole numbers of at least 2')
    last = config.sampling.seed + mixture.num_seeds - 1
    few = _SEED.holds(last) or config.data.name != 'mixture'
    require(few, 'mixture.num_seeds', mixture.num_seeds, f'so few that the last seed, {last}, is below 2^32')
    _check_extent(mixture.means, mixture.stddev, mixture.extent)


def _check_extent(means: Sequence[tuple[float, float]], stddev: float, extent: float) -> None:
    # Densities are integrated over [-2 extent, 2 extent]^2, in steps of extent / 100.
    reach = max(abs(coordinate) for mean in means for coordinate in mean)
    low, high = 0.5 * (reach + 6.0 * stddev), 40.0 * stddev
    words = f'from {low:g} to {high:g}, so that the panels hold the classes and a cell is small beside one'
    require(low <= extent <= high, 'mixture.extent', extent, words)


RELATIONS = (_check_split, _check_networks, _check_levels, _check_decay, check_texts, _check_job, _check_study)
