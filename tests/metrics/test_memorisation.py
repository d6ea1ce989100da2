"""Memorisation by its definitions, and of sets whose copies are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfg.metrics.memorisation import COPY_QUANTILE, TrainingSet


def drawn(seed, count):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_the_shares_are_those_of_the_definitions():
    """In float64, by loops."""
    train, held_out, samples = drawn(0, 60), drawn(1, 50), drawn(2, 40) * 0.8

    def distances(x):
        return ((train.astype(np.float64) - x) ** 2).sum(axis=1)

    limit = np.quantile([distances(x).min() for x in held_out], COPY_QUANTILE)
    authentic, copies, nearest = [], [], []
    for sample in samples:
        of_sample = distances(sample)
        nearest.append(of_sample.argmin())
        to_others = np.delete(distances(train[nearest[-1]]), nearest[-1])
        authentic.append(to_others.min() < of_sample.min())
        copies.append(of_sample.min() < limit)
    found = TrainingSet.of(train, held_out).copying(samples)
    assert 0 < found.near_copies < 1
    assert 0 < found.authenticity < 1
    assert (found.authenticity, found.near_copies) == (np.mean(authentic), np.mean(copies))
    assert found.nearest.tolist() == nearest


def test_of_real_images_the_share_of_the_quantile_are_near_copies():
    train, held_out = drawn(0, 2000), drawn(1, 2000)
    training = TrainingSet.of(train, held_out)
    assert training.copying(held_out).near_copies == pytest.approx(COPY_QUANTILE, abs=1e-3)
    assert training.copying(drawn(2, 2000)).near_copies == pytest.approx(COPY_QUANTILE, abs=0.02)


@pytest.mark.parametrize('share', [0.25, 1.0])
def test_copies_are_counted(share):
    """A sample that was copied with a little noise is a near-copy and not authentic."""
    train, samples = drawn(0, 400), drawn(2, 200)
    count = round(share * len(samples))
    samples[:count] = train[:count] + 1e-3
    found = TrainingSet.of(train, drawn(1, 400)).copying(samples)
    fresh = TrainingSet.of(train, drawn(1, 400)).copying(drawn(2, 200)[count:]) if count < 200 else None
    expected = (1.0, 0.0) if fresh is None else (share + 0.75 * fresh.near_copies, 0.75 * fresh.authenticity)
    assert (found.near_copies, found.authenticity) == pytest.approx(expected)
    assert found.nearest[:count].tolist() == list(range(count))


@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.25, 1.0, 8.0]),
    axes=st.permutations(range(4)),
    sign=st.sampled_from([-1, 1]),
)
def test_the_shares_do_not_depend_on_the_scale_the_axes_or_the_order(seed, scale, axes, sign):
    sets = drawn(seed, 17), drawn(seed + 1, 20), drawn(seed + 2, 25)
    order = np.random.default_rng(seed)
    moved = [sign * scale * order.permutation(it)[:, list(axes)] for it in sets]

    def shares(train, held_out, samples):
        found = TrainingSet.of(train, held_out).copying(samples)
        return found.authenticity, found.near_copies

    assert shares(*moved) == shares(*sets)
