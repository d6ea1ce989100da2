"""The small feature network: a classifier of the data set itself, for images that Inception is not meant for."""

import contextlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from cfg.data.images import to_float
from cfg.data.pipeline import train_batches
from cfg.data.source import Source
from cfg.diffusion.loss import cross_entropy
from cfg.features.network import FeatureNetwork, Features, on_devices
from cfg.models.classifier import SmallClassifier
from cfg.runtime.digest import sha256
from cfg.runtime.errors import UserError
from cfg.runtime.files import check_writable, lock, replacing
from cfg.runtime.progress import Progress

WIDTH = 64  # features


def small_classifier(cache: Path, train: Source, *, batch_size: int) -> FeatureNetwork:
    """Opens a small convolutional classifier that learned the data set's own real images; it is not Inception.

    Its numbers compare models of one data set with each other, and with nothing published. It is trained when `cache`
    does not hold it yet (for the digits a minute or less on a CPU), and kept there as an npz that the data's
    fingerprint names, so that every run on these images is measured with the same weights.

    Raises:
      UserError: when the cache cannot be written, or holds a file that is damaged.
    """
    # Halved until 2x2 to 3x3 positions are left, as the 8x8 digits are.
    halvings = max(int(math.log2(min(train.image_shape[:2]))) - 1, 1)
    channels = (32, *[64] * (halvings - 1))
    network = SmallClassifier(num_classes=train.num_classes, width=WIDTH, channels=channels)
    what = train.name.partition('/')[0]
    path = cache / f'{what}_classifier_{train.fingerprint[:16]}.npz'
    if not path.exists():
        check_writable(cache, f'config.eval.cache_dir={cache}')
        with lock(cache, 'eval', part=path.stem, wait=True):  # other runs and jobs wait for it
            if not path.exists():
                _train(network, path, train)
    params = _load(path, network, train.image_shape)

    def features(params, images):
        # Scores must not move with the hardware's idea of a float32 product.
        with jax.default_matmul_precision('highest'):
            pool, logits = network.apply({'params': params}, to_float(images))
        return Features(pool, None, jax.nn.log_softmax(logits), jnp.argmax(logits, axis=1))

    return FeatureNetwork(
        name=f'{what} classifier ({network.width} features; not Inception)',
        sha256=sha256(params),
        file_sha256=None,
        width=network.width,
        spatial_width=0,
        image_shape=tuple(train.image_shape),
        extract=on_devices(features, params, batch_size=batch_size),
        classifier='the feature network',
        cache=cache,
    )


def _train(network: SmallClassifier, path: Path, source: Source, *, num_steps: int = 600, batch_size: int = 64) -> None:
    """Trains the classifier, images shifted by up to a pixel, and writes it."""
    tx = optax.adamw(optax.cosine_decay_schedule(3e-3, num_steps), weight_decay=1e-2)

    def shift(image, key):
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=-1.0)
        top, left = jax.random.randint(key, (2,), 0, 3)
        return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)

    @jax.jit
    def step(params, opt_state, batch, index):
        key = jax.random.fold_in(jax.random.key(0), index)
        images = jax.vmap(shift)(to_float(batch['image']), jax.random.split(key, batch_size))

        def loss_fn(params):
            _, logits = network.apply({'params': params}, images, train=True, rngs={'dropout': key})
            return jnp.mean(cross_entropy(logits, batch['label']))

        grads = jax.grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = network.init(jax.random.key(0), jnp.zeros((1, *source.image_shape)))['params']
    opt_state = tx.init(params)
    progress = Progress(f'classifier of {source.name}', num_steps, unit='step', compiles=True)
    with contextlib.closing(train_batches(source, batch_size=batch_size, seed=0, start_step=0)) as batches:
        for index in range(num_steps):
            params, opt_state = step(params, opt_state, next(batches), index)
            progress.update(index + 1)
    _write(path, jax.tree.map(np.asarray, params))


def _write(path: Path, params: Any) -> None:
    with replacing(path) as file:
        np.savez(file, **traverse_util.flatten_dict(params, sep='/'))


def _load(path: Path, network: SmallClassifier, image_shape: tuple[int, int, int]) -> Any:
    try:
        with np.load(path, allow_pickle=False) as file:
            flat = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on a damaged file
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}): delete it, and it is trained again.'
        ) from error
    params = traverse_util.unflatten_dict(flat, sep='/')
    expected = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *image_shape)))['params'])
    if jax.tree.map(lambda x: x.shape, params) != jax.tree.map(lambda x: x.shape, expected):
        raise UserError(f'{path} holds another network than this needs: delete it, and it is trained again.')
    return params
