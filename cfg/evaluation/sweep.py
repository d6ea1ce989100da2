"""The sweep of `--mode=eval` over checkpoints and w, and the samples of `--mode=sample`."""

import datetime
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cfg import parallel, setup
from cfg.data.source import Source
from cfg.errors import UserError
from cfg.evaluation import metrics, report
from cfg.evaluation.features import FeatureNetwork, FeatureStatistics, feature_width, measure, open_features
from cfg.evaluation.loading import Uncond, check_data, check_guidable, load_params, open_uncond, spec_of_run
from cfg.evaluation.results import Row, Samples, read_rows
from cfg.evaluation.statistics import Moments
from cfg.files import lock, write_whole
from cfg.generate import draw_labels
from cfg.progress import Progress
from cfg.training.state import sha256

log = logging.getLogger('cfg')

RESULTS_FILE = 'results.jsonl'
SAMPLES_FOLDER = 'samples'
LIBRARIES = ('jax', 'jaxlib', 'flax', 'numpy')


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """FID and inception score of every (checkpoint, w) that results.jsonl does not hold yet.

    Prints the table of the rows asked for.

    Raises:
      UserError: on input that does not fit, before any sample is drawn.
    """
    with lock(workdir, 'eval'):
        _evaluate(config, workdir)


def _evaluate(config: ConfigDict, workdir: Path) -> None:
    options = config.eval
    source = setup.open_source(config)
    network = setup.build_network(config, source)
    width = feature_width(options.features)
    if options.num_samples <= width:
        raise UserError(
            f'config.eval.num_samples={options.num_samples} must be more than the {width} features of '
            f'{options.features!r}: with fewer samples their covariance is singular and FID means nothing.'
        )
    uncond = open_uncond(config, source.image_shape)
    generator = setup.make_generator(
        config, source, network, batch_size=config.sampling.batch_size, uncond=uncond and uncond.model
    )
    params, p_uncond = load_params(config, workdir, options.steps or (-1,), setup.abstract_params(network, source))
    check_guidable(options.w, p_uncond, uncond)
    check_data(config, workdir)
    results = workdir / RESULTS_FILE
    done = repair(results)

    features = open_features(options.features, workdir / 'features', setup.open_source(config, 'train'))
    digests = {step: sha256(tree) for step, tree in params.items()}
    asked = [
        _identity(config, features, source, uncond, step=step, w=w, params_sha256=digests[step])
        for step in params
        for w in dict.fromkeys(float(w) for w in options.w)
    ]
    todo = [row for row in asked if not any(row.items() <= old.items() for old in done)]
    log.info('%d of the %d rows of the sweep are to be done.', len(todo), len(asked))

    if todo:
        reference, facts = _reference(config, source, features)
    labels = draw_labels(
        options.labels, num_samples=options.num_samples, num_classes=source.num_classes, seed=config.sampling.seed
    )
    progress = Progress('eval', len(todo) * len(labels), unit='sample')
    on_device, step_on_device, failures = None, None, []
    for number, identity in enumerate(todo):
        if step_on_device != identity['step']:
            step_on_device = identity['step']
            on_device = _on_devices(params[step_on_device], uncond)
        begin = time.monotonic()
        try:
            measured, kept = _measure_row(
                generator(on_device, labels, identity['w']),
                features,
                reference,
                is_split_size=options.is_split_size,
                keep=options.keep_samples,
                report_done=lambda n, number=number, row=identity: progress.update(
                    number * len(labels) + n, f'step {row["step"]}, w = {row["w"]:g}'
                ),
            )
        except UserError as error:  # one bad row is no reason to lose the others
            failures.append(f'step {identity["step"]}: {error}')
            log.warning('%s', failures[-1])
            continue
        row = identity | measured | facts | {'p_uncond': p_uncond, 'device': jax.devices()[0].device_kind}
        row['samples'] = _write_samples(workdir, _file_name(identity), kept, labels[: len(kept)])
        row['versions'] = {name: importlib.metadata.version(name) for name in LIBRARIES}
        row['seconds'] = round(time.monotonic() - begin, 3)
        row['finished'] = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
        append(results, row)
    print(table([old for old in repair(results) if any(row.items() <= old.items() for row in asked)]))
    if failures:
        raise UserError(f'{len(failures)} of {len(asked)} rows could not be measured; the first: {failures[0]}')


def sample(config: ConfigDict, workdir: Path) -> None:
    """Samples of one checkpoint at each w of `config.sampling.w`: an npz for each, and one PNG of all.

    Raises:
      UserError: on input that does not fit, before any sample is drawn.
    """
    options = config.sampling
    source = spec_of_run(config, workdir)
    network = setup.build_network(config, source)
    classes = tuple(options.labels) or tuple(range(source.num_classes))
    for label in classes:
        if not 0 <= label < source.num_classes:
            raise UserError(
                f'config.sampling.labels holds {label}, but the classes of {source.name} are '
                f'0 to {source.num_classes - 1}: choose among them.'
            )
    labels = np.resize(np.array(classes, np.int32), options.num_samples)
    uncond = open_uncond(config, source.image_shape)
    generator = setup.make_generator(
        config, source, network, batch_size=options.batch_size, uncond=uncond and uncond.model
    )
    loaded, p_uncond = load_params(config, workdir, (options.step,), setup.abstract_params(network, source))
    check_guidable(options.w, p_uncond, uncond)
    ((step, params),) = loaded.items()
    params = _on_devices(params, uncond)
    settings = json.dumps([setup.config_dict(config)[part] for part in ('sampling', 'diffusion', 'model')])
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    progress = Progress('sample', len(options.w) * len(labels), unit='sample')
    panels = []
    for number, w in enumerate(options.w):
        images = []
        for batch in generator(params, labels, w):
            images.append(batch.images)
            progress.update(number * len(labels) + batch.start + len(batch.images), f'w = {w:g}')
        images = np.concatenate(images)
        print(workdir / _write_samples(workdir, f'sample_step{step:08d}_w{w:g}_{digest}.npz', images, labels))
        panels.append(({'w': float(w)}, Samples(images, labels)))
    columns = min(len(labels), max(len(classes), 8), 10)
    rows = min(-(-len(labels) // columns), 10)
    path = workdir / SAMPLES_FOLDER / f'sample_step{step:08d}_{digest}.png'
    report.draw_grid(path, panels, (rows, columns), f'step {step}: a cell has the same seed and class in every panel')
    print(path)


def _on_devices(params: Any, uncond: Uncond | None) -> Any:
    """The parameters that the generator takes, on every device."""
    return parallel.replicate(params if uncond is None else (params, uncond.params))


def _reference(config: ConfigDict, source: Source, features: FeatureNetwork) -> tuple[Moments, Row]:
    """The moments of the real data, and what every row says of the real data.

    The floor is what real images that were not trained on would score: those held out against those trained on.
    """

    def real(data: Source):
        return measure(features, data, batch_size=1000, is_split_size=config.eval.is_split_size)

    of_source, _ = real(source)
    facts = {
        'reference': f'{source.name} ({len(source)} real images)',
        'reference_sha256': source.fingerprint,
    }
    held_out = setup.open_held_out(config)
    if held_out is None:
        return of_source.moments, facts
    train = setup.open_source(config, 'train')
    of_train = of_source if train.fingerprint == source.fingerprint else real(train)[0]
    of_held_out, accuracy = real(held_out)
    floor_score, _ = metrics.inception_score(of_held_out.splits.sums)
    return of_source.moments, facts | {
        'floor': f'{setup.describe_split(held_out)} against {setup.describe_split(train)}',
        'floor_fid': metrics.fid(of_held_out.moments, of_train.moments),
        'floor_inception_score': floor_score,
        'floor_accuracy': accuracy if features.labels_match else None,
    }


def _identity(
    config: ConfigDict,
    features: FeatureNetwork,
    source: Source,
    uncond: Uncond | None,
    *,
    step: int,
    w: float,
    params_sha256: str,
) -> Row:
    """What makes a row the measurement that it is: two rows that agree here are the same one."""
    second = {} if uncond is None else {'uncond_params_sha256': uncond.sha256}
    return second | {
        'step': step,
        'w': w,
        'num_samples': config.eval.num_samples,
        'labels': config.eval.labels,
        'is_split_size': config.eval.is_split_size,
        'seed': config.sampling.seed,
        'ema': config.sampling.ema,
        'sampling': {
            'sampler': 'ancestral',
            'num_steps': config.sampling.num_steps,
            'logvar_interp': config.sampling.logvar_interp,
            'clip_x': config.sampling.clip_x,
            'logsnr_min': config.diffusion.logsnr_min,
            'logsnr_max': config.diffusion.logsnr_max,
            'prediction': config.diffusion.prediction,
            'dtype': config.model.dtype,
        },
        'features': features.name,
        'features_sha256': features.sha256,
        'reference_sha256': source.fingerprint,
        'params_sha256': params_sha256,
    }


def _measure_row(
    batches: Any,
    features: FeatureNetwork,
    reference: Moments,
    *,
    is_split_size: int,
    keep: int,
    report_done: Callable[[int], None],
) -> tuple[Row, np.ndarray]:
    """Streams samples into statistics.

    Returns:
      (the metrics, the first `keep` images uint8 [n, H, W, C]).
    """
    statistics, agree = FeatureStatistics(features, is_split_size=is_split_size), 0
    kept = [np.zeros((0, 1, 1, 1), np.uint8)] if keep == 0 else []
    for batch in batches:
        agree += int(np.sum(statistics.add(batch.images) == batch.labels))
        if batch.start < keep:
            kept.append(batch.images[: keep - batch.start].copy())  # a view would keep the whole batch in memory
        report_done(statistics.count)
    score, spread = metrics.inception_score(statistics.splits.sums)
    row = {
        'fid': metrics.fid(statistics.moments, reference),
        'inception_score': score,
        'inception_score_std': spread,
        'accuracy': agree / statistics.count if features.labels_match else None,
    }
    return row, np.concatenate(kept)


def _file_name(identity: Row) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return f'step{identity["step"]:08d}_w{identity["w"]:g}_{digest}.npz'


def _write_samples(workdir: Path, name: str, images: np.ndarray, labels: np.ndarray) -> str:
    """Writes `arr_0` uint8 [N, H, W, C] and `arr_1` int32 [N], whole or not at all; returns the path in the workdir."""
    path = workdir / SAMPLES_FOLDER / name
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images, labels)
    write_whole(path, buffer.getvalue())
    return str(path.relative_to(workdir))


def repair(path: Path) -> list[Row]:
    """The rows of a results file (none: []); a last line that is not JSON, as it was cut off, is removed from it."""
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = [line for line in content.split(b'\n') if line.strip()]
    if lines and not _is_json(lines[-1]):
        lines.pop()
    mended = b''.join(line + b'\n' for line in lines)
    if mended != content:
        write_whole(path, mended)
    return read_rows(path)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def append(path: Path, row: Row) -> None:
    """Adds one line and waits until it is on disk."""
    with path.open('ab') as file:
        file.write(json.dumps(row).encode() + b'\n')
        file.flush()
        os.fsync(file.fileno())


def table(rows: list[Row]) -> str:
    """Rows as text, one a line, with the features and the floor below."""
    lines = [f'{"step":>9} {"w":>5} {"FID":>9} {"IS":>8} {"accuracy":>9} {"samples":>8}']
    for row in rows:
        accuracy = '' if row['accuracy'] is None else f'{row["accuracy"]:.4f}'
        lines.append(
            f'{row["step"]:9d} {row["w"]:5g} {row["fid"]:9.4f} {row["inception_score"]:8.4f} '
            f'{accuracy:>9} {row["num_samples"]:8d}'
        )
    if rows:
        last = rows[-1]
        lines.append(f'features: {last["features"]}; reference: {last["reference"]}')
        if 'floor' in last:
            floor = f'FID {last["floor_fid"]:.4f}, IS {last["floor_inception_score"]:.4f}'
            lines.append(f'floor: {floor} ({last["floor"]})')
    return '\n'.join(lines)
