"""The table of what each field of a config must be by itself, its type included."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from cfg.data.built_in import BUILT_IN
from cfg.data.crop import CROPS
from cfg.data.images import ROUNDINGS
from cfg.data.manifest import is_preparable
from cfg.diffusion.options import is_finite
from cfg.diffusion.process import PREDICTIONS
from cfg.diffusion.weights import LOSS_WEIGHTS, TIMES, WEIGHTINGS
from cfg.models.attention import KERNELS
from cfg.models.time import TIMES as TOLD
from cfg.models.unet import LABEL_IN
from cfg.runtime.paths import is_remote, user_path

DTYPES = ('float32', 'bfloat16')
MIXTURE = 'mixture'  # a name of `data.name` that has exact scores in the place of images
FEATURES = ('inception', 'small_classifier')  # one of them; 'dinov2' may be a second
TABLES = ('table1_imagenet64', 'table2_imagenet128')  # of the paper, see cfg/report/paper.py


class Check(NamedTuple):
    """A check says what a field must be."""

    holds: Callable[[Any], bool]  # value -> whether it is that
    words: str  # the same, for the user
    # (value, name of the field) -> the value as it is meant
    read: Callable[[Any, str], Any] = lambda value, field: value


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


def feature_names(text: str) -> tuple[str, ...]:
    """Returns the networks that `config.eval.features` names, as 'inception, dinov2' or "('inception', 'dinov2')"."""
    parts = (part.strip(' \'"') for part in text.strip('()[] ').split(','))
    return tuple(part for part in parts if part)


def _are_features(text: Any) -> bool:
    names = feature_names(text) if isinstance(text, str) else ()
    return len([name for name in names if name in FEATURES]) == 1 and names.count('dinov2') == len(names) - 1 < 2


def _several(one: Check, words: str, *, least: int = 0, most: float = math.inf) -> Check:
    """Returns the check for a tuple each of whose values passes `one`."""

    def holds(values):
        return isinstance(values, tuple | list) and least <= len(values) <= most and all(map(one.holds, values))

    return Check(holds, words)


_FLAG = Check(lambda value: isinstance(value, bool), 'True or False')
_TEXT = Check(lambda value: isinstance(value, str), 'a text')
# A path may be empty, which stands for what is said beside it in configs/default.py.
_PLACE = Check(_TEXT.holds, 'a path, or an address in a bucket', user_path)
_PATH = Check(lambda value: _TEXT.holds(value) and not is_remote(value), 'a path on this machine', user_path)
SEED = _whole(0, bits=32)
_SHARE = _number(0, 1, 'in [0, 1)', below=True)
_POSITIVE = _number(0, words='positive', above=True)
_STRENGTHS = _several(_number(-math.inf), 'one or more finite numbers', least=1)
_LENGTH = _number(0, 12**-0.5, 'in [0, 1/sqrt(12)], where 0.2886 is the average of all steps')  # of an average
_STEPS = _several(_whole(1), 'whole numbers of at least 1')
_LOGSNR = _number(-20, 20, 'within -20 and 20 for float32')
_NAME = Check(
    lambda name: _TEXT.holds(name) and (name in (*BUILT_IN, MIXTURE) or is_preparable(name)),
    f'one of {", ".join((*BUILT_IN, MIXTURE))}, imagenet, tfds:NAME, folder:PATH',
)


def _none_is_empty(value: Any, field: str) -> Any:
    """Reads None, and the word that a command line makes of it, as no text."""
    return '' if value in (None, 'None') else value


def _paths(values: Any, field: str) -> Any:
    """Reads each of several paths."""
    return tuple(user_path(value, field) for value in values) if isinstance(values, tuple | list) else values


_PATHS = Check(
    lambda values: isinstance(values, tuple) and all(value and _PATH.holds(value) for value in values),
    "a tuple of folders, such as ('runs/p02',)",
    _paths,
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

# Of a sweep, and of a search.
_AXES = {
    'w': _STRENGTHS,
    'guidance': _texts('cfg', 'apg'),
    'sampler': _texts('ancestral', 'ddim'),
    'grid': _texts('paper', 'uniform'),
    'steps': _several(_whole(-1), 'whole numbers'),
    'ema': _several(_FLAG, 'made of True and False'),
    'num_steps': _STEPS,
}

# By the names of parts and fields in configs/default.py.
TABLE: dict[str, dict[str, Check]] = {
    '': {'seed': SEED},
    'data': {
        'name': _NAME,
        'dir': _PLACE,
        'image_size': _whole(1),
        'crop': _one_of(*CROPS),
        'split': _TEXT,
        'random_flip': _FLAG,
        'augment': _number(0, 1, 'in [0, 1]'),
        'workers': _whole(0),
    },
    'prepare': {
        'workers': _whole(0),
        'on_error': _either('stop', 'skip'),
        'classes_from': _one_of('auto', 'folders', 'names'),
        'tfds_dir': _PLACE,
        'manual_dir': _PLACE,
    },
    'model': _NETWORK
    | {
        'num_heads': _whole(0),
        'head_channels': _whole(0),
        'time': _one_of(*TOLD),
        'label_in': _one_of(*LABEL_IN),
        'attention': _one_of('auto', *KERNELS),
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
        'kind': _one_of('model', 'classifier', 'student', 'guidance_free'),
        'teacher_workdir': _PATH,
        'teacher_step': _whole(-1, words='a step, or -1 for the newest'),
        'teacher_guidance': _TEXT,
        'wandb_project': _TEXT._replace(read=_none_is_empty),
        'student_steps': _whole(0),
        'student_sampler': _one_of('ddim', 'forth_and_back'),
        'weighting': _one_of(*WEIGHTINGS),
        'loss_weight': _either(*LOSS_WEIGHTS),
        'sigmoid_bias': _number(-20, 20, 'within -20 and 20'),
        'times': _one_of(*TIMES),
        'w': _several(_number(-1, above=True), 'the least and the largest w, above -1', least=2, most=2),
        'ema_lengths': _several(_number(0, 12**-0.5, above=True), 'numbers in (0, 1/sqrt(12)]'),
        'p_uncond': _number(0, 1, 'a probability in [0, 1]'),
        'learning_rate': _POSITIVE,
    },
    'sampling': {
        'guidance': _TEXT,
        'sampler': _TEXT,
        'grid': _TEXT,
        'num_steps': _whole(1),
        'logvar_interp': _number(0, 1, 'in [0, 1]'),
        'clip_x': _FLAG,
        'seed': SEED,
        'batch_size': _whole(1),
        'ema': _FLAG,
        'ema_length': _LENGTH,
        'rounding': _one_of(*ROUNDINGS),
        'step': _whole(-1, words='a step, or -1 for the newest'),
        'uncond_workdir': _PATH,
        'w': _STRENGTHS,
        'labels': _several(_whole(0), 'whole numbers of at least 0'),
        'num_samples': _whole(1),
    },
    'eval': _AXES
    | {
        'num_samples': _whole(2),
        'ema_length': _several(_LENGTH, 'numbers in [0, 1/sqrt(12)]'),
        'logvar_interp': _several(_number(0, 1), 'numbers in [0, 1]'),
        'seeds': _several(SEED, 'whole numbers of at least 0 and below 2^32'),
        'job': _TEXT,
        'labels': _either('random', 'balanced'),
        'features': Check(_are_features, f"one of {', '.join(FEATURES)}, or one and dinov2: 'inception, dinov2'"),
        'dinov2_resize': _either('torch', 'pil'),
        'neighbours_dtype': _either('float32', 'float16'),
        'kid_subset_size': _whole(2),
        'keep_samples': _whole(0),
        'save_seconds': _number(0),
    }
    | dict.fromkeys(('is_split_size', 'batch_size', 'kid_subsets'), _whole(1))
    | dict.fromkeys(('weights', 'dinov2_weights', 'cache_dir', 'reference', 'samples', 'classifier_workdir'), _PATH),
    'tune': _AXES
    | dict.fromkeys(('evaluations', 'samples'), _whole(1))
    | dict.fromkeys(('first_samples', 'factor', 'final_seeds'), _whole(2))
    | {'seed': _whole(0)},
    'stats': {'path': _PATH, 'num_images': _whole(0)},
    'report': {
        'title': _TEXT._replace(read=_none_is_empty),
        'w': _STRENGTHS,
        'grid_shape': _several(_whole(1), '(rows, columns), whole numbers of at least 1', least=2, most=2),
        'one_class': _whole(0),
        'workdirs': _PATHS,
        'twin_samples': _whole(0),
        'paper': Check(lambda value: value in ('', *TABLES), f"'' or one of {', '.join(TABLES)}", _none_is_empty),
    },
    'processes': {'start_seconds': _number(1), 'hang_seconds': _number(1)},
    'export': {'dir': _PATH},
    'adm': {'checkpoint': _PATH, 'kind': _either('model', 'classifier'), 'new_attention_order': _FLAG},
    'mixture': {
        'means': _several(_several(_number(-math.inf), '', least=2, most=2), 'up to 6 points (x, y)', least=1, most=6),
        'w': _STRENGTHS,
        'num_samples': _whole(1),
        'guidance': _texts('cfg', 'apg'),
        'rule_samplers': _texts('ancestral', 'ddim'),
        'num_steps': _whole(2),
        'samplers': _texts('ancestral', 'ddim'),
        'steps': _several(_whole(2), 'whole numbers of at least 2'),
        'steps_w': _STRENGTHS,
        'tilted': _several(
            Check(lambda pair: len(pair) == 2 and _TEXT.holds(pair[0]) and _whole(1).holds(pair[1]), ''),
            "pairs of a sampler and its number of steps, such as (('gibbs', 32),)",
        ),
        'grid': _TEXT,
        'seed_samples': _whole(1),
        'num_seeds': _whole(1),
    }
    | dict.fromkeys(('stddev', 'extent', 'weaker_stddev'), _POSITIVE),
}
