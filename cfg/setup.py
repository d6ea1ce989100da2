"""From the config to the objects of a run, with every check that needs no long work.

A wrong value ends here, in one sentence that names the field, before anything is computed.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cfg.data.crop import CROPS
from cfg.data.digits import SPLITS, digits
from cfg.data.images import ROUNDINGS
from cfg.data.prepared import default_dir, find_manifest, is_preparable, open_prepared
from cfg.data.source import Source
from cfg.data.spec import DataSpec, data_spec
from cfg.diffusion.process import PREDICTIONS
from cfg.errors import UserError
from cfg.files import check_writable
from cfg.generate import Generator, Model, SamplerSettings
from cfg.models.classifier import EncoderUNet
from cfg.models.time import TIME_FNS, TIMES
from cfg.models.unet import UNet

FEATURES = ('inception', 'small_classifier')
TABLES = ('table1_imagenet64', 'table2_imagenet128')  # of the paper, see cfg/evaluation/paper.py
BUILT_IN = ('digits', 'mixture')  # data sets that need no preparation
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


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
    require(config.adm.kind in ('model', 'classifier'), 'adm.kind', config.adm.kind, "'model' or 'classifier'")
    require(diffusion.prediction in PREDICTIONS, 'diffusion.prediction', diffusion.prediction, f'one of {PREDICTIONS}')
    ends = (diffusion.logsnr_min, diffusion.logsnr_max)
    require(ends[0] < ends[1], 'diffusion.logsnr_min', ends[0], f'smaller than logsnr_max={ends[1]}')
    require(max(map(abs, ends)) <= 20, 'diffusion.logsnr_min, logsnr_max', ends, 'within -20 and 20 for float32')

    for name in ('num_steps', 'batch_size', 'grad_accum', 'log_every', 'checkpoint_every', 'keep_last'):
        require(train[name] >= 1, f'train.{name}', train[name], 'at least 1')
    for name in ('warmup_steps', 'weight_decay', 'grad_clip', 'sample_every', 'keep_every'):
        require(train[name] >= 0, f'train.{name}', train[name], 'at least 0')
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
    require(evaluation.labels in ('random', 'balanced'), 'eval.labels', evaluation.labels, "'random' or 'balanced'")
    for name in ('is_split_size', 'batch_size', 'kid_subsets'):
        require(evaluation[name] >= 1, f'eval.{name}', evaluation[name], 'at least 1')
    for name in ('num_samples', 'kid_subset_size'):
        require(evaluation[name] >= 2, f'eval.{name}', evaluation[name], 'at least 2')
    for name in ('keep_samples', 'save_seconds'):
        require(evaluation[name] >= 0, f'eval.{name}', evaluation[name], 'at least 0')
    require(_integers(evaluation.num_steps, 2), 'eval.num_steps', evaluation.num_steps, 'whole numbers of at least 2')
    require(_integers(evaluation.seeds, 0), 'eval.seeds', evaluation.seeds, 'whole numbers of at least 0')
    booleans = all(isinstance(value, bool) for value in evaluation.ema)
    require(booleans, 'eval.ema', evaluation.ema, 'made of True and False')
    parse_job(evaluation.job)
    require(evaluation.features in FEATURES, 'eval.features', evaluation.features, f'one of {", ".join(FEATURES)}')
    dtype = evaluation.neighbours_dtype
    require(dtype in ('float32', 'float16'), 'eval.neighbours_dtype', dtype, "'float32' or 'float16'")
    require(config.stats.num_images >= 0, 'stats.num_images', config.stats.num_images, 'at least 0')
    require(
        not isinstance(report.workdirs, str) and all(isinstance(path, str) and path for path in report.workdirs),
        'report.workdirs',
        report.workdirs,
        "a tuple of folders, such as ('runs/p02',)",
    )
    require(report.paper in ('', *TABLES), 'report.paper', report.paper, f"'' or one of {', '.join(TABLES)}")
    require(len(report.grid_shape) == 2, 'report.grid_shape', report.grid_shape, '(rows, columns)')

    mixture = config.mixture
    points = len(mixture.means) <= 6 and all(isinstance(m, tuple) and len(m) == 2 and _finite(m) for m in mixture.means)
    require(points and len(mixture.means) > 0, 'mixture.means', mixture.means, 'up to 6 points (x, y)')
    require(_finite(mixture.w), 'mixture.w', mixture.w, 'one or more finite numbers')
    for name in ('stddev', 'extent', 'num_samples'):
        require(mixture[name] > 0, f'mixture.{name}', mixture[name], 'positive')


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


def _integers(values: Any, least: int) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= least for value in values)


def _finite(values: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return numbers and len(values) > 0 and bool(np.isfinite(values).all())


def check_workdir(workdir: str | Path, *, create: bool, write: bool) -> Path:
    """The workdir as a path.

    Args:
      create: whether it is made if it is missing.
      write: whether it must be possible to write in it.

    Raises:
      UserError: when it does not exist or cannot be written.
    """
    if '://' in str(workdir):
        raise UserError(f'--workdir={workdir} is not a local folder: give a path on this machine.')
    path = Path(workdir)
    if not create and not path.is_dir():
        raise UserError(f'--workdir={path} does not exist: give the workdir of a run.')
    if not write:
        return path
    check_writable(path, f'--workdir={path}')
    return path


def spec_of(config: ConfigDict) -> DataSpec:
    """The shapes and classes of a config's data set.

    Raises:
      UserError: when it has no images.
    """
    data = config.data
    return data_spec(data.name, data.image_size, data_dir=data.dir, crop=data.crop)


def open_source(config: ConfigDict, split: str | None = None) -> Source:
    """The data set of a config; `split` takes the place of `config.data.split`.

    Raises:
      UserError: when it has no images, is not prepared, or lacks files or the split.
    """
    data = config.data
    if data.name in BUILT_IN:
        spec_of(config)  # says what cannot be
        return digits(split or data.split)
    return open_prepared(
        data.name,
        data_dir=default_dir(data.dir),
        size=data.image_size,
        crop=data.crop,
        split=split or data.split,
    )


def open_held_out(config: ConfigDict) -> Source | None:
    """The split that was not trained on; None if the data set has none."""
    if config.data.name == 'digits':
        return open_source(config, 'test')
    data = config.data
    manifest = find_manifest(data.name, data_dir=default_dir(data.dir), size=data.image_size, crop=data.crop)
    split = next((name for name in ('validation', 'test') if name in manifest['splits']), None)
    return None if split is None else open_source(config, split)


def describe_split(source: Source) -> str:
    """A split in words."""
    words = {'digits/train': 'real training half', 'digits/test': 'real test half'}
    return f'{words.get(source.name, f"real images {source.name}")} ({len(source)})'


def build_network(config: ConfigDict, source: DataSpec | Source) -> UNet:
    """The network of a config for the images and classes of a data set.

    Raises:
      UserError: when the image size does not fit the number of resolutions.
    """
    model = config.model
    _check_resolutions('model', model, source)
    channels = source.image_shape[-1]
    return UNet(
        out_channels=2 * channels if model.learned_variance else channels,
        num_classes=source.num_classes,
        channels=model.channels,
        channel_mult=tuple(model.channel_mult),
        num_res_blocks=model.num_res_blocks,
        attention_resolutions=tuple(model.attention_resolutions),
        num_heads=model.num_heads,
        head_channels=model.head_channels,
        dropout=model.dropout,
        norm_groups=model.norm_groups,
        dtype=DTYPES[model.dtype],
        time_fn=TIME_FNS[model.time],
        remat=config.train.remat,
    )


def build_classifier(config: ConfigDict, source: DataSpec | Source) -> EncoderUNet:
    """The noise-aware classifier of a config, told of the noise level in the same way as the network.

    Raises:
      UserError: when the image size does not fit the number of resolutions.
    """
    options = config.classifier
    _check_resolutions('classifier', options, source)
    return EncoderUNet(
        num_classes=source.num_classes,
        channels=options.channels,
        channel_mult=tuple(options.channel_mult),
        num_res_blocks=options.num_res_blocks,
        attention_resolutions=tuple(options.attention_resolutions),
        head_channels=options.head_channels,
        norm_groups=options.norm_groups,
        dtype=DTYPES[config.model.dtype],
        time_fn=TIME_FNS[config.model.time],
    )


def _check_resolutions(part: str, options: ConfigDict, source: DataSpec | Source) -> None:
    """Whether images can be halved as often as a network wants, and have the heights where it has attention."""
    levels = len(options.channel_mult)
    factor = 2 ** (levels - 1)
    height, width, _ = source.image_shape
    if height % factor or width % factor:
        raise UserError(
            f'config.{part}.channel_mult has {levels} resolutions, so images must be multiples of {factor} pixels, but '
            f'those of {source.name} are {height}x{width}: use fewer resolutions.'
        )
    heights = [height // 2**level for level in range(levels)]
    for resolution in options.attention_resolutions:
        field = f'{part}.attention_resolutions'
        require(resolution in heights, field, options.attention_resolutions, f'among the heights {heights}')


def init_params(network: UNet, source: DataSpec | Source, *, seed: int) -> Any:
    """The initial parameters, float32 numpy arrays."""
    z = jnp.zeros((1, *source.image_shape))
    # A program that runs once is not worth optimising: on the CPU this takes a third of the time.
    init = jax.jit(
        lambda key: network.init(key, z, jnp.zeros(1), jnp.zeros(1, jnp.int32))['params'],
        compiler_options={'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None,
    )
    return jax.tree.map(np.asarray, init(jax.random.key(seed)))


def abstract_params(network: UNet, source: DataSpec | Source) -> Any:
    """The shapes and types of the parameters, without computing any."""
    z = jnp.zeros((1, *source.image_shape))
    return jax.eval_shape(lambda: network.init(jax.random.key(0), z, jnp.zeros(1), jnp.zeros(1, jnp.int32))['params'])


def make_model(config: ConfigDict, network: UNet) -> Model:
    """A network as the sampler sees it."""
    return Model(
        lambda params, *inputs: network.apply({'params': params}, *inputs),
        prediction=config.diffusion.prediction,
        null_label=network.num_classes,
    )


def make_generator(
    config: ConfigDict,
    source: DataSpec | Source,
    network: UNet,
    *,
    batch_size: int,
    uncond: Model | None = None,
    num_steps: int | None = None,
) -> Generator:
    """The sampler of a config over all devices.

    Args:
      uncond: a second model for the unconditional eps.
      num_steps: T, in the place of `config.sampling.num_steps`.
    """
    return Generator(
        make_model(config, network),
        uncond=uncond,
        image_shape=source.image_shape,
        settings=sampler_settings(config, num_steps),
        seed=config.sampling.seed,
        batch_size=batch_size,
    )


def sampler_settings(config: ConfigDict, num_steps: int | None = None) -> SamplerSettings:
    """The sampler of a config; `num_steps` takes the place of `config.sampling.num_steps`."""
    return SamplerSettings(
        num_steps=num_steps or config.sampling.num_steps,
        logvar_interp=config.sampling.logvar_interp,
        clip_x=config.sampling.clip_x,
        logsnr_min=config.diffusion.logsnr_min,
        logsnr_max=config.diffusion.logsnr_max,
        rounding=config.sampling.rounding,
    )


def config_dict(config: ConfigDict) -> dict[str, Any]:
    """The config as plain JSON values."""
    return json.loads(config.to_json_best_effort())
