"""Weights of the loss, against their definitions in other parametrisations, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from cfg.diffusion import loss, process, weights
from cfg.diffusion.weights import LossWeight

LIMITS = {'logsnr_min': -20.0, 'logsnr_max': 20.0}


def scales(logsnr):
    """alpha and sigma of Eq. 1 in float64."""
    return np.sqrt(scipy.special.expit(logsnr)), np.sqrt(scipy.special.expit(-logsnr))


def paper_density(logsnr):
    """The paper's p(logsnr) in float64, of the whole range."""
    b = np.arctan(np.exp(-10.0))
    return 1.0 / (4.0 * (np.arctan(np.exp(10.0)) - b) * np.cosh(logsnr / 2))


def edm_loss_density(logsnr, error_of_x):
    """EDM's loss of an error |D - x|, per logsnr: lambda(sigma) |D - x|^2 p(ln sigma) |d ln sigma / d logsnr|."""
    sigma = np.exp(-logsnr / 2)
    weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    return weight * error_of_x**2 * scipy.stats.norm.pdf(np.log(sigma), -1.2, 1.2) * 0.5


def factor(name, logsnr, prediction='eps', limits=LIMITS, **options):
    weight = LossWeight(name=name, **options)
    return np.exp(float(weight.log_factor(jnp.float32(logsnr), prediction=prediction, **limits)))


@given(st.floats(-20, 20))
def test_weights_turn_the_error_of_one_prediction_into_that_of_another(logsnr):
    # x = (z - sigma eps) / alpha and v = alpha eps - sigma x, in float64, of an error 1 of eps at the same z.
    alpha, sigma = scales(logsnr)
    squared = {'eps': 1.0, 'x': (sigma / alpha) ** 2, 'v': (alpha + sigma**2 / alpha) ** 2}
    squared['truncated'] = max(squared['x'], squared['eps'])
    for weighting in weights.WEIGHTINGS:
        for prediction in process.PREDICTIONS:
            got = weights.log_weight(jnp.float32(logsnr), prediction=prediction, weighting=weighting)
            assert np.exp(float(got)) == pytest.approx(squared[weighting] / squared[prediction], rel=2e-5)


@given(st.floats(-20, 20), st.floats(-3, 3))
def test_an_error_counts_what_the_sources_say(logsnr, bias):
    """What an error of eps of size 1 adds to the loss per logsnr; it is the same for each prediction's error."""
    logsnr = float(np.float32(logsnr))
    alpha, sigma = scales(logsnr)
    of_x = sigma / alpha  # also the error of EDM's D, as its noisy image is z / alpha
    density = paper_density(logsnr)
    assert factor('eps', logsnr) == 1.0
    assert factor('v', logsnr) == pytest.approx((alpha + sigma * of_x) ** 2, rel=2e-5)
    assert density * factor('edm', logsnr) == pytest.approx(edm_loss_density(logsnr, of_x), rel=1e-4)
    sigmoid = factor('sigmoid', logsnr, bias=bias)
    assert density * sigmoid == pytest.approx(scipy.special.expit(bias - logsnr), rel=1e-4)
    drawn = scipy.stats.norm.pdf(logsnr, 2.4, 2.4)
    assert drawn * factor('edm', logsnr, times='edm') == pytest.approx(edm_loss_density(logsnr, of_x), rel=1e-4)
    for name in ('eps', 'v', 'edm', 'sigmoid'):
        assert factor(name, logsnr, prediction='x') * of_x**2 == pytest.approx(factor(name, logsnr), rel=1e-4)


@pytest.mark.parametrize(('low', 'high'), [(-20.0, 20.0), (-6.0, 9.0), (1.0, 3.0)])
def test_levels_of_edm_are_its_normal_within_the_range(low, high):
    u = np.linspace(0, 1, 201)
    got = LossWeight(name='edm', times='edm').levels(jnp.float32(u), logsnr_min=low, logsnr_max=high)
    law = scipy.stats.truncnorm((low - 2.4) / 2.4, (high - 2.4) / 2.4, 2.4, 2.4)
    np.testing.assert_allclose(got[1:-1], law.isf(u[1:-1]), atol=1e-4)
    np.testing.assert_allclose(np.float32(got)[[0, -1]], (high, low), atol=1e-4)


@pytest.mark.parametrize(('low', 'high'), [(-20.0, 20.0), (-6.0, 9.0)])
@pytest.mark.parametrize('prediction', process.PREDICTIONS)
def test_either_law_of_times_has_edms_loss_as_its_mean(prediction, low, high):
    """With stratified times over both laws, of a network whose error of x is min(1, sigma)."""
    limits, count = {'logsnr_min': low, 'logsnr_max': high}, 100_000
    x = jnp.zeros((count, 1))

    def network(z, logsnr, labels):
        wrong = jnp.minimum(1.0, jnp.exp(-logsnr / 2))[:, None]
        return process.target(wrong, process.eps_from_x(z, wrong, logsnr), logsnr, prediction=prediction)

    u = (jnp.arange(count) + 0.5) / count
    draws = loss.Draws(u_label=u, u_time=u, eps=jnp.zeros_like(x), u_strength=u, key=u)
    options = {'p_uncond': 0.0, 'null_label': 1, 'prediction': prediction, **limits}
    expected = scipy.integrate.quad(
        lambda logsnr: edm_loss_density(logsnr, min(1.0, np.exp(-logsnr / 2))), low, high, limit=200
    )[0]
    for times in weights.TIMES:
        weight = LossWeight(name='edm', times=times)
        losses = jax.jit(functools.partial(loss.denoising_loss, network, weight=weight, **options))(
            x, jnp.zeros(count, jnp.int32), draws
        )
        assert float(losses.mean()) == pytest.approx(expected, rel=2e-3)


def test_other_names_are_refused():
    for options in ({'name': 'x'}, {'name': 'edm', 'times': 'uniform'}, {'name': 'eps', 'times': 'edm'}):
        with pytest.raises(ValueError, match='there is no weight'):
            LossWeight(**options)
