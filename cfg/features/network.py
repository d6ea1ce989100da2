"""Puts the feature networks of FID and the other metrics behind one interface."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cfg.features.dinov2 import VIT_L14, Dinov2, Sizes, resize_pil
from cfg.features.inception import SPATIAL_WIDTH, WIDTH, Inception
from cfg.runtime import parallel, processes
from cfg.runtime.errors import UserError
from cfg.runtime.paths import user_path

Array = np.ndarray

INCEPTION = 'Inception (2015-12-05)'
DINOV2 = 'DINOv2 ViT-L/14'
COLOUR_IMAGES = (None, None, 3)


class Features(NamedTuple):
    """Holds the features of N images, float32."""

    pool: Array  # [N, D], for FID, KID, precision and recall
    spatial: Array | None  # [N, S], for sFID; None if the network has none
    log_p: Array | None  # log p(class of the network), [N, C], for the inception score; None if it tells no classes
    classes: Array | None  # the most likely class of the data set, int32 [N]; None where no classifier of it is at hand
    second: Array | None = None  # pool features of the second network, [N, E]; None without


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network, and all that an evaluation needs to know of it."""

    name: str  # for results and figures; says what the features are
    sha256: str  # of the weights
    file_sha256: str | None  # of the file that they came in; None if they were trained here
    width: int  # number of pool features D
    spatial_width: int  # number of spatial features S; 0 if it has none
    image_shape: tuple[int | None, ...]  # (H, W, C) of the images that it takes; None where any will do
    extract: Callable[[Array], Features]  # uint8 [N, H, W, C] -> Features on the host
    classifier: str | None  # what gives the classes of the data set, for results; None if nothing does
    cache: Path  # folder for what is measured of real images
    plain: 'FeatureNetwork | None' = None  # without the classifier and the second network, where it has one of them
    second: 'FeatureNetwork | None' = None  # another one that sees the same images, for its Frechet distance

    def check_images(self, image_shape: tuple[int, ...], what: str) -> None:
        """Raises a UserError that names `what` holds the images, unless it takes such images."""
        check_images(self.image_shape, image_shape, what, self.name)

    def check_same(self, sha256: str) -> None:
        """Raises a UserError unless the weights are those that process 0 has, of which `sha256` is the digest."""
        if self.sha256 != sha256:
            raise UserError(
                f'{self.name} has other weights in {self.cache} here than for process 0: give a config.eval.cache_dir '
                'that all processes see.'
            )


def check_images(expected: tuple[int | None, ...], image_shape: tuple[int, ...], what: str, name: str) -> None:
    """Raises a UserError unless a network takes the images (H, W, C) that `what` holds; None where any size will do."""
    if len(image_shape) != 3 or any(want not in (None, have) for want, have in zip(expected, image_shape, strict=True)):
        words = f'{expected[-1]} channels' if None in expected else 'x'.join(map(str, expected))
        raise UserError(
            f'{what} has images of {"x".join(map(str, image_shape))}, but {name} takes images of {words}: '
            'give such, or set config.eval.features to the other network.'
        )


def default_cache(folder: str) -> Path:
    """Returns `config.eval.cache_dir` as a path; '' is a folder in the user's cache."""
    own = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(folder or user_path(f'{own}/cfg_diffusion', 'XDG_CACHE_HOME'))


def on_devices(fn: Callable[[Any, Array], Any], params: Any, *, batch_size: int) -> Callable[[Array], Any]:
    """Runs a network over the devices of this process, whatever the number of images.

    Args:
      fn: (params on the device, images of one device) -> arrays of one entry an image.
      batch_size: images at a time over the devices of all processes; the last batch is filled up.
    """
    share = parallel.per_device(batch_size, 'config.eval.batch_size', parallel.everywhere())
    batch_size = share * len(parallel.local_devices())
    run = parallel.pmap(fn, num_args=2)
    params = parallel.replicate(params)

    def extract(images: Array) -> Features:
        started = []
        for start in range(0, len(images), batch_size):
            take = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
            started.append(run(params, parallel.shard(images[take])))
        outputs = [parallel.unshard(output) for output in started]  # the devices go on while the host copies
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(images)], *outputs)

    return extract


def shared(network: FeatureNetwork) -> FeatureNetwork:
    """Divides images that all processes hold: each sees its share of them, and all get the features of all."""
    if processes.count() == 1:
        return network

    def extract(images: Array) -> Features:
        share = -(-len(images) // processes.count())
        own = np.minimum(processes.index() * share + np.arange(share), len(images) - 1)
        features = processes.gather(network.extract(images[own]))
        return jax.tree.map(lambda x: x[: len(images)], features)

    return dataclasses.replace(network, extract=extract)


def with_second(network: FeatureNetwork, second: FeatureNetwork) -> FeatureNetwork:
    """Puts a second network beside one: both see each image, and their features come together."""

    def extract(images: Array) -> Features:
        return network.extract(images)._replace(second=second.extract(images).pool)

    return dataclasses.replace(network, extract=extract, plain=network.plain or network, second=second)


def inception_features(params: Any, images: jax.Array) -> Features:
    """Computes the features of uint8 images [N, H, W, 3], in float32 throughout, as published numbers are."""
    with jax.default_matmul_precision('highest'):
        output = Inception().apply({'params': params}, images)
    return Features(output.pool, output.spatial, jax.nn.log_softmax(output.logits), None)


def inception(weights: str, cache: Path, *, batch_size: int) -> FeatureNetwork:
    """Opens the Inception network of published FIDs.

    Args:
      weights: path of one of its public files; '' = the one in `cache`.
      batch_size: images at a time over all devices.

    Raises:
      UserError: when the weights are missing or damaged.
    """
    from cfg.features.weights import INCEPTION_FILES, load_weights

    loaded = load_weights(INCEPTION_FILES, weights, cache)
    return FeatureNetwork(
        name=INCEPTION,
        sha256=loaded.params_sha256,
        file_sha256=loaded.file_sha256,
        width=WIDTH,
        spatial_width=SPATIAL_WIDTH,
        image_shape=COLOUR_IMAGES,
        extract=on_devices(inception_features, loaded.params, batch_size=batch_size),
        classifier=None,
        cache=cache,
    )


def dinov2_features(sizes: Sizes) -> Callable[[Any, jax.Array], Features]:
    """Returns what computes the features of uint8 images [N, H, W, 3], in float32 throughout, as published ones are."""

    def features(params: Any, images: jax.Array) -> Features:
        with jax.default_matmul_precision('highest'):
            return Features(Dinov2(sizes).apply({'params': params}, images), None, None, None)

    return features


def dinov2(weights: str, cache: Path, *, resize: str, batch_size: int, sizes: Sizes = VIT_L14) -> FeatureNetwork:
    """Opens DINOv2, whose class token is the features of published FD-DINOv2.

    Args:
      weights: path of one of its public files; '' = the one in `cache`.
      resize: 'torch' or 'pil', see `resize_torch` and `resize_pil`.
      batch_size: images at a time over all devices.

    Raises:
      UserError: when the weights are missing or damaged.
    """
    from cfg.features.weights import dinov2_files, load_weights

    loaded = load_weights(dinov2_files(sizes), weights, cache)
    run = on_devices(dinov2_features(sizes), loaded.params, batch_size=batch_size)
    return FeatureNetwork(
        name=f'{DINOV2} (bicubic of {resize})',
        sha256=hashlib.sha256(f'{loaded.params_sha256} {resize}'.encode()).hexdigest(),
        file_sha256=loaded.file_sha256,
        width=sizes.width,
        spatial_width=0,
        image_shape=COLOUR_IMAGES,
        extract=run if resize == 'torch' else lambda images: run(resize_pil(images, sizes.pixels)),
        classifier=None,
        cache=cache,
    )
