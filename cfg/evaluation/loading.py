"""The networks and parameters that sampling and evaluation read from workdirs."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cfg import parallel, setup
from cfg.data.images import to_float
from cfg.data.prepared import short_name
from cfg.data.spec import DataSpec, data_spec
from cfg.errors import UserError
from cfg.evaluation.features import (
    INCEPTION,
    INCEPTION_IMAGES,
    FeatureNetwork,
    check_images,
    default_cache,
    inception,
    on_devices,
)
from cfg.evaluation.small_classifier import small_classifier
from cfg.generate import Model
from cfg.training.checkpoints import FOLDER, Checkpoints
from cfg.training.state import sha256

# Settings that leave the shapes of the parameters as they are, but not what the parameters mean.
MEANING = {
    'model': ('num_heads', 'head_channels', 'attention_resolutions', 'norm_groups', 'time'),
    'diffusion': ('prediction',),
    'data': ('name',),
}
# How the images were made: an imported network was trained elsewhere, and nothing is known of that.
MADE = ('image_size', 'crop')


@dataclass(frozen=True)
class Uncond:
    """A second model for the unconditional eps.

    Attributes:
      model: as the sampler sees it.
      params: on the host.
      p_uncond: with which it was trained.
    """

    model: Model
    params: Any
    p_uncond: float

    @functools.cached_property
    def sha256(self) -> str:
        """Of the parameters; worked out once, as they may be gigabytes."""
        return sha256(self.params)


def on_devices_with(params: Any, uncond: Uncond | None) -> Any:
    """The parameters that the generator takes, on every device."""
    return parallel.replicate(params if uncond is None else (params, uncond.params))


def find_checkpoints(config: ConfigDict, workdir: Path, steps: Sequence[int]) -> dict[int, float]:
    """{step: the p_uncond that it was trained with} of the checkpoints asked for, in that order; reads no parameters.

    Raises:
      UserError: when a checkpoint is missing, or was trained with another network or prediction than the config's.
    """
    found = {}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        for wanted in steps:
            step = checkpoints.find(wanted, 'The checkpoint of step')
            meta = checkpoints.meta(step)
            _check_kind(meta, 'model', workdir)
            trained = meta['config']
            _check_same_model(setup.config_dict(config), trained, step, imported=bool(meta.get('imported')))
            found[step] = trained['train']['p_uncond']
    return found


def load_params(workdir: Path, step: int, like: Any, *, ema: bool) -> Any:
    """The parameters of a checkpoint, or their average.

    Raises:
      UserError: when it is of another architecture than `like`, or damaged.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore_params(step, like, ema=ema)


def open_uncond(config: ConfigDict, image_shape: tuple[int, int, int]) -> Uncond | None:
    """The second model of `config.sampling.uncond_workdir`: its newest checkpoint, with the network of its own config.

    Raises:
      UserError: when there is none, or its images are of another shape.
    """
    workdir = config.sampling.uncond_workdir
    if not workdir:
        return None
    if not Path(workdir).is_dir():
        raise UserError(f'config.sampling.uncond_workdir={workdir} does not exist: give the workdir of a run.')
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find(-1, 'The checkpoint of step')
        meta = checkpoints.meta(step)
        _check_kind(meta, 'model', workdir)
        theirs = ConfigDict(meta['config'])
        spec = _spec_of_checkpoint(meta)
        if spec.image_shape != image_shape:
            raise UserError(
                f'config.sampling.uncond_workdir={workdir} holds a model of images {spec.image_shape}, not '
                f'{image_shape}: give one of the same shape.'
            )
        theirs.model.dtype = config.model.dtype
        network = setup.build_network(theirs, spec)
        params = checkpoints.restore_params(
            step, setup.abstract_params(network, spec), ema=config.sampling.ema or bool(meta.get('imported')), meta=meta
        )
    return Uncond(setup.make_model(theirs, network), params, theirs.train.p_uncond)


def spec_of_run(config: ConfigDict, workdir: Path) -> DataSpec:
    """The data set of a run, as the newest checkpoint knows it, so that it need not be prepared on this machine.

    Raises:
      UserError: when there is no such checkpoint, and the data set of the config is not prepared.
    """
    meta = _meta_of_data(config, workdir)
    return setup.spec_of(config) if meta is None else _spec_of_checkpoint(meta)


def names_of_run(config: ConfigDict, workdir: Path) -> tuple[str, Sequence[str]]:
    """(the name of the data set and split, those of its classes), known as in `spec_of_run`.

    Raises:
      UserError: as there.
    """
    meta = _meta_of_data(config, workdir)
    if meta is not None:
        return meta['data']['name'], meta['data']['class_names']
    source = setup.open_source(config)
    return source.name, source.class_names


def check_data(config: ConfigDict, workdir: Path) -> None:
    """Whether the real images of an evaluation are those that the run was trained on.

    Raises:
      UserError: when they were prepared from others.
    """
    meta = _meta_of_data(config, workdir)
    if meta is None:
        return
    name, before = meta['data']['name'], meta['data']['fingerprint']
    now = setup.open_source(config, name.rpartition('/')[2]).fingerprint
    if now != before:
        raise UserError(
            f'The checkpoints in {workdir} were trained on other images than those of {name} here (fingerprint '
            f'{before[:12]}, not {now[:12]}): set config.data.dir to those.'
        )


def _meta_of_data(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """What the newest checkpoint says, if it was trained on the data set of the config."""
    if not (workdir / FOLDER).is_dir():
        return None
    with Checkpoints(workdir, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        meta = checkpoints.meta(steps[-1]) if steps else {}
    same = 'data' in meta and short_name(meta['config']['data']['name']) == short_name(config.data.name)
    return meta if same else None


def _spec_of_checkpoint(meta: dict[str, Any]) -> DataSpec:
    data, seen = meta['config']['data'], meta.get('data')
    if seen is not None:
        return DataSpec(data['name'], tuple(seen['image_shape']), len(seen['class_names']))
    return data_spec(data['name'], data['image_size'], data_dir=data.get('dir', ''), crop=data.get('crop', 'area'))


def open_features(
    config: ConfigDict, workdir: Path | None, image_shape: tuple[int, int, int], what: str
) -> FeatureNetwork:
    """The feature network of a config, with the classifier of `config.eval.classifier_workdir` if there is one.

    Args:
      workdir: where the small classifier is kept.
      image_shape: (H, W, C) of the images to come.
      what: holds them, for the user.

    Raises:
      UserError: when it does not fit the images, or its weights are missing or damaged.
    """
    options = config.eval
    if options.features == 'inception':
        check_images(INCEPTION_IMAGES, image_shape, what, INCEPTION)
        network = inception(options.weights, default_cache(options.cache_dir), batch_size=options.batch_size)
    elif workdir is None:
        raise UserError('config.eval.features=small_classifier is trained and kept in a workdir: give --workdir.')
    else:
        train = setup.open_source(config, 'train')
        check_images(train.image_shape, image_shape, what, f'the small classifier of {train.name}')
        network = small_classifier(workdir / 'features', train, batch_size=options.batch_size)
    return _with_classifier(config, network, image_shape) if options.classifier_workdir else network


def _with_classifier(config: ConfigDict, network: FeatureNetwork, image_shape: tuple[int, int, int]) -> FeatureNetwork:
    """The same features, and classes of an imported noise-aware classifier, which is told that there is no noise."""
    folder = config.eval.classifier_workdir
    if not Path(folder).is_dir():
        raise UserError(f'config.eval.classifier_workdir={folder} does not exist: give the workdir of a classifier.')
    spec = DataSpec(config.data.name, image_shape, setup.spec_of(config).num_classes)
    params = load_classifier(config, Path(folder), spec)
    classifier = setup.build_classifier(config, spec)

    def classes(params, images):
        logsnr = jnp.full(len(images), config.diffusion.logsnr_max)
        return jnp.argmax(classifier.apply({'params': params}, to_float(images), logsnr), axis=1)

    run = on_devices(classes, params, batch_size=config.eval.batch_size)
    return dataclasses.replace(
        network,
        extract=lambda images: network.extract(images)._replace(classes=run(images)),
        classifier=f'imported classifier {sha256(params)[:16]}',
    )


def load_classifier(config: ConfigDict, workdir: Path, spec: DataSpec) -> Any:
    """The parameters of an imported classifier.

    Raises:
      UserError: when the workdir holds none, or one of another architecture than config.classifier.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find(-1, 'The checkpoint of step')
        meta = checkpoints.meta(step)
        _check_kind(meta, 'classifier', workdir)
        network = setup.build_classifier(config, spec)
        z = jnp.zeros((1, *spec.image_shape))
        like = jax.eval_shape(lambda: network.init(jax.random.key(0), z, jnp.zeros(1))['params'])
        return checkpoints.restore_params(step, like, ema=True, meta=meta)


def _check_kind(meta: dict[str, Any], kind: str, workdir: str | Path) -> None:
    found = meta.get('kind', 'model')
    if found != kind:
        raise UserError(f'{workdir} holds a {found}, not a {kind}: give the workdir of a {kind}.')


def check_guidable(ws: Sequence[float], p_uncond: float, uncond: Uncond | None = None) -> None:
    """Every w but 0 needs an unconditional prediction that was trained, and every w but -1 trained classes.

    Raises:
      UserError: when one of them was not.
    """
    if p_uncond == 1 and any(w != -1 for w in ws):
        raise UserError(
            'The model was trained with config.train.p_uncond=1, so its classes mean nothing: only w=-1 can be used.'
        )
    if uncond is not None and uncond.p_uncond == 0:
        raise UserError(
            'The model of config.sampling.uncond_workdir was trained with config.train.p_uncond=0, so it has no '
            'unconditional prediction: give one that was trained with dropped labels, or without any.'
        )
    if uncond is None and p_uncond == 0 and any(w != 0 for w in ws):
        raise UserError(
            'The model was trained with config.train.p_uncond=0, so its null label means nothing: only w=0 can be '
            'used, or a second model for the unconditional prediction (config.sampling.uncond_workdir).'
        )


def _check_same_model(config: dict[str, Any], trained: dict[str, Any], step: int, *, imported: bool) -> None:
    for part, names in MEANING.items():
        for name in (*names, *(MADE if part == 'data' and not imported else ())):
            # A field that an older version did not have keeps that version's behaviour.
            before = trained[part].get(name, config[part][name])
            now = config[part][name]
            if (short_name(now) != short_name(before)) if (part, name) == ('data', 'name') else now != before:
                raise UserError(
                    f'The checkpoint of step {step} was trained with config.{part}.{name}={before!r}, not '
                    f'{config[part][name]!r}: use the config that it was trained with.'
                )
