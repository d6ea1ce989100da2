"""`--mode=status`: where a run stands, from its files alone: it disturbs nothing and needs no accelerator."""

import json
import time
from pathlib import Path

import jax

from cfg.report.results import read_results
from cfg.runs.checkpoints import DAMAGED, FOLDER, Checkpoints, DamagedError
from cfg.runs.metrics_file import METRICS_FILE, read_metrics
from cfg.runtime import watch
from cfg.runtime.errors import UserError
from cfg.runtime.files import check_workdir
from cfg.runtime.progress import format_seconds
from cfg.training.loop import CONFIG_FILE

# Of the last line of the metrics.
SHOWN = (
    'loss',
    'accuracy',
    'held_out_accuracy',
    'grad_norm',
    'steps_per_second',
    'images_per_second',
    'data_wait_share',
    'skipped_steps',
)


def run(workdir: str | None) -> None:
    """Prints where a run stands.

    Raises:
      UserError: when the workdir is missing or holds no run.
    """
    if workdir is None:
        raise UserError('--workdir is missing: give the folder of the run.')
    # An accelerator may be in use, and on a slice of TPUs it would wait for the other hosts.
    jax.config.update('jax_platforms', 'cpu')
    print(describe(check_workdir(workdir, create=False, write=False)))


def describe(workdir: Path) -> str:
    """One fact a line, 'name: value'; equal parameters have equal digests.

    Raises:
      UserError: when the workdir holds no run.
    """
    beats = watch.read_beats(workdir)
    if not (workdir / FOLDER).is_dir() and not beats:
        raise UserError(f'{workdir} holds no run: start one with --mode=train.')
    lines = [f'workdir: {workdir}']
    config = workdir / CONFIG_FILE
    if config.exists():
        lines.append(f'num_steps: {json.loads(config.read_text())["train"]["num_steps"]}')
    if (workdir / FOLDER).is_dir():
        lines += _checkpoints(workdir)
    metrics = read_metrics(workdir / METRICS_FILE)
    if metrics:
        last = {name: value for line in metrics if line['step'] == metrics[-1]['step'] for name, value in line.items()}
        shown = ', '.join(f'{name} {last[name]:.4g}' for name in SHOWN if name in last)
        lines.append(f'last_log: step {metrics[-1]["step"]}, {shown}')
    lines += [f'heartbeat: {watch.describe(beat, time.time())}' for beat in beats]
    lines.append(f'result_rows: {len(read_results(workdir))}')
    unfinished = [path for path in workdir.glob('unfinished/[!.]*') if path.is_dir()]
    if unfinished:
        lines.append(f'unfinished_rows: {len(unfinished)}')
    return '\n'.join(lines)


def _checkpoints(workdir: Path) -> list[str]:
    lines = []
    with Checkpoints(workdir, read_only=True) as checkpoints:
        steps = checkpoints.steps()
        lines.append(f'checkpoints: {", ".join(map(str, steps)) or "none"}')
        lines.append(f'step: {steps[-1] if steps else 0}')
        if steps:
            age = time.time() - (checkpoints.folder / str(steps[-1])).stat().st_mtime
            lines.append(f'last_checkpoint: {format_seconds(max(age, 0.0))} ago')
            try:
                lines += _newest(checkpoints, steps[-1])
            except DamagedError as error:
                lines.append(f'damaged: {error}')
    aside = sorted(path.name for path in (workdir / DAMAGED).glob('*'))
    if aside:
        lines.append(f'set aside as damaged: {", ".join(aside)}')
    return lines


def _newest(checkpoints: Checkpoints, step: int) -> list[str]:
    lines = []
    meta = checkpoints.meta(step)
    lines.append(f'kind: {meta.get("kind", "model")}')
    if 'data' in meta:
        data = meta['data']
        lines.append(f'data: {data["name"]}, fingerprint {data["fingerprint"]}')
        lines.append(f'epoch: {data["epoch"]}, {data["place_in_epoch"]} of {data["num_examples"]} images read')
    for name in ('ema_params',) if meta.get('imported') else ('params', 'ema_params'):
        lines.append(f'{name}_sha256: {meta["sha256"][name]}')  # as they were when they were saved
    return lines
