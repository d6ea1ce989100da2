"""A trained network of a workdir: what its checkpoint says of it, its parameters, and what they may be used for."""

import contextlib
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfg.data.manifest import short_name
from cfg.data.source import Source
from cfg.data.spec import DataSpec, data_spec
from cfg.diffusion.sampler import Sampler
from cfg.models.classifier import EncoderUNet
from cfg.models.flops import forward_flops, gradient_flops
from cfg.models.unet import UNet
from cfg.runs.checkpoints import Checkpoints, check_shapes
from cfg.runs.generate import binder
from cfg.runs.posthoc import Reconstruction, reconstruct
from cfg.runs.run_files import (
    CHECKPOINTS,
    MERGED_FILE,
    DamagedError,
    checkpoint_meta,
    checkpoint_steps,
    find_step,
)
from cfg.runtime.errors import UserError
from cfg.runtime.paths import user_path
from cfg.settings.data import open_source
from cfg.settings.networks import BUILDERS, abstract_params, build_network
from cfg.settings.values import config_dict

# Settings that leave the shapes of the parameters as they are, but not what the parameters mean.
MEANING = (
    *(('model', name) for name in ('num_heads', 'head_channels', 'attention_resolutions', 'norm_groups')),
    *(('model', name) for name in ('time', 'label_in')),
    ('train', 'kind'),
    ('diffusion', 'prediction'),
    ('data', 'name'),
    ('data', 'augment'),
)
# How the images were made: an imported network was trained elsewhere, and nothing is known of that.
MADE = (('data', 'image_size'), ('data', 'crop'))


@dataclass(frozen=True)
class TrainedRun:
    """The network of a workdir with the parameters of one of its checkpoints, which stay on disk until `params`."""

    workdir: Path  # where the checkpoints are
    step: int  # of the checkpoint
    ema: bool  # whether its parameters are the averaged ones; imported networks beside another have no others
    meta: dict[str, Any]  # what the checkpoint says of itself, see `cfg.runs.checkpoints`
    spec: DataSpec  # the images and classes that it was trained on
    network: UNet | EncoderUNet  # a model, or a classifier of noisy images
    name: str  # what the user calls it
    average: Reconstruction | None = None  # in the place of the checkpoint's own parameters

    @classmethod
    def of_config(
        cls,
        config: ConfigDict,
        workdir: Path,
        step: int = -1,
        *,
        ema: bool | None = None,
        ema_length: float | None = None,
    ) -> 'TrainedRun':
        """Opens the model of a config in a workdir, at a step or the newest (-1); reads no parameters.

        Args:
          ema: whether to use the averaged parameters; None for what `config.sampling.ema` says.
          ema_length: of their average; 0 for that by `config.train.ema_decay`, None for what `config.sampling` says.

        Raises:
          UserError: when there is no such checkpoint, or it was trained with another network or prediction than the
            config's, or not on all of its noise levels, or the run holds no averages of which to make one so long.
        """
        step, meta = _find(workdir, step, 'model')
        name = f'The checkpoint of step {step}'
        _check_same_model(config, meta, name, MEANING if meta.get('imported') else (*MEANING, *MADE))
        folder, spec = (workdir / CHECKPOINTS / str(step)).absolute(), _spec(meta)
        ema = config.sampling.ema if ema is None else ema
        length = config.sampling.ema_length if ema_length is None else ema_length
        average = reconstruct(workdir, step, length) if ema and length else None
        run = cls(workdir, step, ema, meta, spec, build_network(config, spec), name, average)
        if run.imported and not ema:
            raise UserError(f'{folder} was imported and has one set of parameters: use config.sampling.ema=True.')
        check_shapes(folder, meta, abstract_params(run.network, spec))
        run.check_levels(config)
        return run

    @classmethod
    def beside(
        cls, config: ConfigDict, workdir: str | Path, step: int = -1, *, what: str, kind: str, ema: bool = True
    ) -> 'TrainedRun':
        """Opens another network than the config's, as its own config says, computed as `config` says.

        Args:
          step: of the checkpoint; -1 for the newest.
          what: names the folder to the user.
          kind: 'model' or 'classifier'.
          ema: whether to use the averaged parameters, where it has others.

        Raises:
          UserError: when the workdir does not exist or holds nothing of that kind.
        """
        workdir = Path(user_path(workdir, what))  # a rule's is part of a text
        if not workdir.is_dir():
            raise UserError(f'{what}={workdir} does not exist: give the workdir of a {kind}.')
        step, meta = _find(workdir, step, kind)
        theirs, spec = ConfigDict(meta['config']), _spec(meta)
        theirs.model.dtype, theirs.model.attention = config.model.dtype, config.model.attention
        theirs.train.remat = False
        network = BUILDERS[kind](theirs, spec)
        ema = ema or bool(meta.get('imported'))
        return cls(workdir, step, ema, meta, spec, network, f'{what}={workdir}')

    @property
    def kind(self) -> str:
        """Returns 'model' or 'classifier'."""
        return self.meta['kind']

    @property
    def config(self) -> dict[str, Any]:
        """Returns the config that it was trained with."""
        return self.meta['config']

    @property
    def imported(self) -> bool:
        """Tells whether the run came from ADM's code."""
        return bool(self.meta.get('imported'))

    @property
    def p_uncond(self) -> float:
        """Returns the share of null labels in the training of a model."""
        return self.config['train']['p_uncond']

    @property
    def student_steps(self) -> int:
        """Returns how many steps a student learned, on the grid 'nested'; 0 where it knows all levels."""
        return self.config['train'].get('student_steps', 0) if self.config['train']['kind'] == 'student' else 0

    @property
    def student_sampler(self) -> str:
        """Returns the sampler whose steps a student learned."""
        return self.config['train'].get('student_sampler', 'ddim')

    def warnings(self, w: float, sampler: Sampler | None = None) -> tuple[str, ...]:
        """Returns sentences on what a network that takes w did not learn: that w, or the levels of a sampler."""
        found, train, steps = [], self.config['train'], self.student_steps
        taken = sampler and (sampler.solver.text, sampler.grid.text, sampler.num_steps)
        if getattr(self.network, 'takes_w', False) and not train['w'][0] <= w <= train['w'][1]:
            low, high = train['w']
            found.append(f'w = {w:g} is outside the range {low:g} to {high:g} that the network learned.')
        learned = self.student_sampler
        if steps and taken and taken != (learned, 'nested', steps):
            found.append(
                f'The network learned {counted(steps)} of {learned} on the grid nested, and here takes others.'
            )
        return tuple(found)

    @property
    def logsnr_max(self) -> float:
        """Returns the least noise that it was trained on."""
        return self.config['diffusion']['logsnr_max']

    @property
    def sha256(self) -> str:
        """Returns the digest of the parameters as they were saved; `params` sees to it that they still are."""
        return self.average.sha256 if self.average else self.meta['sha256']['ema_params' if self.ema else 'params']

    @property
    def flops(self) -> float:
        """Returns the arithmetic of one evaluation for one image, of a classifier forth and back."""
        return _flops(self.network, tuple(self.spec.image_shape))

    def params(self) -> Any:
        """Reads the parameters, onto the host.

        Raises:
          UserError: when they are damaged or gone.
        """
        if self.average:
            return self.average.params()
        with Checkpoints(self.workdir, read_only=True) as checkpoints:
            return checkpoints.restore_params(self.step, ema=self.ema)

    def bind(self, params: Any) -> Any:
        """Returns the network with these parameters, as a field of `cfg.diffusion.denoiser.Models` holds it.

        A model becomes a `Denoiser`; a classifier a function (z [N, H, W, C], logsnr [] or [N]) -> [N, num_classes],
        log p(c | z) up to a constant of z.

        Args:
          params: where they are used, such as a device's copy of `params()`.
        """
        if self.kind == 'classifier':
            return functools.partial(self.network.apply, {'params': params})
        return binder(self.network, self.config['diffusion']['prediction'])(params)

    def check_levels(self, config: ConfigDict) -> None:
        """Checks that it was trained on all noise levels at which a config samples."""
        ours, theirs = ((it['logsnr_min'], it['logsnr_max']) for it in (config.diffusion, self.config['diffusion']))
        if ours[0] < theirs[0] or ours[1] > theirs[1]:
            raise UserError(
                f'{self.name} was trained on logsnr from {theirs[0]:g} to {theirs[1]:g}, and the model is sampled from '
                f'{ours[0]:g} to {ours[1]:g}: set config.diffusion.logsnr_min and logsnr_max within its range, or '
                f'give another {self.kind}.'
            )

    def check_same_network(self, config: ConfigDict, source: DataSpec | Source) -> None:
        """Checks that the parameters of a model mean the same in the network of a config, but for an input w."""
        _check_same_model(config, self.meta, self.name, [field for field in MEANING if field != ('train', 'kind')])
        own = build_network(config, source).clone(takes_w=self.network.takes_w)
        check_shapes((self.workdir / CHECKPOINTS / str(self.step)).absolute(), self.meta, abstract_params(own, source))

    def check_images(
        self, config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int, *, labelled: bool = True
    ) -> None:
        """Checks that it was trained on images such as those of a config, and on their labels.

        Args:
          image_shape: (H, W, C) of the images that it will see.
          num_classes: of their labels.
          labelled: whether labels matter, and not only unconditional predictions.
        """
        ours = config.data.name, tuple(image_shape), num_classes
        theirs = self.config['data']['name'], tuple(self.spec.image_shape), self.spec.num_classes
        same = theirs[1] == ours[1]
        if not labelled and not same:
            raise UserError(
                f'{self.name} holds a {self.kind} of images {theirs[1]}, not {ours[1]}: give one of the same shape.'
            )
        if labelled and not (same and theirs[2] == ours[2] and short_name(theirs[0]) == short_name(ours[0])):
            theirs, ours = ('{} (images {}, {} classes)'.format(*it) for it in (theirs, ours))
            raise UserError(f'{self.name} holds a {self.kind} of {theirs}, not of {ours}: give one of the same data.')
        crop = self.config['data']['crop']
        if crop != config.data.crop and not self.imported:
            raise UserError(
                f'{self.name} was trained with config.data.crop={crop!r}, not {config.data.crop!r}: give one of the '
                'same images.'
            )
        if labelled and self.kind == 'model' and self.p_uncond == 1:
            raise UserError(
                f'{self.name} was trained with config.train.p_uncond=1, so its classes mean nothing: give another.'
            )

    def check_data(self, config: ConfigDict) -> None:
        """Checks that the data set of a config here is the one that the network was trained on."""
        if 'data' not in self.meta:  # imported
            return
        name, before = self.meta['data']['name'], self.meta['data']['fingerprint']
        now = open_source(config, name.rpartition('/')[2]).fingerprint
        if now != before:
            raise UserError(
                f'The checkpoints in {self.workdir} were trained on other images than those of {name} here '
                f'(fingerprint {before[:12]}, not {now[:12]}): set config.data.dir to those.'
            )


def counted(steps: int) -> str:
    """Returns a number of steps in words."""
    return f'{steps} step{"s" * (steps != 1)}'


def newest_meta(workdir: Path) -> dict[str, Any] | None:
    """Returns what the newest checkpoint says of itself, or of merged runs one of theirs; None where there is none."""
    if steps := checkpoint_steps(workdir):
        return checkpoint_meta(workdir, steps[-1])
    merged = workdir / MERGED_FILE
    return json.loads(merged.read_bytes()) if merged.exists() else None


def read_names(config: ConfigDict, workdir: Path) -> tuple[str, Sequence[str]]:
    """Returns the name of the data set and split, and those of its classes.

    They are those of the newest checkpoint, so that the data set need not be prepared on this machine.

    Raises:
      UserError: when no checkpoint is of the config's data set, and that is not prepared.
    """
    meta = newest_meta(workdir) or {}
    if 'data' in meta and short_name(meta['config']['data']['name']) == short_name(config.data.name):
        return meta['data']['name'], meta['data']['class_names']
    source = open_source(config)
    return source.name, source.class_names


def _find(workdir: Path, step: int, kind: str) -> tuple[int, dict[str, Any]]:
    """Finds a checkpoint in a workdir of that kind: its step (the newest for -1), and what it says of itself."""
    # A workdir of another kind has other steps, too, but that is not what is wrong with it.
    newest = find_step(workdir, -1)
    with contextlib.suppress(DamagedError):
        _check_kind(checkpoint_meta(workdir, newest), kind, workdir)
    step = find_step(workdir, step)
    meta = checkpoint_meta(workdir, step)
    _check_kind(meta, kind, workdir)
    return step, meta


def _check_kind(meta: dict[str, Any], kind: str, workdir: Path) -> None:
    if meta['kind'] != kind:
        raise UserError(f'{workdir} holds a {meta["kind"]}, not a {kind}: give the workdir of a {kind}.')


def _check_same_model(config: ConfigDict, meta: dict[str, Any], what: str, fields: Iterable[tuple[str, str]]) -> None:
    config = config_dict(config)
    for part, name in fields:
        now = config[part][name]
        before = meta['config'][part].get(name, now)  # a field that is newer says nothing
        if (short_name(now) != short_name(before)) if (part, name) == ('data', 'name') else now != before:
            raise UserError(
                f'{what} was trained with config.{part}.{name}={before!r}, not {now!r}: use the config that it was '
                'trained with.'
            )


def _spec(meta: dict[str, Any]) -> DataSpec:
    """Returns the images and classes that a network was trained on; imported ones know no more than their config."""
    data, seen = meta['config']['data'], meta.get('data')
    if seen is not None:
        return DataSpec(data['name'], tuple(seen['image_shape']), len(seen['class_names']))
    return data_spec(data['name'], data['image_size'], data_dir=data['dir'], crop=data['crop'])


@functools.lru_cache(maxsize=8)  # a sweep asks for every row, and a large network takes seconds to trace
def _flops(network: UNet | EncoderUNet, image_shape: tuple[int, int, int]) -> float:
    if isinstance(network, UNet):
        return forward_flops(network, image_shape)
    params = abstract_params(network, DataSpec('', image_shape, network.num_classes))
    return gradient_flops(lambda params, *inputs: network.apply({'params': params}, *inputs), params, image_shape)
