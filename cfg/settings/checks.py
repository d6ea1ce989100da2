"""The checks of a config: a wrong value ends here, in one sentence that names the field, before any long work."""

from typing import Any

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
from cfg.runtime.errors import UserError
from cfg.settings.data import BUILT_IN
from cfg.settings.sampler import check_texts, check_w

DTYPES = ('float32', 'bfloat16')
KINDS = ('model', 'classifier')  # of networks that are trained or imported
FEATURES = ('inception', 'small_classifier')
TABLES = ('table1_imagenet64', 'table2_imagenet128')  # of the paper, see cfg/report/paper.py


def require(condition: bool, field: str, value: Any, expected: str) -> None:
    """Raises a UserError that names the field unless the condition holds."""
    if not condition:
        raise UserError(f'config.{field}={value!r} must be {expected}.')


def check_config(config: ConfigDict) -> None:
    """Checks every field that has a range of its own.

    Raises:
      UserError: names the first field that is out of range and what it must be.
    """
    data, model, diffusion = config.data, config.model, config.diffusion
    train, sampling, evaluation, report = config.train, config.sampling, config.eval, config.report
    require(config.seed >= 0, 'seed', config.seed, 'at least 0')
    named = data.name in BUILT_IN or is_preparable(data.name)
    require(named, 'data.name', data.name, f'one of {", ".join(BUILT_IN)}, imagenet, tfds:NAME, folder:PATH')
    require(data.crop in CROPS, 'data.crop', data.crop, f'one of {", ".join(CROPS)}')
    require(data.workers >= 0, 'data.workers', data.workers, 'at least 0')
    require(config.prepare.workers >= 0, 'prepare.workers', config.prepare.workers, 'at least 0')
    on_error = config.prepare.on_error
    require(on_error in ('stop', 'skip'), 'prepare.on_error', on_error, "'stop' or 'skip'")
    require(data.image_size >= 1, 'data.image_size', data.image_size, 'at least 1')
    if data.name == 'digits':
        require(data.split in SPLITS, 'data.split', data.split, f'one of {", ".join(SPLITS)}')

    one_positive = sorted((model.num_heads > 0, model.head_channels > 0)) == [False, True]
    one_positive &= min(model.num_heads, model.head_channels) == 0
    require(one_positive, 'model.num_heads', model.num_heads, 'positive, or else model.head_channels: one of the two')
    _check_architecture('model', model, heads='num_heads' if model.num_heads else 'head_channels')
    _check_architecture('classifier', config.classifier, heads='head_channels')
    require(
        bool(report.grid_shape) and _integers(report.grid_shape, 1),
        'report.grid_shape',
        report.grid_shape,
        'whole numbers of at least 1',
    )
    for field, values in (('sampling.labels', sampling.labels), ('eval.steps', evaluation.steps)):
        require(_integers(values, -1), field, values, 'whole numbers')
    require(0 <= model.dropout < 1, 'model.dropout', model.dropout, 'in [0, 1)')
    require(model.dtype in DTYPES, 'model.dtype', model.dtype, f'one of {", ".join(DTYPES)}')
    require(model.time in TIMES, 'model.time', model.time, f'one of {", ".join(TIMES)}')
    require(model.label_in in LABEL_IN, 'model.label_in', model.label_in, f'one of {", ".join(LABEL_IN)}')
    require(0 <= config.classifier.dropout < 1, 'classifier.dropout', config.classifier.dropout, 'in [0, 1)')
    for part, kind in (('adm', config.adm.kind), ('train', train.kind)):
        require(kind in KINDS, f'{part}.kind', kind, "'model' or 'classifier'")
    require(diffusion.prediction in PREDICTIONS, 'diffusion.prediction', diffusion.prediction, f'one of {PREDICTIONS}')
    ends = (diffusion.logsnr_min, diffusion.logsnr_max)
    require(ends[0] < ends[1], 'diffusion.logsnr_min', ends[0], f'smaller than logsnr_max={ends[1]}')
    require(max(map(abs, ends)) <= 20, 'diffusion.logsnr_min, logsnr_max', ends, 'within -20 and 20 for float32')

    for name in ('num_steps', 'batch_size', 'grad_accum', 'log_every', 'checkpoint_every', 'keep_last'):
        require(train[name] >= 1, f'train.{name}', train[name], 'at least 1')
    for name in ('warmup_steps', 'weight_decay', 'grad_clip', 'max_skipped', 'sample_every', 'keep_every'):
        require(train[name] >= 0, f'train.{name}', train[name], 'at least 0')
    late_enough = train.decay_steps == 0 or train.decay_steps >= train.num_steps
    require(late_enough, 'train.decay_steps', train.decay_steps, f'0, or at least num_steps={train.num_steps}')
    require(0 <= train.p_uncond <= 1, 'train.p_uncond', train.p_uncond, 'a probability in [0, 1]')
    require(train.learning_rate > 0, 'train.learning_rate', train.learning_rate, 'positive')
    for name in ('beta1', 'beta2', 'ema_decay'):
        require(0 <= train[name] < 1, f'train.{name}', train[name], 'in [0, 1)')

    require(sampling.num_steps >= 2, 'sampling.num_steps', sampling.num_steps, 'at least 2')
    require(0 <= sampling.logvar_interp <= 1, 'sampling.logvar_interp', sampling.logvar_interp, 'in [0, 1]')
    require(sampling.seed >= 0, 'sampling.seed', sampling.seed, 'at least 0')
    rounding = sampling.rounding
    require(rounding in ROUNDINGS, 'sampling.rounding', rounding, f'one of {", ".join(ROUNDINGS)}')
    require(sampling.step >= -1, 'sampling.step', sampling.step, 'a step, or -1 for the newest')
    for name in ('batch_size', 'num_samples'):
        require(sampling[name] >= 1, f'sampling.{name}', sampling[name], 'at least 1')
    for field, values in (('sampling.w', sampling.w), ('eval.w', evaluation.w), ('report.w', report.w)):
        require(_finite(values), field, values, 'one or more finite numbers')
    check_texts(config)
    require(evaluation.labels in ('random', 'balanced'), 'eval.labels', evaluation.labels, "'random' or 'balanced'")
    for name in ('is_split_size', 'batch_size', 'kid_subsets'):
        require(evaluation[name] >= 1, f'eval.{name}', evaluation[name], 'at least 1')
    for name in ('num_samples', 'kid_subset_size'):
        require(evaluation[name] >= 2, f'eval.{name}', evaluation[name], 'at least 2')
    for name in ('keep_samples', 'save_seconds'):
        require(evaluation[name] >= 0, f'eval.{name}', evaluation[name], 'at least 0')
    require(_integers(evaluation.num_steps, 2), 'eval.num_steps', evaluation.num_steps, 'whole numbers of at least 2')
    interps = evaluation.logvar_interp
    in_range = not interps or (_finite(interps) and all(0 <= value <= 1 for value in interps))
    require(in_range, 'eval.logvar_interp', interps, 'numbers in [0, 1]')
    require(_integers(evaluation.seeds, 0), 'eval.seeds', evaluation.seeds, 'whole numbers of at least 0')
    booleans = all(isinstance(value, bool) for value in evaluation.ema)
    require(booleans, 'eval.ema', evaluation.ema, 'made of True and False')
    parse_job(evaluation.job)
    require(evaluation.features in FEATURES, 'eval.features', evaluation.features, f'one of {", ".join(FEATURES)}')
    dtype = evaluation.neighbours_dtype
    require(dtype in ('float32', 'float16'), 'eval.neighbours_dtype', dtype, "'float32' or 'float16'")
    require(config.stats.num_images >= 0, 'stats.num_images', config.stats.num_images, 'at least 0')
    require(
        _texts(report.workdirs) and all(report.workdirs),
        'report.workdirs',
        report.workdirs,
        "a tuple of folders, such as ('runs/p02',)",
    )
    require(report.paper in ('', *TABLES), 'report.paper', report.paper, f"'' or one of {', '.join(TABLES)}")
    require(len(report.grid_shape) == 2, 'report.grid_shape', report.grid_shape, '(rows, columns)')

    for name in ('start_seconds', 'hang_seconds'):
        require(config.processes[name] >= 1, f'processes.{name}', config.processes[name], 'at least 1')

    mixture = config.mixture
    points = len(mixture.means) <= 6 and all(isinstance(m, tuple) and len(m) == 2 and _finite(m) for m in mixture.means)
    require(points and len(mixture.means) > 0, 'mixture.means', mixture.means, 'up to 6 points (x, y)')
    require(_finite(mixture.w), 'mixture.w', mixture.w, 'one or more finite numbers')
    for name in ('stddev', 'extent', 'num_samples'):
        require(mixture[name] > 0, f'mixture.{name}', mixture[name], 'positive')
    if mixture.guidance:
        _check_study(mixture)


def _check_study(mixture: ConfigDict) -> None:
    """Checks what only the study beside Fig. 2 reads."""
    for name in ('guidance', 'rule_samplers', 'samplers'):
        require(_texts(mixture[name]), f'mixture.{name}', mixture[name], "a tuple of texts, such as ('cfg', 'apg')")
    rules = [samplers.parse_rule(text, 'mixture.guidance') for text in mixture.guidance]
    rule_samplers = [samplers.parse_solver(text, 'mixture.rule_samplers') for text in mixture.rule_samplers]
    samplers = [samplers.parse_solver(text, 'mixture.samplers') for text in mixture.samplers]
    samplers.parse_grid(mixture.grid, 'mixture.grid')
    require(len(rule_samplers) > 0, 'mixture.rule_samplers', mixture.rule_samplers, 'at least one sampler')
    for name, found in (('guidance', rules), ('rule_samplers', rule_samplers), ('samplers', samplers)):
        different = len({recipe.text for recipe in found}) == len(found)
        require(different, f'mixture.{name}', tuple(mixture[name]), 'different from each other')
    for rule in rules:
        for option in ('workdir', 'step'):
            kept = getattr(rule, option, None) in (None, '', -1)
            require(kept, 'mixture.guidance', rule.text, f'without {option}: here all models are exact')
        if not any(samplers.fits(rule, sampler) for sampler in rule_samplers):
            samplers.check_fit(rule, rule_samplers[-1])
        check_w(rule, 'mixture.w', mixture.w)
    require(mixture.weaker_stddev > 0, 'mixture.weaker_stddev', mixture.weaker_stddev, 'positive')
    require(mixture.num_steps >= 2, 'mixture.num_steps', mixture.num_steps, 'at least 2')
    if samplers:
        whole = len(mixture.steps) > 0 and _integers(mixture.steps, 2)
        require(whole, 'mixture.steps', mixture.steps, 'whole numbers of at least 2')
        require(_finite(mixture.steps_w), 'mixture.steps_w', mixture.steps_w, 'one or more finite numbers')
    for name in ('seed_samples', 'num_seeds'):
        require(mixture[name] >= 1, f'mixture.{name}', mixture[name], 'at least 1')
    # Densities are integrated over [-2 extent, 2 extent]^2, in steps of extent / 100.
    reach = max(abs(coordinate) for mean in mixture.means for coordinate in mean)
    low, high = 0.5 * (reach + 6.0 * mixture.stddev), 40.0 * mixture.stddev
    words = f'from {low:g} to {high:g}, so that the panels hold the classes and a cell is small beside one'
    require(low <= mixture.extent <= high, 'mixture.extent', mixture.extent, words)


def parse_job(job: str) -> tuple[int, int]:
    """'i/n' -> (i, n), the i-th of n jobs, counted from 1.

    Raises:
      UserError: when it is not that.
    """
    parts = str(job).split('/')
    whole = len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts)
    right = whole and 1 <= int(parts[0]) <= int(parts[1])
    require(right, 'eval.job', job, "'i/n', the i-th of n jobs, from '1/n' to 'n/n'")
    return int(parts[0]), int(parts[1])


def _check_architecture(part: str, options: ConfigDict, *, heads: str) -> None:
    """Checks the fields that the network and the classifier share; `heads` is the field that divides the attention."""
    for name in ('channels', 'num_res_blocks', 'norm_groups', heads):
        require(options[name] >= 1, f'{part}.{name}', options[name], 'at least 1')
    mults = options.channel_mult
    whole = _finite(mults) and all(mult > 0 and mult * options.channels % 1 == 0 for mult in mults)
    require(whole, f'{part}.channel_mult', mults, 'positive factors that give whole numbers of channels')
    resolutions = options.attention_resolutions
    require(_integers(resolutions, 1), f'{part}.attention_resolutions', resolutions, 'whole numbers')
    for mult in mults:
        width = int(options.channels * mult)
        for name in ('norm_groups', heads):
            require(width % options[name] == 0, f'{part}.{name}', options[name], f'a divisor of {width} channels')


def _texts(values: Any) -> bool:
    return not isinstance(values, str) and all(isinstance(value, str) for value in values)


def _integers(values: Any, least: int) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= least for value in values)


def _finite(values: Any) -> bool:
    return len(values) > 0 and all(map(is_finite, values))
