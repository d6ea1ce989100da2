"""Runs `--mode=import_adm`: a checkpoint of openai/guided-diffusion becomes a checkpoint of ours."""

import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfg.data.spec import DataSpec
from cfg.models.convert import adm_names, adm_params
from cfg.models.torch_file import read_state_dict, unwrapped
from cfg.runs.checkpoints import Checkpoints
from cfg.runs.run_files import without_run
from cfg.runtime.errors import UserError
from cfg.settings.data import spec_of
from cfg.settings.networks import BUILDERS, TAKE_W
from cfg.settings.values import config_dict, require

log = logging.getLogger('cfg')


def run(config: ConfigDict, workdir: Path) -> Path:
    """Converts `config.adm.checkpoint` for the architecture of the config, and writes it as step 0 of the workdir.

    The config in the checkpoint says with which p_uncond the network was trained: 0 for one with classes and no null
    label, 1 for one without classes; sampling refuses the w that need what was not trained. Returns the folder of the
    checkpoints.
    """
    if not config.adm.checkpoint:
        raise UserError('config.adm.checkpoint is missing: give the .pt file, --config.adm.checkpoint=FILE.')
    of_model = config.adm.kind == 'model'
    label_in, kind = config.model.label_in, config.train.kind
    words = "'everywhere' with --mode=import_adm: ADM's networks are told the label in all blocks"
    require(not of_model or label_in == 'everywhere', 'model.label_in', label_in, words)
    require(not of_model or kind not in TAKE_W, 'train.kind', kind, "'model' with --mode=import_adm: ADM's take no w")
    spec = spec_of(config)
    with without_run(workdir) as folder:
        network = BUILDERS[config.adm.kind](config, spec)
        state = unwrapped(read_state_dict(config.adm.checkpoint), adm_names(network, spec.image_shape))
        meta: dict[str, Any] = {'kind': config.adm.kind, 'config': config_dict(config)}
        order = of_model and config.adm.new_attention_order
        params = adm_params(state, network, spec.image_shape, new_attention_order=order)
        if of_model:
            meta['config']['train']['p_uncond'] = _p_uncond(config, spec, state)
        # Opened last: what does not fit must not leave a half-started writer behind.
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save_imported(params, meta=meta)
        return folder


def _p_uncond(config: ConfigDict, spec: DataSpec, state: dict[str, Any]) -> float:
    """Tells by its class embedding which predictions the network was trained for."""
    if 'label_emb.weight' not in state:
        log.info('It has no classes: for the unconditional prediction (w = -1, or as sampling.uncond_workdir).')
        return 1.0
    if len(state['label_emb.weight']) == spec.num_classes:
        log.info('It has no null label: for w = 0, or any w with a second model (sampling.uncond_workdir).')
        return 0.0
    return config.train.p_uncond
