"""Measures what samples are compared with: the moments and some features of real images, once, and keeps them."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cfg.data.source import Source
from cfg.evaluation import edm2, npz
from cfg.evaluation.measurement import Measurement
from cfg.features.network import FeatureNetwork
from cfg.metrics import distances
from cfg.metrics.memorisation import TrainingSet
from cfg.metrics.moments import Moments
from cfg.report.rows import Beside
from cfg.runs.generate import draw_labels
from cfg.runtime.errors import UserError
from cfg.runtime.files import check_writable, lock
from cfg.runtime.progress import Progress
from cfg.runtime.stopping import StopSignal
from cfg.settings.data import describe_split, open_held_out, open_source

Array = np.ndarray

BATCH = 500  # images between two looks at the clock and at signals
SPLIT_SIZE = 5000  # of references, whose inception score nobody asks for
FLOOR_DRAWS = 5, 40  # of the real features, whose FIDs are averaged: at least, and at most, as they are cheap
FLOOR_VALUES = 10**8  # features of all draws, where that is between


class Gaussian(NamedTuple):
    """A Gaussian has a mean [D] and a covariance [D, D], float64."""

    mean: Array
    cov: Array

    @classmethod
    def of(cls, moments: Moments | None) -> 'Gaussian | None':
        """Returns that of features; None of none."""
        return None if moments is None else cls(moments.mean, moments.covariance())


@dataclass(frozen=True)
class Reference:
    """A reference is what samples are compared with."""

    name: str  # for results and figures
    sha256: str  # of the images (their fingerprint), or of the file
    file_sha256: str | None  # None if the images of a data set were measured
    image_shape: tuple[int, ...] | None  # (H, W, C) of the images; None if there are none
    count: int | None  # images that the moments are of; None where they were read, as files do not say
    pool: Gaussian  # of the pool features
    spatial: Gaussian | None  # of the spatial features; None without
    second: Gaussian | None  # of the second network's features; None without
    features: Array | None  # float32 [M, D], of some of the images, for precision to coverage and KID; None without
    labels: Callable[[], Array | None] = lambda: None  # reads int32 [M], theirs; None where they have none

    @property
    def num_features(self) -> int:
        """Returns how many images have features."""
        return 0 if self.features is None else len(self.features)

    def beside(self, num_samples: int, *, labels: str | None = None, num_classes: int = 0) -> Beside:
        """Returns what every row of `num_samples` samples says of it.

        Args:
          labels: how those of the samples were drawn, see `draw_labels`; None where that is not known.
        """
        floor = self._floor_of(num_samples, labels, num_classes)
        return Beside(
            reference=self.name,
            reference_file_sha256=self.file_sha256,
            finite_sample_fid=None if floor is None else float(np.mean(floor)),
            finite_sample_draws=None if floor is None else f'{len(floor)} draws of {labels or "any"} labels',
        )

    def _floor_of(self, num_samples: int, kind: str | None, num_classes: int) -> list[float] | None:
        """Scores draws of the real features with labels drawn as those of samples; None where that cannot be."""
        if self.num_features <= len(self.pool.mean):  # their own covariance is singular
            return None
        width, (fewest, most) = len(self.pool.mean), FLOOR_DRAWS
        count = int(np.clip(FLOOR_VALUES // (num_samples * width), fewest, most))
        rng, own = np.random.default_rng(0), None if kind is None else self.labels()
        if kind is None:
            draws = rng.integers(0, self.num_features, (count, num_samples))
        elif own is None:
            return None
        else:
            places = [np.flatnonzero(own == label) for label in range(num_classes)]
            if not all(map(len, places)):
                return None
            how = {'num_samples': num_samples, 'num_classes': num_classes}
            wanted = [draw_labels(kind, seed=seed, **how) for seed in range(count)]
            sizes, share = np.array([len(of) for of in places]), rng.random((count, num_samples))
            starts, ordered = np.cumsum(sizes) - sizes, np.concatenate(places)
            draws = [
                ordered[starts[labels] + (at * sizes[labels]).astype(int)]
                for labels, at in zip(wanted, share, strict=True)
            ]
        return distances.fids_of_draws(self.features, draws)


@dataclass(frozen=True)
class Stream:
    """A stream is images in a fixed order.

    Its `batches` takes the index of the first image, a multiple of BATCH, and gives batches of BATCH (images, labels or
    None) from there on.
    """

    name: str  # for the user, 'images of ...'
    sha256: str  # two streams that agree here hold the same images and labels
    count: int
    image_shape: tuple[int, ...]  # (H, W, C)
    kept: Array  # indices of those whose features are kept, ascending
    batches: Callable[[int], Iterator[tuple[Array, Array | None]]]


def chosen(count: int, num_images: int) -> Array:
    """Returns which of `count` images stand for all: `num_images` at random, the same every time, ascending."""
    if num_images >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, num_images, replace=False))


def in_batches(indices: Array) -> Iterator[Array]:
    """Yields them, BATCH at a time."""
    return (indices[start : start + BATCH] for start in range(0, len(indices), BATCH))


def images_of(source: Source, indices: Array) -> Iterator[Array]:
    """Yields some images of a data set, in batches of BATCH."""
    for places in in_batches(indices):
        yield source.fetch(places)['image']


def stream_of_source(source: Source, num_images: int) -> Stream:
    """Makes a data set a stream; the features of `num_images` of its images are kept."""

    def batches(start: int) -> Iterator[tuple[Array, Array]]:
        for first in range(start, len(source), BATCH):
            batch = source.fetch(range(first, min(first + BATCH, len(source))))
            yield batch['image'], batch['label']

    kept = chosen(len(source), num_images)
    name = f'real images of {source.name}'
    return Stream(name, source.fingerprint, len(source), tuple(source.image_shape), kept, batches)


def stream_of_file(file: npz.ImageFile) -> Stream:
    """Makes the images of an npz a stream; the features of all are kept."""

    def batches(start: int) -> Iterator[tuple[Array, Array | None]]:
        labels = file.labels()
        for number, images in enumerate(file.batches(BATCH)):
            first = number * BATCH
            if first >= start:
                yield images, None if labels is None else labels[first : first + len(images)]

    name = f'images of {file.path.name}'
    return Stream(name, file.sha256, file.count, file.image_shape, np.arange(file.count), batches)


@contextlib.contextmanager
def measuring(
    stream: Stream,
    network: FeatureNetwork,
    *,
    is_split_size: int,
    save_seconds: float,
    stop: StopSignal,
    folder: str = 'measured',
) -> Iterator[Measurement]:
    """Measures a stream, or reads what was measured of it before; no other process has it until the block ends.

    Args:
      folder: in the cache of the network.

    Raises:
      UserError: when the cache cannot be written.
      SystemExit: on a signal, after what is measured was saved.
    """
    identity = [network.sha256, network.classifier, stream.sha256, stream.count, len(stream.kept), is_split_size]
    identity += [network.second.sha256] if network.second else []
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    parent = network.cache / folder
    check_writable(parent, f'The cache folder {parent}')
    elsewhere = Progress(stream.name, stream.count, unit='image')

    def waiting() -> None:
        elsewhere.update(0, 'another job measures them')  # also says that this one does not hang
        stop.leave(lambda: None)

    with lock(parent, 'eval', part=digest, wait=True, waiting=waiting):
        measured = Measurement(
            parent / digest,
            network,
            is_split_size=is_split_size,
            image_shape=stream.image_shape,
            save_seconds=save_seconds,
        )
        if measured.count < stream.count:
            progress = Progress(stream.name, stream.count, start=measured.count, unit='image')
            for images, labels in stream.batches(measured.count):
                here = measured.count + np.arange(len(images))
                measured.add(images, labels, keep_features=np.isin(here, stream.kept, assume_unique=True))
                progress.update(measured.count)
                stop.leave(measured.save)
            measured.save()
        yield measured


def measure(
    config: ConfigDict, stream: Stream, network: FeatureNetwork, stop: StopSignal, *, scored: bool = False
) -> Measurement:
    """Measures a stream, or reads what was measured of it before, from the cache of the network.

    Unless it is `scored`, that is moments and features alone, which are the same however samples are classified and
    split. Errors are those of `measuring`.
    """
    network, size = (network, config.eval.is_split_size) if scored else (network.plain or network, SPLIT_SIZE)
    save_seconds = config.eval.save_seconds
    with measuring(stream, network, is_split_size=size, save_seconds=save_seconds, stop=stop) as measured:
        return measured


def open_reference(config: ConfigDict, network: FeatureNetwork, stop: StopSignal) -> Reference:
    """Measures the reference of `config.eval.reference`, or else all images of `config.data.split`.

    The features of `config.stats.num_images` images of the data set are kept, and of all of a file.

    Raises:
      UserError: when the file cannot be read or is of other features than the network's.
    """
    if config.eval.reference:
        return _reference_of_file(config, network, stop)
    source = open_source(config)
    stream = stream_of_source(source, config.stats.num_images)
    measured = measure(config, stream, network, stop)
    return Reference(
        name=f'{source.name} ({len(source)} real images)',
        sha256=source.fingerprint,
        file_sha256=None,
        image_shape=tuple(source.image_shape),
        count=measured.count,
        pool=Gaussian.of(measured.moments),
        spatial=Gaussian.of(measured.spatial),
        second=Gaussian.of(second_moments(config, stream, network, stop)),
        features=measured.features if len(measured.features) else None,
        labels=lambda: np.concatenate([source.fetch(places)['label'] for places in in_batches(stream.kept)]),
    )


def _reference_of_file(config: ConfigDict, network: FeatureNetwork, stop: StopSignal) -> Reference:
    """Reads an npz in ADM's layout, or EDM2's statistics: the moments if it holds any, or else those of its images."""
    path, what = Path(config.eval.reference), 'config.eval.reference'
    file, images, measured = edm2.reference_file(path, what), None, None
    stored = file.moments()
    if stored is not None:
        _check_features(file, stored, network)
    if stored is None or file.has_images:
        images = npz.ImageFile(path, what)
        (network.plain or network).check_images(images.image_shape, f'{what}={path}')
        if stored is None and images.count < 2:
            raise UserError(f'{what}={path} holds {images.count} image and no moments: give at least 2 images.')
        measured = measure(config, stream_of_file(images), network, stop)
    if stored is None:
        pool, spatial = Gaussian.of(measured.moments), Gaussian.of(measured.spatial)
        second = Gaussian.of(second_moments(config, stream_of_file(images), network, stop))
    else:
        wanted = (True, network.spatial_width, network.second)
        found = [
            Gaussian(stored[mean], stored[cov]) if mean in stored and used else None
            for (mean, cov), used in zip(npz.MOMENTS, wanted, strict=True)
        ]
        pool, spatial, second = found
    sha256 = (images or file).sha256
    parts = ([] if stored is None else ['moments']) + ([] if measured is None else [f'{measured.count} images'])
    return Reference(
        name=f'{path.name} ({", ".join(parts)})',
        sha256=sha256,
        file_sha256=sha256,
        image_shape=None if images is None else images.image_shape,
        count=measured.count if stored is None else None,
        pool=pool,
        spatial=spatial,
        second=second,
        features=None if measured is None else measured.features,
        labels=lambda: None if images is None else images.labels(),
    )


def second_moments(config: ConfigDict, stream: Stream, network: FeatureNetwork, stop: StopSignal) -> Moments | None:
    """Measures the moments of the second network's features, apart from the first one's; None without one."""
    return measure(config, stream, network.second, stop).moments if network.second else None


def _check_features(file: npz.File, stored: dict[str, Array], network: FeatureNetwork) -> None:
    """Checks that stored moments are as many as the networks', and of the same weights where the file says."""
    remedy = 'give a reference that was made with the same network, as --mode=stats makes one'
    widths = [('mu', network, network.width), ('mu_s', network, network.spatial_width)]
    hashes = [('features_sha256', network)]
    if network.second:
        widths.append(('mu_dinov2', network.second, network.second.width))
        hashes.append(('dinov2_sha256', network.second))
    for name, it, width in widths:
        if width and name in stored and len(stored[name]) != width:
            raise UserError(
                f'{file.path} holds moments of {len(stored[name])} features ({name}), but {it.name} has {width}: '
                f'{remedy}.'
            )
    for name, it in hashes:
        if (made_with := file.made_with(name)) not in (None, it.sha256):
            raise UserError(
                f'{file.path} was made with another network ({name} {made_with[:12]}) than {it.name} '
                f'({it.sha256[:12]}): {remedy}.'
            )


@dataclass(frozen=True)
class Floor:
    """A floor is what real images score that are held out, against those trained on."""

    fields: dict[str, Any]  # of `Beside` that speak of it
    training: TrainingSet | None  # those images trained on whose features are kept; None without
    images: Callable[[Array], Array]  # reads some of these, uint8 [n, H, W, C]


def telling(measured: Measurement) -> Array:
    """Returns the kept features that tell who is a copy of whom: the second network's, or else the only one's."""
    second = measured.second_features
    return measured.features if second is None else second


def floor(config: ConfigDict, source: Source, network: FeatureNetwork, stop: StopSignal) -> Floor | None:
    """Scores real images that were not trained on: those held out against those trained on.

    Args:
      source: the images of `config.data.split`.

    Returns:
      None if no images are held out.
    """
    held_out = open_held_out(config)
    if held_out is None or len(held_out) < 2:
        return None
    train = open_source(config, 'train')
    real = train if train.fingerprint != source.fingerprint else source
    stream = stream_of_source(real, config.stats.num_images)
    of_train = measure(config, stream, network, stop)
    of_held_out = measure(config, stream_of_source(held_out, config.stats.num_images), network, stop, scored=True)
    score, _ = distances.inception_score(of_held_out.splits.sums)
    told = measure(config, stream, network.second or network, stop)  # in whose features copies are told
    features, unseen = told.features, telling(of_held_out)
    training, authenticity = None, None
    if len(features) > 1 and len(unseen) and source.fingerprint != held_out.fingerprint:
        training = TrainingSet.of(features, unseen)
        authenticity = training.copying(unseen).authenticity
    fields = {
        'floor': f'{describe_split(held_out)} against {describe_split(train)}',
        'floor_fid': distances.fid(of_held_out.moments, of_train.moments),
        'floor_fd_dinov2': distances.fid(of_held_out.second, told.moments) if network.second else None,
        'floor_inception_score': score,
        'floor_accuracy': of_held_out.accuracy,
        'floor_authenticity': authenticity,
    }
    return Floor(fields, training, lambda places: real.fetch(stream.kept[places])['image'])
