"""Averages by power functions: their profiles against quadrature, their weights against those of a recorded run."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from cfg.runs.profiles import exponent, inner_product, length_of, share, solve

times, lengths = st.floats(1.0, 1e6), st.floats(0.01, 12**-0.5)


def profile(t, time, gamma):
    return (gamma + 1) * (t / time) ** gamma / time if t <= time else 0.0


@given(length=lengths)
def test_length_and_exponent_are_inverse(length):
    gamma = exponent(length)
    assert gamma >= -1e-9
    assert length_of(gamma) == pytest.approx(length, rel=1e-9)


@given(length=lengths)
def test_a_length_is_the_standard_deviation_of_its_profile(length):
    gamma = exponent(length)
    total, mean, square = (
        integrate.quad(lambda t, n=n: t**n * profile(t, 1.0, gamma), 0, 1, points=[0.8])[0] for n in (0, 1, 2)
    )
    assert total == pytest.approx(1.0, rel=1e-8)
    assert np.sqrt(square - mean**2) == pytest.approx(length, rel=1e-6)


@given(a=times, length_a=lengths, b=times, length_b=lengths)
def test_inner_products_are_integrals(a, length_a, b, length_b):
    pair = (a, exponent(length_a)), (b, exponent(length_b))
    end = min(a, b)

    def product(t):
        return profile(t * end, *pair[0]) * profile(t * end, *pair[1])

    expected = end * integrate.quad(product, 0, 1, points=[0.9, 0.99], epsabs=0)[0]
    assert inner_product(*pair[0], *pair[1]) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@pytest.mark.parametrize('length', [0.02, 0.05, 0.1, 0.28])
def test_the_weights_of_steps_are_those_of_the_profile(length):
    """The weight of a step is the integral of the profile over it, whatever the parameters are."""
    gamma, steps = exponent(length), 60
    weights = np.zeros(steps)
    for step in range(1, steps + 1):
        moved = float(share(jnp.int32(step), gamma))
        weights *= 1 - moved
        weights[step - 1] += moved
    expected = [integrate.quad(profile, i, i + 1, args=(steps, gamma))[0] for i in range(steps)]
    np.testing.assert_allclose(weights, expected, atol=2e-6)


def test_what_was_kept_is_found_again():
    ts, gammas = np.array([3.0, 3.0, 7.0, 7.0]), np.array([exponent(x) for x in (0.05, 0.1)] * 2)
    weights, missing = solve(ts, gammas, time=7.0, gamma=gammas[3])
    np.testing.assert_allclose(weights, [0, 0, 0, 1], atol=1e-9)
    assert missing < 1e-6


@pytest.mark.parametrize('length', [0.05, 0.06, 0.08, 0.15, 0.2])
def test_a_made_profile_is_the_wanted_one(length):
    """The missing share is that of the profiles on a fine grid, and the weights are no worse than others near them."""
    ts = np.repeat(np.arange(1, 25) * 50.0, 2)
    gammas = np.tile([exponent(0.05), exponent(0.1)], 24)
    weights, missing = solve(ts, gammas, time=1200.0, gamma=exponent(length))
    grid = np.linspace(0, 1200, 40_001)
    wanted = np.array([profile(t, 1200.0, exponent(length)) for t in grid])
    each = np.array([[profile(t, *it) for t in grid] for it in zip(ts, gammas, strict=True)])

    def distance(weights):
        return np.sqrt(integrate.trapezoid((weights @ each - wanted) ** 2, grid) / integrate.trapezoid(wanted**2, grid))

    assert missing == pytest.approx(distance(weights), rel=0.02, abs=1e-4)
    assert missing < 0.012
    assert weights.sum() == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        step = rng.normal(size=48) * 1e-3
        assert distance(weights + step - step.mean()) > missing
