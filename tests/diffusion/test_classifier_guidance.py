"""Classifier guidance (Section 3.1) with the exact classifier of a mixture: Eq. 6, and passes only where needed."""

import functools

import jax
import numpy as np
import pytest

from cfg.diffusion import mixture, schedule
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Cfg, Classifier

# Three classes in two dimensions, one of them narrow.
MIXTURE = mixture.gaussian_mixture(
    np.array([[0.9, 0.2], [-0.6, 0.5], [0.1, -0.8]]),
    np.array([[[0.3, 0.12], [0.12, 0.2]], [[0.25, 0], [0, 0.25]], [[0.05, -0.04], [-0.04, 0.4]]]),
    np.array([0.5, 0.3, 0.2]),
)
RUNS = []  # of the classifier


def classifier(z, logsnr):
    jax.debug.callback(lambda: RUNS.append(1))
    return mixture.log_class_posterior(MIXTURE, z, logsnr)


EXACT = Models(Denoiser(mixture.eps_fn(MIXTURE), 3), classifier=classifier)


@functools.cache
def mixture_inputs(count=60):
    drawn = np.arange(count, dtype=np.int32) % 3
    logsnr = np.linspace(-20, 20, count, dtype=np.float32)
    scaled = np.sqrt(MIXTURE.variances)[drawn] * jax.random.normal(jax.random.key(0), (count, 2))
    x = MIXTURE.means[drawn] + np.einsum('nij,nj->ni', MIXTURE.axes[drawn], scaled)
    alpha, sigma = schedule.alpha_sigma(logsnr)
    return alpha[:, None] * x + sigma[:, None] * jax.random.normal(jax.random.key(1), x.shape), logsnr, drawn


@functools.partial(jax.jit, static_argnames='rule')
def eps_of(rule, z, logsnr, labels, w):
    state = rule.init(jax.random.split(jax.random.key(7), len(z)), z)
    return rule.predict(EXACT, z, logsnr, labels, w, state)[0].eps


@pytest.mark.parametrize('model', ['conditional', 'unconditional'])
def test_guidance_by_the_exact_classifier_is_eq_6_with_exact_scores(model):
    """Both ways of Section 3.1, with the gradient taken through the classifier; w = 0 and -1 among the strengths."""
    z, logsnr, of = mixture_inputs()
    w = np.resize(np.float32([0, -1, 0.1, 1, 4]), 60)
    guided = eps_of(Classifier(model=model), z, logsnr, of, w)
    np.testing.assert_allclose(guided, eps_of(Cfg(), z, logsnr, of, w), rtol=1e-4, atol=2e-5)
    # Guidance does something here.
    assert np.abs(guided - EXACT.model(z, logsnr, of))[w == 4].max() > 0.1


@pytest.mark.parametrize(('model', 'without'), [('conditional', 0), ('unconditional', -1)])
def test_the_classifier_runs_only_where_someone_is_guided(model, without):
    z, logsnr, of = mixture_inputs()
    guided = functools.partial(eps_of, Classifier(model=model), z, logsnr, of)
    w = np.full(60, without, np.float32)
    jax.effects_barrier()
    RUNS.clear()
    expected = mixture.eps(MIXTURE, z, logsnr, of if without == 0 else np.full_like(of, 3))
    np.testing.assert_allclose(guided(w), expected, rtol=1e-6, atol=1e-6)
    jax.effects_barrier()
    assert RUNS == []
    w[2] = 1
    guided(w)
    jax.effects_barrier()
    assert RUNS == [1]
