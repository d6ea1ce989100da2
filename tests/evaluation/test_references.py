"""The floor of a number of samples: draws of the real features with labels as those of samples."""

import numpy as np
import pytest

from cfg.evaluation.references import FLOOR_DRAWS, Gaussian, Reference
from cfg.metrics import distances
from cfg.metrics.moments import Moments

CLASSES = 4


def reference_of(features, labels):
    features = np.float32(features)
    pool = Gaussian.of(Moments.of(features))
    named = {'name': 'real', 'sha256': 'a' * 64, 'file_sha256': None, 'image_shape': (8, 8, 1)}
    more = {'pool': pool, 'spatial': None, 'second': None, 'features': features, 'labels': lambda: labels}
    return Reference(**named, count=len(features), **more)


def of_classes(count):
    """Features that are the class alone: what is left of their spread is that between classes."""
    labels = np.arange(count) % CLASSES
    return np.eye(CLASSES)[labels], labels


def test_balanced_labels_have_no_spread_between_classes():
    """Whole rounds of the classes have just the moments of the reference, and any share of a class has others."""
    reference = reference_of(*of_classes(40))
    balanced = reference.beside(20, labels='balanced', num_classes=CLASSES)
    random = reference.beside(20, labels='random', num_classes=CLASSES)
    exact = Moments.of(of_classes(20)[0])
    # The two covariances differ by the factors n / (n - 1) alone.
    assert balanced.finite_sample_fid == pytest.approx(distances.frechet_distance(*reference.pool, *Gaussian.of(exact)))
    assert random.finite_sample_fid > 5 * balanced.finite_sample_fid
    assert balanced.finite_sample_draws == f'{FLOOR_DRAWS[1]} draws of balanced labels'


def test_the_draws_are_what_a_perfect_model_draws():
    """Its samples are independent draws of each class: their FID has the same mean."""
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % CLASSES
    features = rng.normal(size=(4000, 3)) + 2.0 * np.eye(CLASSES)[labels][:, :3]
    found = reference_of(features, labels).beside(100, labels='balanced', num_classes=CLASSES).finite_sample_fid
    wanted = []
    for _ in range(200):
        drawn = np.arange(100) % CLASSES
        x = Moments.of(rng.normal(size=(100, 3)) + 2.0 * np.eye(CLASSES)[drawn][:, :3])
        wanted.append(distances.fid(x, Moments.of(features)))
    assert found == pytest.approx(np.mean(wanted), abs=4 * np.std(wanted) / np.sqrt(FLOOR_DRAWS[1]))


def test_any_labels_where_those_of_the_samples_are_not_known():
    reference = reference_of(np.random.default_rng(0).normal(size=(50, 3)), None)
    assert reference.beside(10).finite_sample_fid > 0
    assert reference.beside(10).finite_sample_draws == f'{FLOOR_DRAWS[1]} draws of any labels'


@pytest.mark.parametrize(
    ('features', 'labels'),
    [
        (np.zeros((50, 3)), None),  # nobody knows their classes
        (np.zeros((50, 3)), np.zeros(50, int)),  # some classes have no image
        (np.zeros((3, 3)), np.zeros(3, int)),  # fewer than tell a covariance
    ],
)
def test_where_real_images_cannot_be_drawn_so_there_is_no_floor(features, labels):
    beside = reference_of(features, labels).beside(10, labels='balanced', num_classes=CLASSES)
    assert beside.finite_sample_fid is beside.finite_sample_draws is None
