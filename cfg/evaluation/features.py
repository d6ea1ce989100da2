"""Feature networks of FID and inception score, behind one interface."""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from cfg.data.digits import digits
from cfg.data.images import to_float
from cfg.data.source import ArraySource, train_batches
from cfg.errors import UserError
from cfg.evaluation.statistics import Moments, Splits
from cfg.files import write_whole
from cfg.models.classifier import SmallClassifier, cross_entropy
from cfg.progress import Progress
from cfg.training.state import sha256

log = logging.getLogger('cfg')

# Width of the features of each network, by its config name.
WIDTHS = {'digits_classifier': 64}


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


def open_features(name: str, cache: Path) -> FeatureNetwork:
    """A feature network by its config name; its weights are kept in the folder `cache`.

    Raises:
      UserError: on an unknown name, or a damaged weight file.
    """
    feature_width(name)
    return {'digits_classifier': digits_classifier}[name](cache)


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
    network: FeatureNetwork, images: np.ndarray, *, batch_size: int, is_split_size: int
) -> tuple[FeatureStatistics, np.ndarray]:
    """Statistics of images uint8 [N, H, W, C], batch by batch, and the most likely class of each, [N]."""
    statistics = FeatureStatistics(network, is_split_size=is_split_size)
    starts = range(0, len(images), batch_size)
    return statistics, np.concatenate([statistics.add(images[start : start + batch_size]) for start in starts])


def digits_classifier(cache: Path) -> FeatureNetwork:
    """A small convolutional classifier, trained on the training half of the real digits; not Inception.

    It is trained when `cache` does not hold it yet (a minute or less on a CPU), and kept there as an npz, so that
    every row of a sweep is measured with the same weights.
    """
    network = SmallClassifier(num_classes=10, width=WIDTHS['digits_classifier'])
    path = cache / 'digits_classifier.npz'
    if not path.exists():
        _train(network, path)
    params = _load(path, network)

    @jax.jit
    def run(images):
        # Scores must not move with the hardware's idea of a float32 product.
        with jax.default_matmul_precision('highest'):
            features, logits = network.apply({'params': params}, to_float(images))
        return features, jax.nn.log_softmax(logits)

    def extract(images):
        return tuple(np.asarray(x) for x in run(images))

    test = digits('test')
    accuracy = np.mean(extract(test.images)[1].argmax(axis=1) == test.labels)
    log.info('digits classifier: %.2f %% of the real test half recognised.', 100 * accuracy)
    return FeatureNetwork(
        name=f'digits classifier ({network.width} features; not Inception)',
        sha256=sha256(params),
        width=network.width,
        extract=extract,
        labels_match=True,
    )


def _train(network: SmallClassifier, path: Path, *, num_steps: int = 600, batch_size: int = 64) -> None:
    """Trains the classifier on the training half, images shifted by up to a pixel, and writes it."""
    source = digits('train')
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

    params = network.init(jax.random.key(0), to_float(source.images[:1]))['params']
    opt_state = tx.init(params)
    progress = Progress('digits classifier', num_steps, unit='step')
    batches = train_batches(source, batch_size=batch_size, seed=0, start_step=0)
    for index in range(num_steps):
        params, opt_state = step(params, opt_state, next(batches), index)
        progress.update(index + 1)
    _write(path, jax.tree.map(np.asarray, params))


def _write(path: Path, params: Any) -> None:
    """Writes arrays as npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **traverse_util.flatten_dict(params, sep='/'))
    write_whole(path, buffer.getvalue())


def _load(path: Path, network: SmallClassifier) -> Any:
    source: ArraySource = digits('train')
    try:
        with np.load(path, allow_pickle=False) as file:
            flat = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds on a damaged file
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}): delete it, and it is trained again.'
        ) from error
    params = traverse_util.unflatten_dict(flat, sep='/')
    expected = jax.eval_shape(lambda: network.init(jax.random.key(0), to_float(source.images[:1]))['params'])
    if jax.tree.map(lambda x: x.shape, params) != jax.tree.map(lambda x: x.shape, expected):
        raise UserError(f'{path} holds another network than the digits classifier: delete it, and it is trained again.')
    return params
