"""Guidance inside the network: the losses of students and of guidance-free training, against exact scores."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cfg.diffusion import loss, mixture, process, schedule
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Cfg, OnePass
from cfg.diffusion.rules.pairs import classifier_free
from cfg.diffusion.sampler import Sampler

MEANS = np.float32([[0.0, 0.8], [-0.693, -0.4], [0.693, -0.4]])
MIXTURE = mixture.gaussian_mixture(MEANS, 0.25 * np.tile(np.eye(2, dtype=np.float32), (3, 1, 1)), np.ones(3) / 3)
EPS = mixture.eps_fn(MIXTURE)
NULL = 3
LIMITS = {'logsnr_min': -20.0, 'logsnr_max': 20.0}


def batch(count=256, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NULL, count).astype(np.int32)
    x = (MEANS[labels] + 0.5 * rng.normal(size=(count, 2))).astype(np.float32)
    return x, labels, loss.draw(jax.random.split(jax.random.key(seed), count), (2,))


def exact(z, logsnr, labels, w):
    """Eq. 6 with exact scores."""
    return classifier_free(EPS(z, logsnr, labels), EPS(z, logsnr, jnp.full_like(labels, NULL)), w)


def teacher(z, logsnr, labels, w):
    guided = Sampler(rule=Cfg(), clip_x=False, **LIMITS).guided(Models(Denoiser(EPS, NULL)), labels, w)
    return guided.predict(z, logsnr, guided.init(jax.random.split(jax.random.key(0), len(z)), z))[0]


def as_prediction(eps_fn, prediction):
    def network(z, logsnr, labels, w):
        read = process.from_output(eps_fn(z, logsnr, labels, w), z, logsnr, prediction='eps')
        return process.target(read.x, read.eps, logsnr, prediction=prediction)

    return network


@pytest.mark.parametrize('prediction', process.PREDICTIONS)
def test_the_optimum_of_a_student_is_eq_6(prediction):
    x, labels, draws = batch()
    # Within (-8, 8): beyond, float32 has no digits left for the x of an eps, or the eps of an x, in this detour.
    options = {'w_range': (0.0, 4.0), 'logsnr_min': -8.0, 'logsnr_max': 8.0}
    distance = functools.partial(
        loss.distillation_loss, x=x, labels=labels, draws=draws, prediction=prediction, **options
    )
    best = distance(as_prediction(exact, prediction), teacher)
    off = distance(as_prediction(lambda z, logsnr, labels, w: exact(z, logsnr, labels, 0.9 * w), prediction), teacher)
    assert best.shape == (256,)
    assert float(best.mean()) < 1e-4 * float(off.mean())


def test_a_small_network_learns_the_guided_scores():
    """It is told of w at random; after 1500 steps it is within 0.1 of Eq. 6, whose distance to w = 0 is 0.6."""
    sizes = (2 + 8 + NULL + 2, 96, 96, 2)
    rng = np.random.default_rng(0)
    params = [(jnp.float32(rng.normal(size=(n, m)) / np.sqrt(n)), jnp.zeros(m)) for n, m in itertools.pairwise(sizes)]

    def network(params, z, logsnr, labels, w):
        waves = logsnr[:, None] * 2.0 ** -jnp.arange(1, 5)
        told = [z, jnp.sin(waves), jnp.cos(waves), jax.nn.one_hot(labels, NULL), w[:, None] / 4, 1 / (1 + w)[:, None]]
        h = jnp.concatenate(told, axis=1)
        for weights, bias in params[:-1]:
            h = jax.nn.silu(h @ weights + bias)
        weights, bias = params[-1]
        return h @ weights + bias

    tx = optax.adam(optax.cosine_decay_schedule(5e-3, 1500))
    options = {'w_range': (0.0, 4.0), **LIMITS, 'weighting': 'eps'}

    @jax.jit
    def train(params, state):
        def step(carry, seed):
            params, state = carry
            keys = jax.random.split(jax.random.fold_in(jax.random.key(1), seed), 256)
            labels = jax.random.randint(keys[0], (256,), 0, NULL)
            x = jnp.asarray(MEANS)[labels] + 0.5 * jax.random.normal(keys[1], (256, 2))
            draws = loss.draw(keys, (2,))

            def mean(params):
                student = functools.partial(network, params)
                return loss.distillation_loss(student, teacher, x, labels, draws, **options).mean()

            updates, state = tx.update(jax.grad(mean)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), jnp.arange(1500))[0][0]

    learned = train(params, tx.init(params))
    x, labels, draws = batch(2000, seed=5)
    logsnr = jnp.linspace(-6.0, 6.0, 2000)
    z = process.diffuse(x, draws.eps, logsnr)
    w = loss.strengths(draws, (0.0, 4.0))
    wanted = exact(z, logsnr, labels, w)
    error = jnp.sqrt(jnp.mean((network(learned, z, logsnr, labels, w) - wanted) ** 2))
    unguided = jnp.sqrt(jnp.mean((exact(z, logsnr, labels, 0.0 * w) - wanted) ** 2))
    assert float(error) < 0.1
    assert float(unguided) > 0.5


def ddim(z, x, level, following):
    """One step in float64; `following` may be inf."""
    alpha, sigma = np.sqrt(scipy.special.expit([level, -level]))
    alpha_s, sigma_s = np.sqrt(scipy.special.expit([following, -following]))
    return alpha_s * x + sigma_s * (z - alpha * x) / sigma


@given(
    st.lists(st.floats(-20, 20), min_size=3, max_size=3, unique=True).map(sorted),
    st.booleans(),
    st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_one_step_to_the_target_is_two_steps(levels, clean, values):
    t, m, s = np.float32(levels)
    assume(m - t > 1e-3 and s - m > 1e-3)
    s = np.inf if clean else float(s)
    z, first, second = values
    target = loss.halving_target(
        jnp.float32([[first]]), jnp.float32([[second]]), logsnr_t=t, logsnr_m=m, logsnr_s=jnp.float32(s)
    )
    two = ddim(ddim(z, first, float(t), float(m)), second, float(m), s)
    assert ddim(z, float(target[0, 0]), float(t), s) == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize('num_steps', [1, 2, 8])
def test_the_optimum_of_a_round_is_two_steps_of_the_teacher(num_steps):
    """The student that knows z at its levels steps as the teacher does in DDIM on the grid of twice as many levels."""
    x, labels, draws = batch(64)
    coarse = np.asarray(schedule.nested_grid(num_steps, **LIMITS), np.float64)
    fine = np.asarray(schedule.nested_grid(2 * num_steps, **LIMITS), np.float64)
    np.testing.assert_allclose(fine[::2], coarse, rtol=1e-5)

    def best(z, logsnr, labels, w):
        following = jnp.interp(logsnr, coarse, fine[1::2])
        after = jnp.asarray([*coarse[1:], np.inf], jnp.float32)[jnp.argmin(abs(logsnr[:, None] - coarse), axis=1)]
        first = teacher(z, logsnr, labels, w)
        z_m = process.diffuse(first.x, first.eps, following)
        second = teacher(z_m, following, labels, w)
        alpha_s, sigma_s = (process.expand(of, z) for of in schedule.alpha_sigma(after))
        z_s = alpha_s * second.x + sigma_s * second.eps
        alpha, sigma = (process.expand(of, z) for of in schedule.alpha_sigma(logsnr))
        wanted = (z_s - sigma_s / sigma * z) / (alpha_s - sigma_s / sigma * alpha)
        return process.v_from_x_eps(wanted, process.eps_from_x(z, wanted, logsnr), logsnr)

    options = {'num_steps': num_steps, 'w_range': (0.0, 4.0), **LIMITS, 'prediction': 'v'}
    distance = functools.partial(loss.halving_loss, x=x, labels=labels, draws=draws, **options)
    one_step = as_prediction(lambda z, logsnr, labels, w: teacher(z, logsnr, labels, w).eps, 'v')
    assert float(distance(best, teacher).mean()) < 1e-4 * float(distance(one_step, teacher).mean())


@pytest.mark.parametrize('num_steps', [1, 2, 8])
def test_the_optimum_of_a_stochastic_student_is_two_levels_of_the_teacher(num_steps):
    """At every level of its grid but the last it has the x with which DDIM over two levels is DDIM over one, twice."""
    x, labels, draws = batch(64)
    levels = np.asarray(schedule.nested_grid(num_steps, **LIMITS), np.float64)
    ahead = np.array([*levels[1:], np.inf, np.inf])

    def best(z, logsnr, labels, w):
        at = jnp.argmin(abs(logsnr[:, None] - levels), axis=1)
        first = teacher(z, logsnr, labels, w)
        alpha, sigma = (process.expand(of, z) for of in schedule.alpha_sigma(logsnr))
        (alpha_m, sigma_m), (alpha_k, sigma_k) = (
            [process.expand(of, z) for of in schedule.alpha_sigma(jnp.float32(ahead[at + more]))] for more in (0, 1)
        )
        middle = jnp.float32(np.minimum(ahead, levels[-1]))[at]
        second = teacher(alpha_m * first.x + sigma_m * first.eps, middle, labels, w)
        z_k = alpha_k * second.x + sigma_k * second.eps
        two = (z_k - sigma_k / sigma * z) / (alpha_k - sigma_k / sigma * alpha)
        wanted = jnp.where(process.expand(at == num_steps - 1, z), first.x, two)
        return process.v_from_x_eps(wanted, process.eps_from_x(z, wanted, logsnr), logsnr)

    options = {'num_steps': num_steps, 'reach': 2, 'w_range': (0.0, 4.0), **LIMITS, 'prediction': 'v'}
    distance = functools.partial(loss.halving_loss, x=x, labels=labels, draws=draws, **options)
    one_step = as_prediction(lambda z, logsnr, labels, w: teacher(z, logsnr, labels, w).eps, 'v')
    far = float(distance(one_step, teacher).mean())
    assert float(distance(best, teacher).mean()) < max(1e-4 * far, 1e-6)
    assert (far > 1e-4) == (num_steps > 1)  # of one level it has only its teacher's step


@settings(max_examples=10)
@given(st.integers(0, 2**31), st.sampled_from(process.PREDICTIONS))
def test_guidance_free_training_has_its_optimum_at_eq_6(seed, prediction):
    """There its loss is that of Eq. 5, example by example, of which the exact conditional scores are the optimum."""
    x, labels, draws = batch(64, seed)
    options = {'p_uncond': 0.3, 'null_label': NULL, 'logsnr_min': -8.0, 'logsnr_max': 8.0, 'prediction': prediction}
    got = loss.guidance_free_loss(as_prediction(exact, prediction), x, labels, draws, w_range=(0.0, 4.0), **options)
    plain = as_prediction(lambda z, logsnr, labels, _: EPS(z, logsnr, labels), prediction)
    expected = loss.denoising_loss(lambda *inputs: plain(*inputs, None), x, labels, draws, **options)
    np.testing.assert_allclose(got, expected, rtol=2e-2, atol=2e-3)


def test_the_null_prediction_of_guidance_free_training_has_no_gradient():
    x, labels, draws = batch(8)
    options = {'p_uncond': 0.0, 'null_label': NULL, 'w_range': (1.0, 4.0), **LIMITS}

    def mean(of_class, of_null):
        def network(z, logsnr, labels, w):
            return jnp.where(labels[:, None] == NULL, of_null, of_class) * jnp.ones_like(z)

        return loss.guidance_free_loss(network, x, labels, draws, **options).mean()

    of_class, of_null = jax.grad(mean, argnums=(0, 1))(0.3, 0.2)
    assert float(of_null) == 0.0
    assert abs(float(of_class)) > 1e-3


def test_one_pass_is_the_networks_own_guidance():
    labels, w = np.int32([0, 1, 2]), np.float32([0.0, 1.5, 4.0])
    z = np.float32(np.random.default_rng(0).normal(size=(3, 2)))
    sampler = Sampler(rule=OnePass(), num_steps=16, clip_x=False)
    guided = sampler.guided(Models(Denoiser(exact, NULL)), labels, w)
    prediction, _ = guided.predict(z, jnp.float32(0.5), guided.init(None, z))
    np.testing.assert_allclose(prediction.eps, exact(z, 0.5, labels, w), atol=1e-6)
    assert sampler.passes(2.0).total == 16
    assert Sampler(rule=Cfg(), num_steps=16).passes(2.0).total == 32
