"""Goes on from the checkpoints of a workdir, if they are of the same run."""

import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cfg.data.manifest import short_name
from cfg.data.source import Source
from cfg.runs.checkpoints import Checkpoints
from cfg.runs.run_files import DamagedError
from cfg.runs.state import TrainState
from cfg.runtime.environment import recorded
from cfg.runtime.errors import UserError
from cfg.settings.networks import held
from cfg.settings.values import config_dict
from cfg.training.teacher import Teacher

log = logging.getLogger('cfg')

# Fields that may differ between the parts of one run. Those of training and the model change its length and what is
# written, not its numbers (grad_accum, remat and attention: only their rounding). Where the data lie and who reads them
# may change; what they are is told by their fingerprint.
FREE = {
    'train': (
        *('num_steps', 'log_every', 'sample_every', 'checkpoint_every', 'keep_last', 'keep_every'),
        *('max_skipped', 'grad_accum', 'remat', 'wandb_project'),
        'teacher_workdir',  # the digests of its parameters tell whether it is the same
    ),
    'data': ('dir', 'workers'),
    'model': ('attention',),
}
FREE_BY_INTENT = ('learning_rate', 'grad_clip')  # what people change on purpose in the middle of a run
# What a run of each kind reads. A model's run may be evaluated with any classifier.
PARTS = {'model': ('seed', 'data', 'model', 'diffusion', 'train')}
PARTS['classifier'] = (*PARTS['model'], 'classifier')


def restore(
    config: ConfigDict, source: Source, checkpoints: Checkpoints, like: TrainState, teacher: Teacher | None = None
) -> tuple[TrainState, dict[str, int]] | None:
    """Returns the state to go on from, and what is known of its skipped steps; None where there is no checkpoint.

    Raises:
      UserError: when the checkpoints are of another run; it names the first field of the config that differs.
    """
    kind = held(config.train.kind)
    for step in reversed(checkpoints.steps()):  # one that tells its config will do: the workdir is of one run
        try:
            meta = checkpoints.meta(step)
        except DamagedError:
            continue
        if meta['kind'] != kind:
            raise UserError(
                f'{checkpoints.folder} holds a {meta["kind"]}, and config.train.kind={config.train.kind!r} trains a '
                f'{kind}: give another --workdir.'
            )
        if meta.get('imported'):
            raise UserError(
                f'{checkpoints.folder / str(step)} was imported and has no optimizer to go on with: it can be used, '
                'but not trained; give another --workdir to train in.'
            )
        _check_same_run(config, meta['config'], checkpoints.folder)
        _check_same_data(source, meta, checkpoints.folder)
        if teacher and meta['teacher'] != teacher.sha256:
            raise UserError(
                f'The student in {checkpoints.folder} learned from another teacher than the one in '
                f'{config.train.teacher_workdir}: give that one (config.train.teacher_step), or another --workdir.'
            )
        _tell_environment(meta.get('environment', recorded()))
        break
    found = checkpoints.restore_newest(like)
    if found is None:
        return None
    state, meta = found
    log.info('Resuming from step %d.', int(state.step))
    return state, meta['skipped']


def _check_same_run(config: ConfigDict, old: dict[str, Any], folder: Path) -> None:
    """Checks that a workdir belongs to one run: what changes its numbers by accident must stay."""
    new = config_dict(config)
    for part in PARTS[held(config.train.kind)]:
        before, now = old[part], new[part]
        if not isinstance(now, dict):
            before, now, part = {part: before}, {part: now}, ''
        for name, value in now.items():
            if part == 'data' and name == 'name':
                same = short_name(before[name]) == short_name(value)
            else:
                same = before.get(name, value) == value  # a field that is newer than the run says nothing of it
            if same or name in FREE.get(part, ()):
                continue
            field = f'{part}.{name}'.strip('.')
            if part == 'train' and name in FREE_BY_INTENT:
                log.info('config.%s is now %r; it was %r.', field, value, before[name])
                continue
            raise UserError(
                f'The checkpoints in {folder} come from config.{field}={before[name]!r}, not {value!r}: '
                'go on with that value, or give another --workdir.'
            )


def _check_same_data(source: Source, meta: dict[str, Any], folder: Path) -> None:
    """Checks that the images are those that the run began with."""
    before = meta['data']['fingerprint']
    if before != source.fingerprint:
        raise UserError(
            f'The checkpoints in {folder} were trained on other images than those of {source.name} (fingerprint '
            f'{before[:12]}, not {source.fingerprint[:12]}): set config.data.dir to those, or give another --workdir.'
        )


def _tell_environment(before: dict[str, str]) -> None:
    """Logs what the environment says otherwise than at the last checkpoint: it changes the rounding of numbers."""
    now = recorded()
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            log.info('%s is now %s; it was %s.', name, now.get(name, 'not set'), before.get(name, 'not set'))
