"""The rules that change Eq. 6: against float64 numpy, the guiders of diffusers, and what they reduce to."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.guiders import frequency_decoupled_guidance as of_frequencies
from diffusers.guiders.adaptive_projected_guidance import AdaptiveProjectedGuidance
from diffusers.guiders.auto_guidance import AutoGuidance
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.tangential_classifier_free_guidance import TangentialClassifierFreeGuidance

from cfg.diffusion import corrections, process
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Apg, Autoguidance, Cfg, CfgZero, Fdg, Power, Tcfg
from cfg.diffusion.sampler import Sampler
from tests.diffusion.toys import keys, scales

pytestmark = pytest.mark.usefixtures('eager')
COUNT, SHAPE, CLASSES = 4, (8, 8, 3), 5
STRENGTHS = np.float32([0.0, 0.5, 2.0, 7.0])
RULES = [Power(), CfgZero(), CfgZero(prediction='eps'), Tcfg(), Tcfg(prediction='x'), Fdg()]


def arrays(*seeds, shape=SHAPE, count=COUNT):
    return [np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32) for seed in seeds]


def models_of(cond, other, prediction='eps'):
    """Networks whose outputs are two arrays, whatever they are asked at."""
    first = Denoiser(
        lambda *_: jnp.asarray(cond), CLASSES, prediction, lambda *_: (jnp.asarray(cond), jnp.asarray(other))
    )
    return Models(first, weaker=Denoiser(lambda *_: jnp.asarray(other), CLASSES, prediction))


def predict(rule, cond, other, w, *, prediction='eps', level=0.5, z=None, times=1):
    """The rule's prediction from two outputs, at the last of some evaluations."""
    z = arrays(9, shape=cond.shape[1:], count=len(cond))[0] if z is None else z
    labels = np.zeros(len(cond), np.int32)
    guided = Sampler(rule=rule, clip_x=False).guided(models_of(cond, other, prediction), labels, jnp.float32(w))
    state = guided.init(keys(len(cond)), z)
    for _ in range(times):
        found, state = guided.predict(z, jnp.float32(level), state)
    return found


def told_in(prediction, output, z, level, kind):
    """An output of one kind told in another, in float64."""
    alpha, sigma = scales(level)
    output, z = np.float64(output), np.float64(z)
    x, eps = {
        'eps': ((z - sigma * output) / alpha, output),
        'x': (output, (z - alpha * output) / sigma),
        'v': (alpha * z - sigma * output, sigma * z + alpha * output),
    }[kind]
    return {'x': x, 'eps': eps, 'v': alpha * eps - sigma * x}[prediction]


# --- the papers' forms in float64 ---


def dot(a, b):
    return np.einsum('nhwc,nhwc->n', a, b)[:, None, None, None]


def power(c, u, w, sigma):
    scores = -c / sigma, -u / sigma
    size = np.sqrt(dot(scores[0] - scores[1], scores[0] - scores[1]))
    score = scores[0] + w * size**0.9 * (scores[0] - scores[1])
    return -sigma * score


def cfg_zero(c, u, w, sigma):
    """From the rescaled unconditional prediction towards the conditional one, by the scale 1 + w."""
    scaled = dot(c, u) / dot(u, u) * u
    return scaled + (1 + w) * (c - scaled)


def tcfg(c, u, w, sigma):
    rows = np.stack([c, u], axis=1).reshape(len(c), 2, -1)
    second = np.linalg.svd(rows, full_matrices=False)[2][:, 1]
    u = (rows[:, 1] - np.sum(rows[:, 1] * second, axis=1, keepdims=True) * second).reshape(c.shape)
    return u + (1 + w) * (c - u)


FORMS = [(Power(), power, 'eps')]
FORMS += [(CfgZero(prediction=space), cfg_zero, space) for space in process.PREDICTIONS]
FORMS += [(Tcfg(prediction=space), tcfg, space) for space in process.PREDICTIONS]


@pytest.mark.parametrize('kind', process.PREDICTIONS)
@pytest.mark.parametrize(('rule', 'form', 'space'), FORMS, ids=lambda value: getattr(value, 'text', ''))
def test_the_papers_forms(rule, form, space, kind):
    """Whatever the network predicts; at a level where sigma and alpha differ."""
    level = -1.0
    cond, other, z = arrays(1, 2, 3)
    other = other + 0.7 * cond
    _, sigma = scales(level)
    told = (told_in(space, output, z, level, kind) for output in (cond, other))
    expected = form(*told, np.float64(STRENGTHS)[:, None, None, None], sigma)
    actual = predict(rule, cond, other, STRENGTHS, prediction=kind, level=level, z=z)
    for space_of, value in (('x', actual.x), ('eps', actual.eps)):
        wanted = told_in(space_of, expected, z, level, space)
        np.testing.assert_allclose(value, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.text)
@pytest.mark.parametrize('kind', process.PREDICTIONS)
def test_without_strength_it_is_the_conditional_prediction(rule, kind):
    cond, other, z = arrays(1, 2, 3)
    actual = predict(rule, cond, other, np.float32([0, 0, 2, 0]), prediction=kind, z=z)
    plain = process.from_output(cond, z, jnp.float32(0.5), prediction=kind)
    for one, expected in zip(actual, plain, strict=True):
        unguided = [0, 1, 3]
        np.testing.assert_array_equal(np.asarray(one)[unguided], np.asarray(expected)[unguided])
    assert np.abs(actual.x[2] - plain.x[2]).max() > 0.1


images = st.integers(0, 2**32 - 1).map(lambda seed: arrays(seed, seed + 1, count=1))
strengths = st.floats(-1, 8, width=32, allow_subnormal=False)
exponents = st.sampled_from([10.0**k for k in range(-3, 4)])


@hypothesis.settings(max_examples=20)
@hypothesis.given(images, strengths)
def test_their_neutral_options_are_eq_6(pair, w):
    for rule in (Power(alpha=0.0), Fdg(low=1.0)):
        actual, expected = predict(rule, *pair, w), predict(Cfg(), *pair, w)
        np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=2e-5)


@hypothesis.settings(max_examples=20)
@hypothesis.given(images, strengths, exponents)
def test_the_power_is_of_the_difference_alone(pair, w, factor):
    """Twice the difference is 2^(1 + alpha) times the change; and one level's sigma is sigma^-alpha of it."""
    cond, other = pair
    farther = cond - np.float32(factor) * (cond - other)
    change, more = (np.float64(predict(Power(), cond, to, w).eps) - cond for to in (other, farther))
    np.testing.assert_allclose(more, factor**1.9 * change, rtol=3e-3, atol=1e-4 * max(1, factor**1.9))


@hypothesis.settings(max_examples=20)
@hypothesis.given(images, strengths, exponents)
def test_cfg_zero_does_not_see_the_size_of_the_other_prediction(pair, w, factor):
    """One that is a multiple of the conditional one is no guidance at all."""
    cond, other = pair
    rule = CfgZero(prediction='eps')
    actual, expected = (predict(rule, cond, to, w).eps for to in (np.float32(factor) * other, other))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-5)
    alone = predict(rule, cond, np.float32(factor) * cond, w).eps
    np.testing.assert_allclose(alone, cond, rtol=0, atol=5e-5)


@hypothesis.settings(max_examples=20)
@hypothesis.given(images, strengths)
def test_tangential_damping_of_two_of_one_norm_is_half_the_strength(pair, w):
    cond, other = pair
    other = other * np.linalg.norm(cond) / np.linalg.norm(other)
    if np.sum(cond * other) < 0:  # the common direction is then that of their difference
        other = -other
    actual, expected = predict(Tcfg(), cond, other, w), predict(Cfg(), cond, other, w / 2)
    np.testing.assert_allclose(actual.eps, expected.eps, rtol=0, atol=1e-3)


def test_equal_and_vanishing_predictions_are_not_changed():
    cond, zero = arrays(1)[0], np.zeros((COUNT, *SHAPE), np.float32)
    for rule in RULES:
        np.testing.assert_allclose(predict(rule, cond, cond, 3.0).eps, cond, rtol=0, atol=2e-5)
        for pair in ((zero, zero), (cond, zero), (zero, cond)):
            assert np.isfinite(predict(rule, *pair, 3.0).eps).all(), rule.text


# --- CFG-Zero*'s first steps ---


def test_zeroed_evaluations_leave_z_and_move_the_level():
    cond, other, z = arrays(1, 2, 3)
    rule = CfgZero(zero_init=2)
    for times in (1, 2):
        still = predict(rule, cond, other, STRENGTHS, z=z, times=times)
        alpha, sigma = scales(0.5)
        np.testing.assert_allclose(still.x, alpha * z, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(still.eps, sigma * z, rtol=1e-6, atol=1e-6)
        # A DDIM step by a small angle: z changes by its square.
        angle = np.arctan2(sigma, alpha) - 0.01
        following = np.cos(angle) * np.float64(still.x) + np.sin(angle) * np.float64(still.eps)
        np.testing.assert_allclose(following, np.cos(0.01) * z, rtol=0, atol=2e-6)
    later = predict(rule, cond, other, STRENGTHS, z=z, times=3)
    np.testing.assert_array_equal(later.x, predict(CfgZero(), cond, other, STRENGTHS, z=z).x)


# --- frequencies ---


def down(x):
    """Kornia's pyrdown: a blur and half the size by bilinear interpolation."""
    return F.interpolate(blur(x), size=tuple(n // 2 for n in x.shape[2:]), mode='bilinear', align_corners=False)


def up(x, size=None):
    size = tuple(2 * n for n in x.shape[2:]) if size is None else size
    return blur(F.interpolate(x, size=size, mode='bilinear', align_corners=False))


def blur(x):
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype) / 16
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode='reflect'), kernel, groups=x.shape[1])


def pyramid(x, levels):
    assert levels == 2
    return [x - up(down(x)), down(x)]


@pytest.mark.parametrize('shape', [(8, 8, 1), (4, 6, 3), (32, 16, 3)])
def test_the_low_band_is_that_of_a_laplacian_pyramid(shape):
    x = arrays(1, shape=shape)[0]
    expected = up(down(torch.tensor(np.float64(x)).movedim(-1, 1))).movedim(1, -1)
    np.testing.assert_allclose(corrections.low_pass(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('shape', [(8, 8, 1), (7, 5, 3), (3, 2, 1), (1, 1, 2), (6, 2)])
def test_the_low_band_keeps_constants_and_weakens_a_checkerboard(shape):
    constant = np.full((2, *shape), 0.3, np.float32)
    np.testing.assert_allclose(corrections.low_pass(constant), constant, rtol=1e-6)
    if min(shape[:-1]) > 3:
        board = np.indices(shape)[:-1].sum(axis=0) % 2 * 2.0 - 1.0
        assert np.abs(corrections.low_pass(jnp.float32(board)[None])).max() < 0.05
    point = arrays(1, shape=(2,))[0]
    np.testing.assert_array_equal(corrections.low_pass(point), point)


# --- diffusers ---


@pytest.fixture
def torch_pyramids(monkeypatch):
    """Stands in for kornia, which diffusers' guider wants and which is not installed."""
    monkeypatch.setattr(of_frequencies, '_CAN_USE_KORNIA', True)
    monkeypatch.setattr(of_frequencies, 'build_laplacian_pyramid_func', pyramid)
    monkeypatch.setattr(of_frequencies, 'upsample_and_blur_func', up)


def guider(name, scale):
    """A guider of diffusers for a scale s = 1 + w."""
    return {
        'cfg': lambda: ClassifierFreeGuidance(scale),
        'apg': lambda: AdaptiveProjectedGuidance(
            scale - 1, adaptive_projected_guidance_rescale=1.5, eta=0.3, use_original_formulation=True
        ),
        'autoguidance': lambda: AutoGuidance(scale, auto_guidance_layers=[0], dropout=1.0),
        'cfg_zero': lambda: ClassifierFreeZeroStarGuidance(scale, zero_init_steps=0),
        'tcfg': lambda: TangentialClassifierFreeGuidance(scale),
        'fdg': lambda: of_frequencies.FrequencyDecoupledGuidance([scale, 1 + 0.4 * (scale - 1)]),
    }[name]()


PEERS = {
    'cfg': (Cfg(), 'eps'),
    'apg': (Apg(eta=0.3, norm_threshold=1.5), 'x'),
    'autoguidance': (Autoguidance(), 'eps'),
    'cfg_zero': (CfgZero(), 'v'),
    'tcfg': (Tcfg(), 'eps'),
    'fdg': (Fdg(low=0.4), 'eps'),
}


@pytest.mark.parametrize('w', [0.5, 3.0])
@pytest.mark.parametrize('name', PEERS)
@pytest.mark.usefixtures('torch_pyramids')
def test_rules_are_those_of_diffusers(name, w):
    """On the same outputs of a network; diffusers has channels first."""
    rule, kind = PEERS[name]
    cond, other, z = arrays(1, 2, 3)
    other = other + 0.7 * cond
    peer = guider(name, 1.0 + w)
    peer.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(5))
    expected = peer.forward(*(torch.tensor(output).movedim(-1, 1) for output in (cond, other))).pred.movedim(1, -1)
    actual = predict(rule, cond, other, w, prediction=kind, z=z)
    wanted = process.from_output(expected.numpy(), z, jnp.float32(0.5), prediction=kind)
    for one, two in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(two).max())
    plain = predict(Cfg(), cond, other, w, prediction=kind, z=z)
    assert (np.abs(actual.x - plain.x).max() > 0.1) == (name not in ('cfg', 'autoguidance'))


def test_zeroed_steps_are_those_of_diffusers():
    cond, other, z = arrays(1, 2, 3)
    peer = ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=2)
    for step in range(3):
        peer.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(5))
        v = peer.forward(torch.tensor(cond), torch.tensor(other)).pred.numpy()
        actual = predict(CfgZero(zero_init=2), cond, other, 2.0, prediction='v', z=z, times=step + 1)
        wanted = process.from_output(v, z, jnp.float32(0.5), prediction='v')
        np.testing.assert_allclose(actual.eps, wanted.eps, rtol=1e-5, atol=1e-5)
