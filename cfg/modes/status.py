"""Runs `--mode=status`: it tells from a run's files where it stands, disturbs nothing, needs no accelerator.

It imports neither JAX nor orbax, which take longer to start than all that it does.
"""

import json
import time
from pathlib import Path
from typing import Any

from cfg.report.results import Results
from cfg.runs.run_files import (
    CHECKPOINTS,
    CONFIG_FILE,
    DAMAGED,
    METRICS_FILE,
    DamagedError,
    checkpoint_meta,
    checkpoint_steps,
    read_metrics,
)
from cfg.runtime import beats
from cfg.runtime.errors import UserError
from cfg.runtime.files import check_workdir
from cfg.runtime.progress import format_seconds

# Of the last line of the metrics.
SHOWN = (
    *('loss', 'accuracy', 'held_out_accuracy', 'grad_norm'),
    *('steps_per_second', 'images_per_second', 'data_wait_share', 'skipped_steps'),
)


def run(workdir: str | None) -> str:
    """Returns where a run stands, one fact a line, 'name: value'; equal parameters have equal digests."""
    if workdir is None:
        raise UserError('--workdir is missing: give the folder of the run.')
    workdir = check_workdir(workdir, create=False, write=False)
    found = beats.read_all(workdir)
    if not (workdir / CHECKPOINTS).is_dir() and not found:
        raise UserError(f'{workdir} holds no run: start one with --mode=train.')
    lines = [f'workdir: {workdir}']
    config = workdir / CONFIG_FILE
    if config.exists():
        try:
            lines.append(f'num_steps: {json.loads(config.read_bytes())["train"]["num_steps"]}')
        except (ValueError, KeyError, TypeError):
            lines.append(f'damaged: {config} (the next start writes it anew)')
    if (workdir / CHECKPOINTS).is_dir():
        lines += _checkpoints(workdir)
    metrics = read_metrics(workdir / METRICS_FILE)
    if metrics:
        last = {name: value for line in metrics if line['step'] == metrics[-1]['step'] for name, value in line.items()}
        shown = ', '.join(f'{name} {last[name]:.4g}' for name in SHOWN if name in last)
        lines.append(f'last_log: step {metrics[-1]["step"]}, {shown}')
    lines += [f'heartbeat: {beat.describe(time.time())}' for beat in found]
    lines.append(f'result_rows: {len(Results(workdir).read())}')
    unfinished = [path for path in workdir.glob('unfinished/[!.]*') if path.is_dir()]
    if unfinished:
        lines.append(f'unfinished_rows: {len(unfinished)}')
    return '\n'.join(lines)


def _checkpoints(workdir: Path) -> list[str]:
    steps = checkpoint_steps(workdir)
    lines = [f'checkpoints: {", ".join(map(str, steps)) or "none"}', f'step: {steps[-1] if steps else 0}']
    if steps:
        age = time.time() - (workdir / CHECKPOINTS / str(steps[-1])).stat().st_mtime
        lines.append(f'last_checkpoint: {format_seconds(max(age, 0.0))} ago')
        try:
            lines += _newest(checkpoint_meta(workdir, steps[-1]))
        except DamagedError as error:
            lines.append(f'damaged: {error}')
    aside = sorted(path.name for path in (workdir / DAMAGED).glob('*'))
    if aside:
        lines.append(f'set aside as damaged: {", ".join(aside)}')
    return lines


def _newest(meta: dict[str, Any]) -> list[str]:
    lines = [f'kind: {meta.get("kind", "model")}']
    if 'data' in meta:
        data = meta['data']
        lines.append(f'data: {data["name"]}, fingerprint {data["fingerprint"]}')
        lines.append(f'epoch: {data["epoch"]}, {data["place_in_epoch"]} of {data["num_examples"]} images read')
    digests = meta['sha256']  # as they were when they were saved
    return lines + [
        f'{name}_sha256: {digests[name]}' for name in ('params', 'ema_params', 'averages') if name in digests
    ]
