"""The teacher of a student: a trained model, its guidance, and its parameters on the devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from ml_collections import ConfigDict

from cfg.data.source import Source
from cfg.diffusion.denoiser import Models
from cfg.diffusion.sampler import Sampler, parse_rule
from cfg.runs.companions import Networks, check_guidable, on_devices, open_companions
from cfg.runs.trained import TrainedRun
from cfg.runtime.errors import UserError


@dataclass(frozen=True)
class Teacher:
    """A teacher is a guided model, whose predictions a student learns."""

    networks: Networks  # the model, and what its rule needs beside it
    sampler: Sampler  # says its rule
    params: Any  # of the networks, replicated over the devices

    def bind(self, params: Mapping[str, Any]) -> Models:
        """Returns the networks with these parameters."""
        return Models(**{name: run.bind(params[name]) for name, run in self.networks.items()})

    @property
    def sha256(self) -> dict[str, str]:
        """Returns the digests of the parameters of each network."""
        return {name: run.sha256 for name, run in self.networks.items()}


def open_teacher(config: ConfigDict, source: Source) -> Teacher:
    """Opens the teacher that a config names, with its averaged parameters.

    Raises:
      UserError: when there is none, it was trained on other images or fewer noise levels, or its guidance needs what it
        was not trained for.
    """
    options, what = config.train, 'config.train.teacher_workdir'
    if not options.teacher_workdir:
        raise UserError(f"{what} is not set: config.train.kind='student' needs the workdir of a trained model.")
    model = TrainedRun.beside(config, options.teacher_workdir, options.teacher_step, what=what, kind='model')
    model.check_images(config, source.image_shape, source.num_classes)
    model.check_levels(config)
    rule = parse_rule(options.teacher_guidance, 'train.teacher_guidance')
    companions = open_companions(config, model, rule)
    check_guidable(rule.w or tuple(options.w), model, rule, companions)
    limits = {'logsnr_min': config.diffusion.logsnr_min, 'logsnr_max': config.diffusion.logsnr_max}
    networks = {'model': model} | companions
    return Teacher(networks, Sampler(rule=rule, clip_x=False, **limits), on_devices(networks))


def taught(params: Any, teacher: Teacher) -> Any:
    """Returns the initial parameters of a student: its teacher's, and what tells it w as in `params`.

    Raises:
      UserError: when the teacher is another network.
    """
    model = teacher.networks['model']
    theirs = model.params()
    shapes, own = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (theirs, {name: params[name] for name in params if name in theirs or not name.startswith('w_')})
    )
    different = [name for name in sorted(shapes.keys() | own.keys()) if shapes.get(name) != own.get(name)]
    if different:
        raise UserError(
            f'{model.name} is another network than that of config.model: {different[0]} is '
            f'{shapes.get(different[0], "missing")} there, and {own.get(different[0], "missing")} here. A student has '
            "its teacher's network: set config.model and config.diffusion.prediction as in its config.json."
        )
    return params | theirs
