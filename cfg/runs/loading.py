"""The networks and parameters that sampling and evaluation read from workdirs."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cfg.data.prepared import short_name
from cfg.data.source import Source
from cfg.data.spec import DataSpec, data_spec
from cfg.diffusion.rules import Rule
from cfg.models.classifier import EncoderUNet
from cfg.models.flops import forward_flops, gradient_flops
from cfg.runs.checkpoints import FOLDER, Checkpoints, DamagedError
from cfg.runs.generate import binder
from cfg.runtime.digest import sha256
from cfg.runtime.errors import UserError
from cfg.settings.data import open_source, spec_of
from cfg.settings.networks import abstract_params, build_classifier, build_network
from cfg.settings.values import config_dict

# Settings that leave the shapes of the parameters as they are, but not what the parameters mean.
MEANING = {
    'model': ('num_heads', 'head_channels', 'attention_resolutions', 'norm_groups', 'time', 'label_in'),
    'diffusion': ('prediction',),
    'data': ('name',),
}
# How the images were made: an imported network was trained elsewhere, and nothing is known of that.
MADE = ('image_size', 'crop')


@dataclass(frozen=True)
class Companion:
    """A network beside the one that is guided.

    Attributes:
      network: parameters -> what `cfg.diffusion.denoiser.Models` holds, as `cfg.runs.generate.Generator` takes it.
      params: on the host.
      p_uncond: with which it was trained; None of a classifier.
      flops: of one evaluation for one image, of a classifier forth and back.
    """

    network: Any
    params: Any
    p_uncond: float | None
    flops: float

    @functools.cached_property
    def sha256(self) -> str:
        """Of the parameters; worked out once, as they may be gigabytes."""
        return sha256(self.params)


# By the fields of `cfg.diffusion.denoiser.Models`.
Companions = dict[str, Companion]


def params_of(companions: Companions) -> dict[str, Any]:
    """The parameters alone."""
    return {name: it.params for name, it in companions.items()}


def networks_of(companions: Companions) -> dict[str, Any]:
    """The networks alone."""
    return {name: it.network for name, it in companions.items()}


def find_checkpoints(config: ConfigDict, workdir: Path, steps: Sequence[int]) -> dict[int, float]:
    """{step: the p_uncond that it was trained with} of the checkpoints asked for, in that order; reads no parameters.

    Raises:
      UserError: when a checkpoint is missing, or was trained with another network or prediction than the config's, or
        not on all of its noise levels.
    """
    found = {}
    with Checkpoints(workdir, read_only=True) as checkpoints:
        # A workdir of another kind has other steps, too, but that is not what is wrong with it.
        with contextlib.suppress(DamagedError):
            _check_kind(checkpoints.meta(checkpoints.find(-1, 'The checkpoint of step')), 'model', workdir)
        for wanted in steps:
            step = checkpoints.find(wanted, 'The checkpoint of step')
            meta = checkpoints.meta(step)
            _check_kind(meta, 'model', workdir)
            trained = meta['config']
            _check_same_model(config_dict(config), trained, step, imported=bool(meta.get('imported')))
            _check_levels(config, trained['diffusion'], f'The checkpoint of step {step}')
            found[step] = trained['train']['p_uncond']
    return found


def load_params(workdir: Path, step: int, like: Any, *, ema: bool) -> Any:
    """The parameters of a checkpoint, or their average.

    Raises:
      UserError: when it is of another architecture than `like`, or damaged.
    """
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return checkpoints.restore_params(step, like, ema=ema)


class CompanionCache:
    """The networks beside the model that guidance rules need, each read once.

    Args:
      workdir: of the model that is guided; a weaker model is one of its checkpoints unless a rule says otherwise.
      spec: its images and classes.
    """

    def __init__(self, config: ConfigDict, workdir: Path, spec: DataSpec | Source):
        self._config, self._workdir, self._spec = config, workdir, spec
        self._found: dict[tuple, Companion] = {}

    def open(self, rule: Rule, *, ema: bool) -> Companions:
        """Those of a rule: `config.sampling.uncond_workdir`, if it is set and the rule compares with an unconditional
        prediction; the weaker model of autoguidance; the classifier.

        Args:
          ema: whether models are read with their averaged parameters, as the one that is guided.

        Raises:
          UserError: when one does not exist, or does not fit the model.
        """
        found, uncond = {}, self._config.sampling.uncond_workdir
        if uncond and rule.compares_with_null:
            found['uncond'] = self._once(_open_model, uncond, -1, ema, 'config.sampling.uncond_workdir', False)
        if rule.name == 'autoguidance':
            folder, step = rule.workdir, rule.step
            if not folder and step == -1:
                raise UserError(
                    "The guidance 'autoguidance' does not say which model is the weaker one: "
                    "'autoguidance(step=100)' is an earlier checkpoint of this run, and "
                    '\'autoguidance(workdir="runs/small")\' another run.'
                )
            folder = folder or str(self._workdir)
            found['weaker'] = self._once(_open_model, folder, step, ema, "The guidance 'autoguidance': workdir", True)
        if rule.name == 'classifier':
            found['classifier'] = self._once(_open_classifier, rule.workdir)
        return found

    def _once(self, opening: Callable[..., Companion], *what: Any) -> Companion:
        key = (opening, *what)
        if key not in self._found:
            self._found[key] = opening(self._config, self._spec, *what)
        return self._found[key]


def _open_model(
    config: ConfigDict, spec: DataSpec | Source, workdir: str, step: int, ema: bool, what: str, labelled: bool
) -> Companion:
    """A checkpoint of another run, with the network of its own config.

    Args:
      what: names the folder, for the user.
      labelled: whether it is asked for labels, and not only for the unconditional prediction.
    """
    image_shape = tuple(spec.image_shape)
    if not Path(workdir).is_dir():
        raise UserError(f'{what}={workdir} does not exist: give the workdir of a run.')
    with _checkpoint_of(workdir, step, 'model') as (checkpoints, step, meta):
        theirs, their_spec = ConfigDict(meta['config']), _spec_of_checkpoint(meta)
        if tuple(their_spec.image_shape) != image_shape:
            raise UserError(
                f'{what}={workdir} holds a model of images {their_spec.image_shape}, not {image_shape}: give one of '
                'the same shape.'
            )
        _check_levels(config, theirs.diffusion, f'{what}={workdir}', 'another model')
        crop = theirs.data.get('crop', config.data.crop)
        if crop != config.data.crop and not meta.get('imported'):
            raise UserError(
                f'{what}={workdir} was trained with config.data.crop={crop!r}, not {config.data.crop!r}: give one of '
                'the same images.'
            )
        if labelled and (
            short_name(theirs.data.name) != short_name(config.data.name) or their_spec.num_classes != spec.num_classes
        ):
            raise UserError(
                f'{what}={workdir} holds a model of {theirs.data.name} with {their_spec.num_classes} classes, not of '
                f'{config.data.name} with {spec.num_classes}: give one of the same classes.'
            )
        if labelled and theirs.train.p_uncond == 1:
            raise UserError(
                f'{what}={workdir} was trained with config.train.p_uncond=1, so its classes mean nothing: give another.'
            )
        theirs.model.dtype = config.model.dtype
        network = build_network(theirs, their_spec)
        like = abstract_params(network, their_spec)
        params = checkpoints.restore_params(step, like, ema=ema or bool(meta.get('imported')), meta=meta)
    return Companion(
        binder(network, theirs.diffusion.prediction), params, theirs.train.p_uncond, forward_flops(network, image_shape)
    )


def _open_classifier(config: ConfigDict, spec: DataSpec | Source, workdir: str) -> Companion:
    """Opens a classifier of noisy images, with which a rule guides."""
    if not workdir:
        raise UserError("The guidance 'classifier' does not say which one: 'classifier(workdir=\"runs/classifier\")'.")
    found = open_classifier(config, workdir, spec.image_shape, spec.num_classes)

    def logits(params, z, logsnr):
        return found.logits_fn(params)(z, logsnr)

    return Companion(found.logits_fn, found.params, None, gradient_flops(logits, found.params, spec.image_shape))


def config_of_run(workdir: Path) -> dict[str, Any] | None:
    """The config that the newest checkpoint was trained with; None where there is no checkpoint."""
    if not (workdir / FOLDER).is_dir():
        return None
    with Checkpoints(workdir, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        return checkpoints.meta(steps[-1])['config'] if steps else None


def spec_of_run(config: ConfigDict, workdir: Path) -> DataSpec:
    """The data set of a run, as the newest checkpoint knows it, so that it need not be prepared on this machine.

    Raises:
      UserError: when there is no such checkpoint, and the data set of the config is not prepared.
    """
    meta = _meta_of_data(config, workdir)
    return spec_of(config) if meta is None else _spec_of_checkpoint(meta)


def names_of_run(config: ConfigDict, workdir: Path) -> tuple[str, Sequence[str]]:
    """(the name of the data set and split, those of its classes), known as in `spec_of_run`.

    Raises:
      UserError: as there.
    """
    meta = _meta_of_data(config, workdir)
    if meta is not None:
        return meta['data']['name'], meta['data']['class_names']
    source = open_source(config)
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
    now = open_source(config, name.rpartition('/')[2]).fingerprint
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


@dataclass(frozen=True)
class Classifier:
    """A classifier of noisy images.

    Attributes:
      network: of its own config.
      params: averaged (imported ones are as they were), on the host.
      logsnr_min, logsnr_max: the noise levels that it was trained on.
      imported: whether it came from ADM's code.
    """

    network: EncoderUNet
    params: Any
    logsnr_min: float
    logsnr_max: float
    imported: bool

    def logits_fn(self, params: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(z [N, H, W, C], logsnr [] or [N]) -> logits [N, num_classes], log p(c | z) up to a constant of z.

        Args:
          params: its parameters where they are used, such as a device's copy of `self.params`.
        """
        return lambda z, logsnr: self.network.apply({'params': params}, z, logsnr)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the parameters; worked out once, as they may be gigabytes."""
        return sha256(self.params)


def open_classifier(
    config: ConfigDict, workdir: str | Path, image_shape: tuple[int, int, int], num_classes: int
) -> Classifier:
    """The classifier that guides the model of a config, trained or imported; see `read_classifier`.

    Raises:
      UserError: as there, and when the model is sampled at noise levels that the classifier was not trained on.
    """
    classifier = read_classifier(config, workdir, image_shape, num_classes)
    levels = {'logsnr_min': classifier.logsnr_min, 'logsnr_max': classifier.logsnr_max}
    _check_levels(config, levels, f'The classifier of {workdir}', 'another classifier')
    return classifier


def read_classifier(
    config: ConfigDict, workdir: str | Path, image_shape: tuple[int, int, int], num_classes: int
) -> Classifier:
    """The newest checkpoint of a classifier, with the network of its own config.

    Only the data set and `model.dtype` are those of `config`.

    Args:
      workdir: of a classifier, trained or imported.
      image_shape: (H, W, C) of the images that it will see.
      num_classes: of their labels.

    Raises:
      UserError: when the workdir holds no classifier, or one of other images or classes.
    """
    if not Path(workdir).is_dir():
        raise UserError(f'{workdir} does not exist: give the workdir of a classifier.')
    with _checkpoint_of(workdir, -1, 'classifier') as (checkpoints, step, meta):
        theirs, spec = ConfigDict(meta['config']), _spec_of_checkpoint(meta)
        imported = bool(meta.get('imported'))
        same = short_name(theirs.data.name) == short_name(config.data.name)
        same &= imported or theirs.data.crop == config.data.crop
        if not same or (spec.image_shape, spec.num_classes) != (tuple(image_shape), num_classes):
            raise UserError(
                f'{workdir} holds a classifier of {_describe(theirs, spec.image_shape, spec.num_classes)}, not of '
                f'{_describe(config, image_shape, num_classes)}: give one of the same data.'
            )
        theirs.model.dtype = config.model.dtype
        theirs.train.remat = False
        theirs.classifier.dropout = 0.0  # nothing is dropped here, and older versions had no such field
        network = build_classifier(theirs, spec)
        params = checkpoints.restore_params(step, abstract_params(network, spec), ema=True, meta=meta)
    limits = theirs.diffusion.logsnr_min, theirs.diffusion.logsnr_max
    return Classifier(network, params, *limits, imported=imported)


@contextlib.contextmanager
def _checkpoint_of(workdir: str | Path, step: int, kind: str) -> Iterator[tuple[Checkpoints, int, dict[str, Any]]]:
    """(checkpoints of a run, a step of them, its meta), of a run of that kind; -1 is the newest step."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        step = checkpoints.find(step, 'The checkpoint of step')
        meta = checkpoints.meta(step)
        _check_kind(meta, kind, workdir)
        yield checkpoints, step, meta


def _describe(config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int) -> str:
    data = config.data
    return f'{data.name} (images {tuple(image_shape)}, {num_classes} classes, crop {data.crop})'


def _check_levels(config: ConfigDict, trained: Mapping[str, Any] | ConfigDict, what: str, instead: str = '') -> None:
    """Whether the noise levels of a config are among those that a network was trained on.

    Args:
      trained: `diffusion` of the network's own config.
      what: names the network, for the user.
      instead: what may be given in its place.
    """
    ours, theirs = ((part['logsnr_min'], part['logsnr_max']) for part in (config.diffusion, trained))
    if ours[0] < theirs[0] or ours[1] > theirs[1]:
        raise UserError(
            f'{what} was trained on logsnr from {theirs[0]:g} to {theirs[1]:g}, and the model is sampled from '
            f'{ours[0]:g} to {ours[1]:g}: set config.diffusion.logsnr_min and logsnr_max within its range'
            f'{f", or give {instead}" if instead else ""}.'
        )


def _check_kind(meta: dict[str, Any], kind: str, workdir: str | Path) -> None:
    found = meta.get('kind', 'model')
    if found != kind:
        raise UserError(f'{workdir} holds a {found}, not a {kind}: give the workdir of a {kind}.')


def check_guidable(ws: Sequence[float], p_uncond: float, rule: Rule, uncond: Companion | None = None) -> None:
    """Whether the predictions that a rule compares were all trained.

    Args:
      p_uncond: with which the model was trained: 0 leaves its null label without meaning, and 1 its classes.
      rule: the guidance.
      uncond: a second model for the unconditional prediction.

    Raises:
      UserError: when one of them was not.
    """
    conditional, unconditional = (any(asked) for asked in zip(*map(rule.asks_for, ws), strict=True))
    if p_uncond == 1 and conditional:
        raise UserError(
            'The model was trained with config.train.p_uncond=1, so its classes mean nothing: only w=-1 can be used, '
            'or config.sampling.guidance=\'classifier(model="unconditional", workdir=...)\'.'
        )
    if uncond is not None and uncond.p_uncond == 0:
        raise UserError(
            'The model of config.sampling.uncond_workdir was trained with config.train.p_uncond=0, so it has no '
            'unconditional prediction: give one that was trained with dropped labels, or without any.'
        )
    if uncond is None and p_uncond == 0 and unconditional:
        raise UserError(
            'The model was trained with config.train.p_uncond=0, so its null label means nothing: only w=0 can be '
            'used, or a second model for the unconditional prediction (config.sampling.uncond_workdir), or a rule '
            f'that needs none (config.sampling.guidance=\'cfg(against="random")\'), not {rule.text!r}.'
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
