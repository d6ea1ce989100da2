"""The sampler of a config and a network."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cfg.data.source import Source
from cfg.data.spec import DataSpec
from cfg.models.unet import UNet
from cfg.runs.generate import Generator, Model, Networks, SamplerSettings


def make_model(config: ConfigDict, network: UNet) -> Model:
    """A network as the sampler sees it."""

    def apply_both(params, *inputs):
        return network.apply({'params': params}, *inputs, method='both')

    return Model(
        lambda params, *inputs: network.apply({'params': params}, *inputs),
        prediction=config.diffusion.prediction,
        null_label=network.num_classes,
        apply_both=apply_both if network.label_in == 'decoder' else None,
    )


def make_generator(
    config: ConfigDict,
    source: DataSpec | Source,
    network: UNet,
    *,
    batch_size: int,
    companions: Mapping[str, Any] | None = None,
    settings: SamplerSettings | None = None,
    shared: bool = False,
) -> Generator:
    """The sampler of a config over all devices.

    Args:
      companions: the networks beside the model that the guidance needs, by their names in `Networks`.
      settings: in the place of those of the config.
      shared: whether the processes share each batch.
    """
    return Generator(
        Networks(make_model(config, network), source.num_classes, **(companions or {})),
        image_shape=source.image_shape,
        settings=settings or sampler_settings(config),
        seed=config.sampling.seed,
        batch_size=batch_size,
        shared=shared,
    )


def sampler_settings(config: ConfigDict) -> SamplerSettings:
    """The sampler of a config."""
    return SamplerSettings(
        num_steps=config.sampling.num_steps,
        logvar_interp=config.sampling.logvar_interp,
        clip_x=config.sampling.clip_x,
        logsnr_min=config.diffusion.logsnr_min,
        logsnr_max=config.diffusion.logsnr_max,
        rounding=config.sampling.rounding,
        guidance=config.sampling.guidance,
        sampler=config.sampling.sampler,
        grid=config.sampling.grid,
    )
