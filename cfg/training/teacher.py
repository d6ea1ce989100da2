"""The teacher of a student: a trained model, its guidance, and its parameters on the devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from cfg.data.source import Source
from cfg.diffusion.denoiser import Models
from cfg.diffusion.sampler import Sampler, parse_rule, parse_solver
from cfg.runs.companions import Networks, check_guidable, on_devices, open_companions
from cfg.runs.trained import TrainedRun, counted
from cfg.runtime.errors import UserError
from cfg.settings.values import require


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

    def check_same(self, sha256: Mapping[str, str]) -> None:
        """Checks that the digests are those of the first process, so that all processes learn the same."""
        if self.sha256 != sha256:
            model = self.networks['model']
            raise UserError(
                f'{model.name} holds another checkpoint of step {model.step} here than for process 0: give a folder '
                'that all processes see, and the step (config.train.teacher_step) if that run still trains.'
            )


def open_teacher(config: ConfigDict, source: Source) -> Teacher:
    """Opens the teacher that a config names, with its averaged parameters.

    Raises:
      UserError: when there is none, it is another network or was trained on other images or fewer noise levels, or
        is asked for what it was not trained for.
    """
    options, what = config.train, 'config.train.teacher_workdir'
    if not options.teacher_workdir:
        raise UserError(f"{what} is not set: config.train.kind='student' needs the workdir of a trained model.")
    model = TrainedRun.beside(config, options.teacher_workdir, options.teacher_step, what=what, kind='model')
    model.check_images(config, source.image_shape, source.num_classes)
    model.check_levels(config)
    model.check_same_network(config, source)
    rule = parse_rule(options.teacher_guidance, 'train.teacher_guidance')
    words = 'a rule that changes the prediction and not the noise, without w, of which config.train.w tells'
    require(not (rule.renoises or rule.scales_noise or rule.w), 'train.teacher_guidance', rule.text, words)
    words = 'a rule that a single evaluation shows, as a student learns from each alone'
    require(not rule.remembers, 'train.teacher_guidance', rule.text, words)
    words = 'a rule without anneal_label, whose noise a student is not told'
    require(rule.anneal_label is None, 'train.teacher_guidance', rule.text, words)
    companions = open_companions(config, model, rule)
    check_guidable(tuple(options.w), model, rule, companions)
    _check_learned(config, model)
    limits = {'logsnr_min': config.diffusion.logsnr_min, 'logsnr_max': config.diffusion.logsnr_max}
    networks = {'model': model} | companions
    return Teacher(networks, Sampler(rule=rule, clip_x=False, **limits), on_devices(networks))


def _check_learned(config: ConfigDict, model: TrainedRun) -> None:
    """Checks that a teacher which takes w itself learned the strengths, and a student of few steps the levels."""
    options, steps = config.train, model.student_steps
    for w in options.w:
        if outside := model.warnings(w):
            raise UserError(f'{model.name}: {outside[0]} Set config.train.w within it.')
    if not steps:
        return
    theirs, ours = (parse_solver(of).reach for of in (model.student_sampler, options.student_sampler))
    halved, odd = divmod(steps * ours, 2 * theirs)  # so many steps are half as many as the teacher's, or as long
    if odd or halved != options.student_steps:
        which = 'which no other halves' if odd else f'so its own has config.train.student_steps={halved}'
        raise UserError(
            f'{model.name} is a student of {counted(steps)} of {model.student_sampler}, {which} with '
            f'student_sampler={options.student_sampler!r}, and not {options.student_steps}: give another teacher or '
            'number.'
        )
    theirs, ours = ((it['logsnr_min'], it['logsnr_max']) for it in (model.config['diffusion'], config.diffusion))
    if theirs != ours:
        raise UserError(
            '{} learned the levels from {:g} to {:g}, not from {:g} to {:g}: set config.diffusion.logsnr_min and '
            'logsnr_max as there.'.format(model.name, *theirs, *ours)
        )


def taught(params: Any, teacher: Teacher) -> Any:
    """Returns the initial parameters of a student: its teacher's, and what tells it w as in `params`."""
    return params | teacher.networks['model'].params()
