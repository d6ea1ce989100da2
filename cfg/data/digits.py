"""Loads scikit-learn's digits: 1797 grey 8x8 images of handwritten digits, bundled with the package (no download).

Source: the test half of UCI "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998); 17 grey levels.
"""

import numpy as np

from cfg.data.source import ArraySource

SPLITS = ('all', 'train', 'test')


def _in_train(labels: np.ndarray) -> np.ndarray:
    """Draws a fixed random half of each class (the larger one where the count is odd), as a boolean mask."""
    mask = np.zeros(len(labels), bool)
    rng = np.random.default_rng(0)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        mask[members[::2]] = True
    return mask


def digits(split: str) -> ArraySource:
    """Loads the digits as uint8 images, their 0..16 grey levels spread over 0..255.

    The split is 'all' (1797), 'train' (a fixed random half of each class) or 'test' (the other half).

    Raises:
      ValueError: on another split.
    """
    if split not in SPLITS:
        raise ValueError(f'digits has the splits {", ".join(SPLITS)}, not {split!r}')
    from sklearn.datasets import load_digits  # here, so that what needs no images needs no scikit-learn

    values, labels = load_digits(return_X_y=True)
    images = np.round(values.reshape(-1, 8, 8, 1) * (255.0 / 16.0)).astype(np.uint8)
    labels = labels.astype(np.int32)
    train = _in_train(labels)
    chosen = {'all': np.ones_like(train), 'train': train, 'test': ~train}[split]
    return ArraySource(f'digits/{split}', images[chosen], labels[chosen], tuple(str(d) for d in range(10)))
