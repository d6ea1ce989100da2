"""Rescaling, thresholding and projection: identities, float64, and the functions of diffusers."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hypothesis.extra import numpy as hnp

from cfg.diffusion import corrections

# Components of 2^-10 or more, or 0, so that squares do not underflow.
VALUES = st.one_of(st.just(0.0), st.floats(2.0**-10, 100, width=32), st.floats(-100, -(2.0**-10), width=32))
IMAGES = hnp.arrays(np.float32, (3, 2, 2, 2), elements=VALUES)
# Subnormal numbers may be flushed to 0.
UNIT_CUBE = hnp.arrays(np.float32, (2, 2, 2), elements=st.floats(-1, 1, width=32, allow_subnormal=False))


def _images(seed=0, scale=1.0, shape=(4, 3, 3, 2)):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def _norm(v):
    return np.sqrt(np.square(np.float64(v)).sum(axis=(1, 2, 3)))


# --- rescaling ---


@hypothesis.given(IMAGES, IMAGES)
def test_phi_1_gives_the_standard_deviation_of_the_conditional_output(guided, cond):
    axes = (1, 2, 3)
    result = np.float64(corrections.rescale(guided, cond, phi=1.0))
    spread, expected = np.float64(guided).std(axis=axes), np.float64(cond).std(axis=axes)
    contrast = spread > 1e-5 * np.abs(guided).max(axis=axes)
    # A deviation is known to the rounding of the values that it is of, and the image is multiplied by their ratio.
    factor = np.abs(guided).max(axis=axes) / np.where(contrast, spread, 1)
    bound = 1e-6 * factor * (np.abs(cond).max(axis=axes) + 10 * expected)
    assert (np.abs(result.std(axis=axes) - expected) <= bound)[contrast].all()


def test_an_image_of_one_value_is_not_changed():
    guided = np.full((2, 2, 2, 2), 43.0189, np.float32)
    np.testing.assert_array_equal(corrections.rescale(guided, _images(0, shape=guided.shape), phi=1.0), guided)


@hypothesis.given(IMAGES, IMAGES)
def test_phi_0_changes_nothing(guided, cond):
    np.testing.assert_array_equal(corrections.rescale(guided, cond, phi=0.0), guided)


@pytest.mark.parametrize('phi', [0.0, 0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(phi):
    guided, cond = _images(0, 3.0), _images(1)
    expected = rescale_noise_cfg(torch.tensor(guided), torch.tensor(cond), guidance_rescale=phi)
    np.testing.assert_allclose(corrections.rescale(guided, cond, phi=phi), expected, rtol=1e-5, atol=1e-6)


def test_each_image_is_rescaled_on_its_own_by_its_own_phi():
    guided, cond, phi = _images(0, 3.0), _images(1), np.float32([0, 0.2, 0.7, 1])
    together = corrections.rescale(guided, cond, phi=phi)
    for i in range(4):
        alone = corrections.rescale(guided[i : i + 1], cond[i : i + 1], phi=phi[i])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6)


# --- thresholding ---


@hypothesis.given(IMAGES, st.floats(0, 1, width=32))
def test_thresholded_images_are_in_the_unit_cube(x, quantile):
    assert np.abs(corrections.dynamic_threshold(x, quantile=quantile)).max() <= 1.0


@hypothesis.given(UNIT_CUBE, st.floats(0, 1, width=32))
def test_images_in_the_unit_cube_are_not_changed(x, quantile):
    np.testing.assert_array_equal(corrections.dynamic_threshold(x, quantile=quantile), x)


@pytest.mark.parametrize('quantile', [0.3, 0.9, 0.995, 1.0])
def test_thresholding_is_that_of_diffusers(quantile):
    # diffusers has channels first; the axes do not matter.
    x = _images(0, 1.0) * np.float32([0.1, 1, 4, 30]).reshape(4, 1, 1, 1)
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=1e6)
    expected = scheduler._threshold_sample(torch.tensor(x))
    actual = corrections.dynamic_threshold(x, quantile=quantile)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    changed = np.abs(actual - x).max(axis=(1, 2, 3)) > 1e-3
    assert changed.any()
    assert not changed[0]


def test_quantile_0_is_clipping_and_1_is_division_by_the_largest():
    x = _images(0, 4.0)
    np.testing.assert_array_equal(corrections.dynamic_threshold(x, quantile=0.0), np.clip(x, -1, 1))
    largest = np.abs(x).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(corrections.dynamic_threshold(x, quantile=1.0), x / largest, rtol=1e-6)


# --- projection ---


@hypothesis.given(IMAGES, IMAGES)
def test_the_two_parts_add_up_and_are_parallel_and_orthogonal(v, onto):
    parallel, orthogonal = (np.float64(part) for part in corrections.decompose(v, onto))
    size = _norm(v)
    assert (_norm(parallel + orthogonal - v) <= 1e-6 * size).all()
    assert (np.abs((orthogonal * onto).sum(axis=(1, 2, 3))) <= 2e-6 * size * _norm(onto)).all()
    # Parallel: what is left of it after projection onto `onto` in float64 is rounding.
    square = np.square(np.float64(onto)).sum(axis=(1, 2, 3))
    along = (parallel * onto).sum(axis=(1, 2, 3)) / np.where(square > 0, square, 1)
    assert (_norm(parallel - along[:, None, None, None] * onto) <= 1e-6 * size).all()


def test_an_estimate_of_0_has_no_parallel_part():
    v = _images()
    parallel, orthogonal = corrections.decompose(v, np.zeros_like(v))
    np.testing.assert_array_equal(parallel, np.zeros_like(v))
    np.testing.assert_array_equal(orthogonal, v)


@hypothesis.given(IMAGES, st.floats(2.0**-10, 1000, width=32))
def test_norms_are_cut_and_directions_kept(v, threshold):
    cut = np.float64(corrections.limit_norm(v, norm_threshold=np.float32(threshold)))
    size = _norm(v)
    np.testing.assert_allclose(_norm(cut), np.minimum(size, threshold), rtol=1e-5)
    expected = v * np.minimum(1, threshold / np.where(size > 0, size, np.inf))[:, None, None, None]
    assert (_norm(cut - np.where(size[:, None, None, None] > 0, expected, 0)) <= 1e-5 * size).all()


def test_an_infinite_threshold_changes_nothing():
    v = np.concatenate([_images(), np.zeros((1, 3, 3, 2), np.float32)])
    np.testing.assert_array_equal(corrections.limit_norm(v, norm_threshold=np.inf), v)


@pytest.mark.parametrize('threshold', [0.0, 0.5, 2.5])
def test_an_update_of_0_stays_0(threshold):
    zero = np.zeros((2, 3, 3, 2), np.float32)
    np.testing.assert_array_equal(corrections.limit_norm(zero, norm_threshold=threshold), zero)


@pytest.mark.parametrize('momentum', [None, -0.75, 0.5])
@pytest.mark.parametrize(('eta', 'threshold'), [(1.0, 0.0), (0.0, 0.0), (0.0, 2.5), (0.3, 2.5)])
def test_projection_along_steps_is_that_of_diffusers(eta, threshold, momentum):
    buffer = None if momentum is None else MomentumBuffer(momentum)
    ours = np.float32(0)
    for step in range(4):
        cond, uncond = _images(step), _images(step + 10)
        expected = normalized_guidance(
            torch.tensor(cond), torch.tensor(uncond), 1.7, buffer, eta, threshold, use_original_formulation=True
        )
        ours = cond - uncond + np.float32(momentum or 0) * ours
        # There a threshold of 0 means none.
        actual = corrections.adaptive_projection(
            cond, ours, np.float32(1.7), eta=eta, norm_threshold=threshold or np.inf
        )
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@hypothesis.given(IMAGES, IMAGES, st.floats(-2, 8, width=32))
def test_projection_that_keeps_all_is_eq_6(cond, uncond, w):
    update = cond - uncond
    actual = corrections.adaptive_projection(cond, update, np.float32(w), eta=1.0, norm_threshold=np.inf)
    expected = (1 + np.float64(w)) * cond - np.float64(w) * uncond
    bound = 1e-6 * (1 + abs(w)) * (_norm(cond) + _norm(uncond))
    assert (_norm(actual - expected) <= bound).all()


def test_corrections_take_one_setting_an_example_and_compile():
    cond, update = _images(0), _images(1)
    settings = {'eta': np.float32([0, 0.5, 1, 1]), 'norm_threshold': np.float32([np.inf, 1, 1, 0.1])}
    w = np.float32([0, 1, 2, 3])
    together = jax.jit(corrections.adaptive_projection)(cond, update, w, **settings)
    np.testing.assert_array_equal(together[0], cond[0])
    for i in range(4):
        one = slice(i, i + 1)
        alone = corrections.adaptive_projection(
            cond[one], update[one], w[i], **{name: value[i] for name, value in settings.items()}
        )
        np.testing.assert_allclose(together[one], alone, rtol=1e-5, atol=1e-6)
    assert together.dtype == jnp.float32
