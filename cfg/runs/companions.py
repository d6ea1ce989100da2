"""The networks of a sampler: the model, what its rule needs beside it, and whether what is compared was trained."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cfg.diffusion.rules.base import Rule
from cfg.diffusion.sampler import Sampler
from cfg.runs.generate import Generator
from cfg.runs.trained import TrainedRun
from cfg.runtime import parallel
from cfg.runtime.errors import UserError

Networks = dict[str, TrainedRun]  # by the fields of `cfg.diffusion.denoiser.Models`


def make_generator(config: ConfigDict, networks: Networks, sampler: Sampler) -> Generator:
    """Returns what draws samples over the devices of all processes; it takes what `on_devices` gives."""
    return Generator(
        {name: run.bind for name, run in networks.items()},
        sampler,
        image_shape=networks['model'].spec.image_shape,
        batch_size=config.sampling.batch_size,
        rounding=config.sampling.rounding,
        shared=True,
    )


def on_devices(networks: Networks) -> dict[str, Any]:
    """Reads the parameters of networks onto all devices; see `TrainedRun.params`."""
    return parallel.replicate({name: run.params() for name, run in networks.items()})


def open_companions(config: ConfigDict, model: TrainedRun, rule: Rule) -> Networks:
    """Opens the networks that a rule needs beside the model; reads no parameters.

    'uncond' is `config.sampling.uncond_workdir`, if it is set and the rule compares with an unconditional prediction;
    'weaker' the model of autoguidance, by default a checkpoint of the run itself; 'classifier' that of the rule.

    Args:
      model: what is guided; the others are read with averaged parameters where it is.

    Raises:
      UserError: when one does not exist, or does not fit the model.
    """
    uncond, found = config.sampling.uncond_workdir, {}
    if uncond and rule.compares_with_null:
        what = 'config.sampling.uncond_workdir'
        found['uncond'] = TrainedRun.beside(config, uncond, what=what, kind='model', ema=model.ema)
    if rule.name == 'autoguidance':
        if not rule.workdir and rule.step == -1:
            raise UserError(
                "The guidance 'autoguidance' does not say which model is the weaker one: 'autoguidance(step=100)' is "
                'an earlier checkpoint of this run, and \'autoguidance(workdir="runs/small")\' another run.'
            )
        folder, what = rule.workdir or model.workdir, "The guidance 'autoguidance': workdir"
        found['weaker'] = TrainedRun.beside(config, folder, rule.step, what=what, kind='model', ema=model.ema)
    if rule.name == 'classifier':
        if not rule.workdir:
            raise UserError(
                "The guidance 'classifier' does not say which one: 'classifier(workdir=\"runs/classifier\")'."
            )
        what = "The guidance 'classifier': workdir"
        found['classifier'] = TrainedRun.beside(config, rule.workdir, what=what, kind='classifier')
    for name, run in found.items():
        run.check_images(config, model.spec.image_shape, model.spec.num_classes, labelled=name != 'uncond')
        run.check_levels(config)
        if getattr(run.network, 'takes_w', False):
            raise UserError(f'{run.name} takes w as an input, so nothing compares with it: give a model without.')
    return found


def check_guidable(ws: Sequence[float], model: TrainedRun, rule: Rule, companions: Networks) -> None:
    """Checks that the predictions that a rule compares at these w were all trained.

    p_uncond = 0 leaves the null label of a model without meaning, and 1 its classes. A network that takes w as an input
    is guided by that alone.
    """
    p_uncond, one_pass = model.p_uncond, rule.name == 'one_pass'
    if one_pass is not model.network.takes_w:
        takes = 'takes w as an input, so its guidance is' if model.network.takes_w else 'takes no w, so it cannot be'
        raise UserError(f"{model.name} {takes} 'one_pass' (config.sampling.guidance, config.eval.guidance).")
    if one_pass:
        return
    conditional, unconditional = (any(asked) for asked in zip(*map(rule.asks_for, ws), strict=True))
    if p_uncond == 1 and conditional:
        raise UserError(
            'The model was trained with config.train.p_uncond=1, so its classes mean nothing: only w=-1 can be used, '
            'or config.sampling.guidance=\'classifier(model="unconditional", workdir=...)\'.'
        )
    if 'uncond' in companions and companions['uncond'].p_uncond == 0:
        raise UserError(
            'The model of config.sampling.uncond_workdir was trained with config.train.p_uncond=0, so it has no '
            'unconditional prediction: give one that was trained with dropped labels, or without any.'
        )
    if 'uncond' not in companions and p_uncond == 0 and unconditional:
        raise UserError(
            'The model was trained with config.train.p_uncond=0, so its null label means nothing: only w=0 can be '
            'used, or a second model for the unconditional prediction (config.sampling.uncond_workdir), or a rule '
            f'that needs none (config.sampling.guidance=\'cfg(against="random")\'), not {rule.text!r}.'
        )
