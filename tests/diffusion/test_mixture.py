"""Exact mixtures against float64 references written with numpy and scipy alone, and Alg. 2 against exact answers."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from cfg.diffusion import mixture, process, rules, schedule
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.sampler import Sampler
from cfg.diffusion.solvers import Ancestral

LOGSNRS = np.linspace(-20.0, 20.0, 41)
# Two dimensions with three unequal covariances, one of them round; three dimensions with two.
MEANS_2D = np.array([[0.9, 0.2], [-0.6, 0.5], [0.1, -0.8]])
COVS_2D = np.array([[[0.3, 0.12], [0.12, 0.2]], [[0.25, 0.0], [0.0, 0.25]], [[0.05, -0.04], [-0.04, 0.4]]])
WEIGHTS_2D = np.array([0.5, 0.3, 0.2])
ROOT_3D = np.array([[0.6, 0.0, 0.0], [0.3, 0.4, 0.0], [-0.2, 0.1, 0.3]])
MEANS_3D = np.array([[0.5, -0.3, 0.8], [-0.7, 0.4, 0.1]])
COVS_3D = np.array([ROOT_3D @ ROOT_3D.T, np.diag([0.2, 0.1, 0.3])])
WEIGHTS_3D = np.array([0.4, 0.6])
PARAMETERS = {
    '2d': (MEANS_2D, COVS_2D, WEIGHTS_2D),
    '3d': (MEANS_3D, COVS_3D, WEIGHTS_3D),
}


# Compiled once for all tests of the same shapes.
EXACT = {function.__name__: jax.jit(function) for function in (mixture.log_density, mixture.score, mixture.eps)}


class Reference:
    """The same quantities in float64, one point at a time, from the diffused covariance matrices themselves."""

    def __init__(self, means, covs, weights, logsnr):
        self.alpha = np.sqrt(scipy.special.expit(logsnr))
        self.sigma = np.sqrt(scipy.special.expit(-logsnr))
        self.clean_means, self.clean_covs, self.weights = means, covs, weights
        self.means = self.alpha * means
        self.covs = self.alpha**2 * covs + self.sigma**2 * np.eye(means.shape[1])
        pairs = zip(self.means, self.covs, strict=True)
        self.components = [scipy.stats.multivariate_normal(mean, cov) for mean, cov in pairs]

    def log_p_z_given_each(self, z):
        return np.array([component.logpdf(z) for component in self.components])

    def log_p_z(self, z):
        return scipy.special.logsumexp(self.log_p_z_given_each(z), b=self.weights)

    def log_p_each_given_z(self, z):
        joint = np.log(self.weights) + self.log_p_z_given_each(z)
        return joint - scipy.special.logsumexp(joint)

    def log_density(self, z, label):
        return self.log_p_z(z) if label == len(self.weights) else self.log_p_z_given_each(z)[label]

    def guided_log_density(self, z, label, w):
        return self.log_p_z_given_each(z)[label] + w * self.log_p_each_given_z(z)[label]

    def posterior_mean(self, z, label):
        """Conjugate form: precision S^-1 + (alpha / sigma)^2 I, not the gain form of the code under test."""
        if label == len(self.weights):
            return np.exp(self.log_p_each_given_z(z)) @ [self.posterior_mean(z, c) for c in range(len(self.weights))]
        precision = np.linalg.inv(self.clean_covs[label])
        total = precision + (self.alpha / self.sigma) ** 2 * np.eye(len(z))
        return np.linalg.solve(total, precision @ self.clean_means[label] + self.alpha / self.sigma**2 * z)

    def eps(self, z, label):
        """E[eps | z, c] = Cov(eps, z) Cov(z)^-1 (z - E z) of the joint Gaussian, with Cov(eps, z) = sigma I."""
        if label == len(self.weights):
            return np.exp(self.log_p_each_given_z(z)) @ [self.eps(z, c) for c in range(len(self.weights))]
        return self.sigma * np.linalg.solve(self.covs[label], z - self.means[label])

    def gradient(self, log_density, z):
        """Fourth-order central differences, with a step that suits the narrowest direction."""
        step = 1e-3 * np.sqrt(min(np.linalg.eigvalsh(cov)[0] for cov in self.covs))
        rows = step * np.eye(len(z))
        return np.array(
            [
                8.0 * (log_density(z + row) - log_density(z - row))
                - (log_density(z + 2.0 * row) - log_density(z - 2.0 * row))
                for row in rows
            ]
        ) / (12.0 * step)


@functools.cache
def make(name):
    return mixture.gaussian_mixture(*PARAMETERS[name])


def points(name, *, seed=0, each=3):
    """Points of the diffused mixture at every level of LOGSNRS, with labels, null included, in turn."""
    means, covs, weights = PARAMETERS[name]
    rng = np.random.default_rng(seed)
    logsnr = np.repeat(LOGSNRS, each)
    label = rng.choice(len(weights), size=len(logsnr), p=weights)
    x = np.array([rng.multivariate_normal(means[c], covs[c]) for c in label])
    alpha, sigma = np.sqrt(scipy.special.expit(logsnr)), np.sqrt(scipy.special.expit(-logsnr))
    z = alpha[:, None] * x + sigma[:, None] * rng.standard_normal(x.shape)
    # Rounded first, so that the reference sees the same points.
    z = z.astype(np.float32).astype(np.float64)
    labels = np.arange(len(logsnr)) % (len(weights) + 1)
    return z, logsnr, labels


def references(name, logsnr):
    return [Reference(*PARAMETERS[name], level) for level in logsnr]


def as_jax(z, logsnr, labels):
    return jnp.asarray(z, jnp.float32), jnp.asarray(logsnr, jnp.float32), jnp.asarray(labels, jnp.int32)


@functools.partial(jax.jit, static_argnums=1)
def sample_keys(seed, count):
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(count))


def models_of(made):
    return Models(Denoiser(mixture.eps_fn(made), made.null_label))


def covs_of(made):
    return np.einsum('kde,...ke,kfe->...kdf', made.axes, made.variances, made.axes)


# ---- construction


@pytest.mark.parametrize('name', PARAMETERS)
def test_covs_are_those_given(name):
    means, covs, weights = PARAMETERS[name]
    made = make(name)
    np.testing.assert_allclose(covs_of(made), covs, atol=1e-7)
    np.testing.assert_allclose(made.means, means, rtol=1e-7)
    np.testing.assert_allclose(made.weights, weights, rtol=1e-7)
    assert made.null_label == len(weights)


def test_weights_are_scaled_to_sum_one():
    made = mixture.gaussian_mixture(MEANS_2D, COVS_2D, 30.0 * WEIGHTS_2D)
    np.testing.assert_allclose(made.weights, WEIGHTS_2D, rtol=1e-6)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'means': MEANS_2D[0]}, 'means must have shape'),
        ({'means': np.zeros((0, 2))}, 'means must have shape'),
        ({'covs': COVS_2D[:2]}, 'covs must have shape'),
        ({'covs': COVS_2D[0]}, 'covs must have shape'),
        ({'weights': WEIGHTS_2D[:2]}, 'weights must have shape'),
        ({'means': np.full((3, 2), np.nan)}, 'means must be finite'),
        ({'covs': COVS_2D + np.array([[0.0, 0.01], [0.0, 0.0]])}, 'symmetric'),
        ({'covs': np.tile([[1.0, 2.0], [2.0, 1.0]], (3, 1, 1))}, 'positive definite'),
        ({'covs': np.tile([[1.0, 1.0], [1.0, 1.0]], (3, 1, 1))}, 'positive definite'),
        ({'covs': np.zeros((3, 2, 2))}, r'positive definite; those of classes \[0, 1, 2\]'),
        ({'weights': np.array([0.5, 0.5, 0.0])}, 'weights must be positive'),
        ({'weights': np.array([0.5, 0.7, -0.2])}, 'weights must be positive'),
    ],
)
def test_wrong_parameters_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mixture.gaussian_mixture(**{'means': MEANS_2D, 'covs': COVS_2D, 'weights': WEIGHTS_2D} | change)


def test_a_label_past_the_null_label_gives_nan():
    z, logsnr, labels = as_jax(*points('2d'))
    value = EXACT['log_density'](make('2d'), z, logsnr, jnp.where(labels == 3, 4, labels))
    np.testing.assert_array_equal(np.isnan(value), labels == 3)


@pytest.mark.parametrize('logsnr', [-20.0, -3.0, 0.0, 20.0])
def test_diffused_has_the_moments_of_the_process(logsnr):
    means, covs, weights = PARAMETERS['3d']
    expected = Reference(means, covs, weights, logsnr)
    noisy = mixture.diffused(make('3d'), logsnr)
    np.testing.assert_allclose(noisy.means, expected.means, rtol=1e-5)
    np.testing.assert_allclose(covs_of(noisy), expected.covs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.sort(noisy.variances), np.linalg.eigvalsh(expected.covs), rtol=1e-5, err_msg='relative at every level'
    )


# ---- densities and scores against float64, over the whole range of levels


@pytest.mark.parametrize('name', PARAMETERS)
def test_densities_and_class_posteriors_match_scipy(name):
    made, (z, logsnr, labels) = make(name), points(name)
    refs = references(name, logsnr)
    args = as_jax(z, logsnr, labels)
    expected = [ref.log_density(point, label) for ref, point, label in zip(refs, z, labels, strict=True)]
    np.testing.assert_allclose(EXACT['log_density'](made, *args), expected, rtol=1e-5, atol=1e-4)
    expected = [ref.log_p_each_given_z(point) for ref, point in zip(refs, z, strict=True)]
    np.testing.assert_allclose(mixture.log_class_posterior(made, *args[:2]), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('name', PARAMETERS)
def test_scores_and_eps_match_float64(name):
    made, (z, logsnr, labels) = make(name), points(name)
    refs = references(name, logsnr)
    args = as_jax(z, logsnr, labels)
    eps = np.array([ref.eps(point, label) for ref, point, label in zip(refs, z, labels, strict=True)])
    sigma = np.array([ref.sigma for ref in refs])[:, None]
    # Relative to sigma at the clean end, where eps itself vanishes with sigma.
    assert (np.abs(EXACT['eps'](made, *args) - eps) < 2e-5 * np.minimum(1.0, 10.0 * sigma)).all()
    np.testing.assert_allclose(EXACT['score'](made, *args), -eps / sigma, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(mixture.eps_fn(made)(*args), EXACT['eps'](made, *args), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', PARAMETERS)
def test_scores_are_gradients_of_the_log_density(name):
    made, (z, logsnr, labels) = make(name), points(name, each=1)
    args = as_jax(z, logsnr, labels)
    differences = [
        ref.gradient(lambda at, ref=ref, label=label: ref.log_density(at, label), point)
        for ref, point, label in zip(references(name, logsnr), z, labels, strict=True)
    ]
    automatic = jax.grad(lambda z: EXACT['log_density'](made, z, *args[1:]).sum())(args[0])
    score = EXACT['score'](made, *args)
    np.testing.assert_allclose(score, differences, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(score, automatic, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize('name', PARAMETERS)
def test_eps_gives_the_posterior_mean(name):
    made, (z, logsnr, labels) = make(name), points(name)
    args = as_jax(z, logsnr, labels)
    refs = references(name, logsnr)
    x = np.array([ref.posterior_mean(point, label) for ref, point, label in zip(refs, z, labels, strict=True)])
    # Tweedie: E[x | z] = (z + sigma^2 score) / alpha, with the score in float64 as alpha is 5e-5 at the noisy end.
    tweedie = [
        (point + ref.sigma**2 * ref.gradient(lambda at, ref=ref, label=label: ref.log_density(at, label), point))
        / ref.alpha
        for ref, point, label in zip(refs, z, labels, strict=True)
    ]
    kept = logsnr >= -10.0  # finite differences lose 1 / alpha times their own error beyond
    np.testing.assert_allclose(x[kept], np.array(tweedie)[kept], rtol=1e-4, atol=1e-4)
    # And in the float32 of the samplers, where eps has an error of 1e-7 that sigma / alpha enlarges.
    from_eps = process.x_from_eps(args[0], EXACT['eps'](made, *args), args[1])
    assert (np.abs(from_eps - x) < (1e-5 + 2e-6 * np.exp(-0.5 * logsnr))[:, None]).all()


def test_null_eps_is_the_average_of_the_classes():
    """grad log p(z) = sum_c p(c | z) grad log p(z | c), by separate calls and float64 weights."""
    made, (z, logsnr, labels) = make('2d'), points('2d')
    z32, logsnr32, _ = as_jax(z, logsnr, labels)
    network = mixture.eps_fn(made)
    each = np.stack([network(z32, logsnr32, jnp.full(len(z), c)) for c in range(3)], axis=1)
    posterior = np.exp([ref.log_p_each_given_z(point) for ref, point in zip(references('2d', logsnr), z, strict=True)])
    null = network(z32, logsnr32, jnp.full(len(z), made.null_label))
    np.testing.assert_allclose(null, np.einsum('nk,nkd->nd', posterior, each), rtol=1e-4, atol=1e-5)


def test_one_level_for_all_equals_a_level_for_each():
    made, (z, _, labels) = make('2d'), points('2d')
    z32, _, labels32 = as_jax(z, LOGSNRS[0], labels)
    for function in (EXACT['log_density'], EXACT['eps']):
        shared = function(made, z32, jnp.float32(-1.5), labels32)
        np.testing.assert_allclose(function(made, z32, jnp.full(len(z), -1.5), labels32), shared, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', ['log_density', 'eps', 'guided_log_density'])
def test_values_and_gradients_are_finite_at_the_ends(name):
    function = functools.partial(mixture.guided_log_density, w=4.0) if name == 'guided_log_density' else EXACT[name]
    made, labels = make('2d'), jnp.arange(4)
    directions = jnp.array([[1.0, 0.3], [-0.5, 1.0], [0.2, -1.0], [0.7, 0.7]])

    @jax.jit
    def value_and_gradients(z, logsnr):
        value, pullback = jax.vjp(lambda z, logsnr: function(made, z, logsnr, labels), z, logsnr)
        return value, pullback(jnp.ones_like(value))

    for logsnr, distance in itertools.product((-20.0, 20.0), (0.0, 1.0, 1e3)):
        for array in jax.tree.leaves(value_and_gradients(distance * directions, logsnr)):
            assert np.isfinite(array).all()


# ---- guidance


@jax.jit
def both_sides(made, z, logsnr, labels, w):
    """Eq. 6 with exact eps, by the rule that the samplers use, and -sigma times the gradient of the density."""
    guided = Sampler(clip_x=False).guided(models_of(made), labels, w)
    prediction, _ = guided.predict(z, logsnr, guided.init(sample_keys(0, len(z)), z))
    gradient = jax.grad(lambda z: mixture.guided_log_density(made, z, logsnr, labels, w=w).sum())(z)
    return prediction.eps, -schedule.alpha_sigma(logsnr)[1] * gradient


@hypothesis.settings(max_examples=150)
@hypothesis.given(
    w=st.floats(-1.0, 8.0, width=32),
    logsnr=st.floats(-20.0, 20.0, width=32),
    label=st.integers(0, 2),
    z=st.tuples(st.floats(-3.0, 3.0, width=32), st.floats(-3.0, 3.0, width=32)),
)
def test_eq_6_is_the_score_of_the_guided_density(w, logsnr, label, z):
    """(1 + w) eps_c - w eps_null = -sigma grad [log p(z | c) + w log p(c | z)]."""
    ref = Reference(*PARAMETERS['2d'], logsnr)
    z = np.array(z)
    guided, automatic = both_sides(
        make('2d'), jnp.asarray(z[None], jnp.float32), jnp.float32(logsnr), jnp.array([label]), jnp.float32(w)
    )
    exact = -ref.sigma * ref.gradient(lambda at: ref.guided_log_density(at, label, w), z)
    # Rounding is relative to the largest term in the sum, not to what is left of it. Far from every mean, p(c | z)
    # also feels the rounding of log densities of size d^2 / 2.
    terms = [np.abs(ref.eps(z, c)).max() for c in range(4)]
    logs = np.abs(ref.log_p_z_given_each(z)).max()
    tolerance = 2e-6 * (1.0 + abs(w)) * (max(terms) + ref.sigma) * (10.0 + logs)
    np.testing.assert_allclose(guided[0], exact, rtol=0.0, atol=tolerance)
    np.testing.assert_allclose(automatic[0], exact, rtol=0.0, atol=tolerance)


def test_guided_log_density_matches_bayes():
    name = '2d'
    made, (z, logsnr, labels) = make(name), points(name)
    labels = labels % made.null_label
    w = np.linspace(-1.0, 4.0, len(z))
    expected = [
        ref.guided_log_density(*point) for ref, *point in zip(references(name, logsnr), z, labels, w, strict=True)
    ]
    value = mixture.guided_log_density(made, *as_jax(z, logsnr, labels), w=jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-4)


def test_guidance_has_nothing_to_say_of_the_null_label():
    made, (z, logsnr, _) = make('2d'), points('2d')
    args = as_jax(z, logsnr, np.full(len(z), made.null_label))
    guided = mixture.guided_log_density(made, *args, w=3.0)
    np.testing.assert_allclose(guided, EXACT['log_density'](made, *args), rtol=1e-6)


def check_moments(x, mean, cov):
    """Mean and covariance of Gaussian draws [M, D] within 5 standard errors."""
    variances = np.diag(cov)
    np.testing.assert_array_less(np.abs(x.mean(axis=0) - mean), 5.0 * np.sqrt(variances / len(x)))
    errors = np.sqrt((cov**2 + np.outer(variances, variances)) / len(x))
    np.testing.assert_array_less(np.abs(np.cov(x.T).reshape(cov.shape) - cov), 5.0 * errors)


# ---- Alg. 2 on one Gaussian: with the exact eps every step is affine in z


def float64_grid(num_steps, logsnr_min=-20.0, logsnr_max=20.0):
    """-2 log tan(a u + b) at T values of u from 1 to 0, as the cotangent of the angle's complement at u > 1/2."""
    b, end = np.arctan(np.exp(-0.5 * logsnr_max)), np.arctan(np.exp(0.5 * logsnr_min))
    a = np.pi / 2 - b - end
    u = np.linspace(1.0, 0.0, num_steps)
    return np.where(u < 0.5, -2.0 * np.log(np.tan(a * u + b)), 2.0 * np.log(np.tan(a * (1.0 - u) + end)))


def affine_steps(mean, cov, logsnrs, logvar_interp):
    """Alg. 2 with the posterior mean of N(mean, cov) as x: steps (A, b, std) of z <- A z + b + std noise, and the last
    step (A, b, 0) to x, all in float64. The posterior is completed from its two precisions, not taken from Eq. 3."""
    dim = len(mean)
    identity = np.eye(dim)

    def estimate(logsnr):
        """x = G z + h at one level: prior precision cov^-1 plus likelihood precision alpha^2 / sigma^2."""
        alpha, variance = np.sqrt(scipy.special.expit(logsnr)), scipy.special.expit(-logsnr)
        total = np.linalg.inv(cov) + alpha**2 / variance * identity
        gain = np.linalg.solve(total, alpha / variance * identity)
        return gain, np.linalg.solve(total, np.linalg.solve(cov, mean))

    steps = []
    for logsnr_t, logsnr_s in itertools.pairwise(logsnrs):
        gain, offset = estimate(logsnr_t)
        alpha_t, alpha_s = np.sqrt(scipy.special.expit([logsnr_t, logsnr_s]))
        var_t, var_s = scipy.special.expit([-logsnr_t, -logsnr_s])
        ratio = alpha_t / alpha_s
        # q(z_t | z_s) = N(ratio z_s, forward) with forward = var_t - ratio^2 var_s, so that variances add up.
        forward = -np.expm1(logsnr_t - logsnr_s) * var_t
        np.testing.assert_allclose(forward, var_t - ratio**2 * var_s, rtol=1e-6)
        posterior = 1.0 / (1.0 / var_s + ratio**2 / forward)
        from_z, from_x = posterior * ratio / forward, posterior * alpha_s / var_s
        std = np.sqrt(posterior ** (1.0 - logvar_interp) * forward**logvar_interp)
        steps.append((from_z * identity + from_x * gain, from_x * offset, std))
    return [*steps, (*estimate(logsnrs[-1]), 0.0)]


SINGLE = {'1d': (np.array([0.4]), np.array([[0.09]])), '3d': (MEANS_3D[0], COVS_3D[0])}


def single(name):
    mean, cov = SINGLE[name]
    return mixture.gaussian_mixture(mean[None], cov[None], np.ones(1))


@functools.partial(jax.jit, static_argnames=('shape', 'logvar_interp', 'guided'))
def draw(made, keys, labels, logsnrs, w, *, shape, logvar_interp, guided=True):
    rule = rules.Cfg() if guided else rules.Temperature()
    prepared = Sampler(rule=rule, clip_x=False).guided(models_of(made), labels, w)
    return Ancestral(logvar_interp=logvar_interp).sample(prepared, keys, logsnrs, shape=shape)


@functools.partial(jax.jit, static_argnames=('count', 'dim'))
def replayed_noise(keys, *, count, dim):
    """The noise that the sampler draws: number i of each key is normal(fold_in(key, i)), [count, N, dim]."""
    return jax.lax.map(
        lambda index: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), (dim,)))(keys),
        jnp.arange(count),
    )


def replay(steps, noise):
    """The affine steps in float64: noise number 0 is the start, number i belongs to step i, the last has none."""
    noise = np.asarray(noise, np.float64)
    z = noise[0]
    for index, (matrix, offset, std) in enumerate(steps, start=1):
        z = z @ matrix.T + offset + (std * noise[index] if index < len(steps) else 0.0)
    return z


@pytest.mark.parametrize(
    ('name', 'num_steps', 'logvar_interp'),
    [('1d', 16, 0.3), ('1d', 256, 0.3), ('3d', 16, 0.0), ('3d', 16, 1.0), ('3d', 256, 0.3)],
)
def test_alg_2_on_one_gaussian_is_the_affine_recursion(name, num_steps, logvar_interp):
    """Sample by sample on the same noise, and in mean and covariance over many samples."""
    mean, cov = SINGLE[name]
    dim, count = len(mean), 4000
    steps = affine_steps(mean, cov, float64_grid(num_steps), logvar_interp)
    keys = sample_keys(4, count)
    logsnrs = schedule.sampling_grid(num_steps, logsnr_min=-20.0, logsnr_max=20.0)
    x = draw(
        single(name),
        keys,
        jnp.zeros(count, jnp.int32),
        logsnrs,
        0.0,
        shape=(dim,),
        logvar_interp=logvar_interp,
        guided=False,
    )
    np.testing.assert_allclose(
        x[:50], replay(steps, replayed_noise(keys[:50], count=num_steps, dim=dim)), rtol=0.0, atol=2e-5
    )

    expected_mean, expected_cov = np.zeros(dim), np.eye(dim)
    for matrix, offset, std in steps:
        expected_mean = matrix @ expected_mean + offset
        expected_cov = matrix @ expected_cov @ matrix.T + std**2 * np.eye(dim)
    check_moments(np.asarray(x, np.float64), expected_mean, expected_cov)
    # Alg. 2 is not exact at finite T, but it is close to the data distribution at the larger T.
    if num_steps == 256 and logvar_interp == 0.3:
        np.testing.assert_allclose(expected_mean, mean, atol=2e-3)
        np.testing.assert_allclose(expected_cov, cov, atol=0.03 * np.abs(cov).max())


def test_alg_2_follows_the_affine_recursion_at_every_step():
    """Cut after t levels, the sampler returns the estimate of x there, an invertible image of z after t - 1 steps."""
    mean, cov = SINGLE['3d']
    grid = float64_grid(16)
    keys = sample_keys(5, 50)
    noise = replayed_noise(keys, count=16, dim=3)
    for last in (2, 9):
        steps = affine_steps(mean, cov, grid[:last], 0.3)
        logsnrs = schedule.sampling_grid(16, logsnr_min=-20.0, logsnr_max=20.0)[:last]
        labels = jnp.zeros(50, jnp.int32)
        x = draw(single('3d'), keys, labels, logsnrs, 0.0, shape=(3,), logvar_interp=0.3, guided=False)
        # At the noisy end x = (z - sigma eps) / alpha has lost e^(-logsnr / 2) of its digits.
        tolerance = 3e-5 + 3e-6 * np.exp(-0.5 * grid[last - 1])
        np.testing.assert_allclose(x, replay(steps, noise), rtol=0.0, atol=tolerance)


# ---- Alg. 2 on a mixture


def test_w_0_is_conditional_and_w_minus_1_unconditional():
    made = make('2d')
    keys, labels = sample_keys(6, 64), jnp.arange(64) % 3
    logsnrs = schedule.sampling_grid(64, logsnr_min=-20.0, logsnr_max=20.0)
    plain = functools.partial(draw, made, keys, logsnrs=logsnrs, shape=(2,), logvar_interp=0.3)
    conditional = plain(labels=labels, w=0.0, guided=False)
    unconditional = plain(labels=jnp.full(64, made.null_label), w=0.0, guided=False)
    np.testing.assert_allclose(plain(labels=labels, w=0.0), conditional, atol=1e-4)
    np.testing.assert_allclose(plain(labels=labels, w=-1.0), unconditional, atol=1e-3)
    assert np.abs(conditional - unconditional).max() > 0.1


def test_alg_2_draws_the_mixture_at_w_0():
    """Conditional samples have their component's moments; unconditional ones, the mixture's class proportions."""
    made = make('2d')
    count = 6000
    logsnrs = schedule.sampling_grid(256, logsnr_min=-20.0, logsnr_max=20.0)
    # Classes 0, 1, 2 and the null label in turn, in one batch.
    labels = jnp.arange(4 * count) % 4
    x = draw(made, sample_keys(7, 4 * count), labels, logsnrs, 0.0, shape=(2,), logvar_interp=0.3)
    x = np.asarray(x, np.float64).reshape(count, 4, 2)
    for c in range(3):
        sampled = x[:, c]
        # Five standard errors, and the sampler's own error at this T (1 to 3 % of a variance).
        np.testing.assert_allclose(
            sampled.mean(axis=0), MEANS_2D[c], atol=5.0 * np.sqrt(np.diag(COVS_2D[c]).max() / count) + 2e-3
        )
        scale = np.diag(COVS_2D[c]).max()
        np.testing.assert_allclose(np.cov(sampled.T), COVS_2D[c], atol=scale * (5.0 * np.sqrt(2.0 / count) + 0.03))
    # Under the model, E p(c | x) over the mixture is p(c).
    posterior = np.exp(mixture.log_class_posterior(made, jnp.asarray(x[:, 3], jnp.float32), 20.0))
    np.testing.assert_allclose(posterior.mean(axis=0), WEIGHTS_2D, atol=5.0 * 0.5 / np.sqrt(count))


# ---- the exact classifier


@pytest.mark.parametrize('name', PARAMETERS)
def test_difference_of_scores_is_that_of_the_posterior(name):
    z, logsnr, labels = points(name)
    classes = len(PARAMETERS[name][2])
    labels = labels % classes
    whole = np.full_like(labels, classes)
    cond, uncond = (EXACT['score'](make(name), *as_jax(z, logsnr, of)) for of in (labels, whole))
    actual = cond - uncond
    expected = np.array(
        [
            reference.gradient(lambda y, r=reference, c=label: r.log_p_each_given_z(y)[c], point)
            for reference, point, label in zip(references(name, logsnr), z, labels, strict=True)
        ]
    )
    # In units of eps, which sigma times a score is.
    sigma = np.sqrt(scipy.special.expit(-logsnr))[:, None]
    np.testing.assert_allclose(sigma * actual, sigma * expected, rtol=2e-4, atol=2e-5)
    assert np.abs(sigma * expected).max() > 0.1


@pytest.mark.parametrize('name', PARAMETERS)
def test_the_exact_classifier_is_the_posterior_of_every_class(name):
    z, logsnr, _ = points(name)
    actual = mixture.logits_fn(make(name))(jnp.float32(z), jnp.float32(logsnr))
    expected = [
        reference.log_p_each_given_z(point) for reference, point in zip(references(name, logsnr), z, strict=True)
    ]
    np.testing.assert_allclose(np.exp(actual), np.exp(expected), rtol=0, atol=2e-5)
