"""Feature networks of FID and inception score, behind one interface."""

import contextlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
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
from cfg.errors import UserError
from cfg.evaluation.statistics import Moments, Splits
from cfg.files import write_whole
from cfg.models.classifier import SmallClassifier, cross_entropy
from cfg.progress import Progress
from cfg.training.state import sha256

# Width of the features of each network, by its config name.
WIDTHS = {'small_classifier': 64}


def feature_width(name: str) -> int:
    """The number of features of a network, without making it.

    Raises:
      UserError: on an unknown name.
    """
    if name not in WIDTHS:
        raise UserError(f'config.eval.features={name!r} must be one of {", ".join(WIDTHS)}.')
    return WIDTHS[name]


@dataclass(frozen=True)
class FeatureNetwork:
    """What a sweep needs to know of a feature network.

    Attributes:
      name: for results and figures; says what the features are.
      sha256: of the weights.
      width: number of features D.
      extract: uint8 [N, H, W, C] -> (features [N, D], log p(class) [N, C]), float32 on the host.
      labels_match: whether its classes are those of the data set, so that agreement with labels means something.
    """

    name: str
    sha256: str
    width: int
    extract: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    labels_match: bool


def open_features(name: str, cache: Path, train: Source) -> FeatureNetwork:
    """A feature network by its config name; its weights are kept in the folder `cache`.

    Args:
      train: real images, for a network that must be trained.

    Raises:
      UserError: on an unknown name, or a damaged weight file.
    """
    feature_width(name)
    return {'small_classifier': small_classifier}[name](cache, train)


class FeatureStatistics:
    """What FID, inception score and agreement with labels need of a stream of images.

    Args:
      network: the features.
      is_split_size: samples a split of the inception score.

    Attributes:
      moments: of the features.
      splits: the sums of the inception score.
      count: number of images.
    """

    def __init__(self, network: FeatureNetwork, *, is_split_size: int):
        self._extract = network.extract
        self.moments, self.splits, self.count = Moments.empty(network.width), Splits(is_split_size), 0

    def add(self, images: np.ndarray) -> np.ndarray:
        """Takes the next images, uint8 [N, H, W, C]; returns the most likely class of each, [N]."""
        features, log_p = self._extract(images)
        self.moments = self.moments.merge(Moments.of(features))
        self.splits.add(log_p)
        self.count += len(images)
        return log_p.argmax(axis=1)


def measure(
    network: FeatureNetwork, source: Source, *, batch_size: int, is_split_size: int
) -> tuple[FeatureStatistics, float]:
    """Statistics of a data set, batch by batch, and how often the most likely class is the label."""
    statistics, agree = FeatureStatistics(network, is_split_size=is_split_size), 0
    progress = Progress(f'real images of {source.name}', len(source), unit='image')
    for start in range(0, len(source), batch_size):
        batch = source.fetch(range(start, min(start + batch_size, len(source))))
        agree += int(np.sum(statistics.add(batch['image']) == batch['label']))
        progress.update(statistics.count)
    return statistics, agree / len(source)


def small_classifier(cache: Path, train: Source) -> FeatureNetwork:
    """A small convolutional classifier of the data set itself, trained on its real images; not Inception.

    Its numbers compare models of one data set with each other, and with nothing published. It is trained when `cache`
    does not hold it yet (for the digits a minute or less on a CPU), and kept there as an npz, so that every row of a
    sweep is measured with the same weights.
    """
    # Halved until 2x2 to 3x3 positions are left, as the 8x8 digits are.
    halvings = max(int(math.log2(min(train.image_shape[:2]))) - 1, 1)
    network = SmallClassifier(
        num_classes=train.num_classes,
        width=WIDTHS['small_classifier'],
        channels=(32, *[64] * (halvings - 1)),
    )
    what = train.name.partition('/')[0]
    path = cache / f'{what}_classifier.npz'
    if not path.exists():
        _train(network, path, train)
    params = _load(path, network, train.image_shape)

    @jax.jit
    def run(images):
        # Scores must not move with the hardware's idea of a float32 product.
        with jax.default_matmul_precision('highest'):
            features, logits = network.apply({'params': params}, to_float(images))
        return features, jax.nn.log_softmax(logits)

    def extract(images):
        return tuple(np.asarray(x) for x in run(images))

    return FeatureNetwork(
        name=f'{what} classifier ({network.width} features; not Inception)',
        sha256=sha256(params),
        width=network.width,
        extract=extract,
        labels_match=True,
    )


def _train(network: SmallClassifier, path: Path, source: Source, *, num_steps: int = 600, batch_size: int = 64) -> None:
    """Trains the classifier, images shifted by up to a pixel, and writes it."""
    schedule = optax.cosine_decay_schedule(3e-3, num_steps)
    tx = optax.adamw(schedule, weight_decay=1e-2)

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
    progress = Progress(f'classifier of {source.name}', num_steps, unit='step')
    with contextlib.closing(train_batches(source, batch_size=batch_size, seed=0, start_step=0)) as batches:
        for index in range(num_steps):
            params, opt_state = step(params, opt_state, next(batches), index)
            progress.update(index + 1)
    _write(path, jax.tree.map(np.asarray, params))


def _write(path: Path, params: Any) -> None:
    """Writes arrays as npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **traverse_util.flatten_dict(params, sep='/'))
    write_whole(path, buffer.getvalue())


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
