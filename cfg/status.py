"""`--mode=status`: where a run stands."""

import json
from pathlib import Path

from cfg.errors import UserError
from cfg.evaluation.results import read_results
from cfg.training.checkpoints import FOLDER, Checkpoints
from cfg.training.loop import CONFIG_FILE
from cfg.training.state import sha256


def describe(workdir: Path) -> str:
    """One fact a line, 'name: value'; equal parameters have equal digests.

    Raises:
      UserError: when the workdir holds no run.
    """
    if not (workdir / FOLDER).is_dir():
        raise UserError(f'{workdir} holds no run: start one with --mode=train.')
    lines = [f'workdir: {workdir}']
    config = workdir / CONFIG_FILE
    if config.exists():
        lines.append(f'num_steps: {json.loads(config.read_text())["train"]["num_steps"]}')
    with Checkpoints(workdir, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        lines.append(f'checkpoints: {", ".join(map(str, steps)) or "none"}')
        lines.append(f'step: {steps[-1] if steps else 0}')
        if steps:
            meta = checkpoints.meta(steps[-1])
            if 'data' in meta:
                data = meta['data']
                lines.append(f'data: {data["name"]}, fingerprint {data["fingerprint"]}')
                lines.append(f'epoch: {data["epoch"]}, {data["place_in_epoch"]} of {data["num_examples"]} images read')
            imported = meta.get('imported')
            for name, ema in (('ema_params', True),) if imported else (('params', False), ('ema_params', True)):
                digest = sha256(checkpoints.restore_params(steps[-1], ema=ema))
                lines.append(f'{name}_sha256: {digest}')
    lines.append(f'result_rows: {len(read_results(workdir))}')
    return '\n'.join(lines)
