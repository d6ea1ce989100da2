import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfg.diffusion import guidance, mixture, schedule

PROPERTY = settings(deadline=None, max_examples=50, derandomize=True)
NULL = 10

images = hnp.arrays(np.float32, (2, 3), elements=st.floats(-100, 100, width=32, allow_subnormal=False))
strengths = st.floats(-2, 8, width=32, allow_subnormal=False)


def _pair(seed=0, shape=(4, 2, 2, 3)):
    random = np.random.default_rng(seed)
    return tuple(random.standard_normal(shape).astype(np.float32) for _ in range(2))


@PROPERTY
@given(images, images, strengths)
def test_combination_matches_float64(eps_cond, eps_uncond, w):
    expected = (1 + np.float64(w)) * eps_cond - np.float64(w) * eps_uncond
    bound = 4 * 2.0**-24 * ((1 + abs(w)) * np.abs(eps_cond) + abs(w) * np.abs(eps_uncond))
    actual = np.float64(guidance.classifier_free(eps_cond, eps_uncond, np.float32(w)))
    assert (np.abs(actual - expected) <= bound + 1e-30).all()  # subnormal products may be flushed to 0


@PROPERTY
@given(images, images)
def test_the_two_ends_are_the_two_models_bit_for_bit(eps_cond, eps_uncond):
    np.testing.assert_array_equal(guidance.classifier_free(eps_cond, eps_uncond, np.float32(0)), eps_cond)
    np.testing.assert_array_equal(guidance.classifier_free(eps_cond, eps_uncond, np.float32(-1)), eps_uncond)


@PROPERTY
@given(images, images, strengths, strengths)
def test_combination_is_affine_in_w(eps_cond, eps_uncond, one, other):
    # The midpoint of two strengths gives the midpoint of the two results.
    def combine(w):
        return np.float64(guidance.classifier_free(eps_cond, eps_uncond, np.float32(w)))

    middle = (np.float64(one) + np.float64(other)) / 2
    size = (1 + abs(one) + abs(other)) * (np.abs(eps_cond) + np.abs(eps_uncond))
    assert (np.abs(combine(middle) - (combine(one) + combine(other)) / 2) <= 8 * 2.0**-24 * size + 1e-30).all()


def test_equal_predictions_are_not_changed_by_guidance():
    eps, _ = _pair()
    np.testing.assert_allclose(guidance.classifier_free(eps, eps, np.float32(3)), eps, rtol=2e-6, atol=0)


def test_each_example_has_its_own_strength():
    eps_cond, eps_uncond = _pair()
    w = np.float32([-1, 0, 0.3, 4])
    together = guidance.classifier_free(eps_cond, eps_uncond, w)
    for i, strength in enumerate(w):
        alone = guidance.classifier_free(eps_cond[i : i + 1], eps_uncond[i : i + 1], strength)
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6, atol=1e-6)


def _toy_eps(z, logsnr, labels):
    """Depends on all of its arguments, each in its own way."""
    level = jnp.broadcast_to(logsnr, labels.shape)
    return jnp.sin(z) * (1 + level[:, None]) + jnp.cos(labels.astype(jnp.float32))[:, None]


class _Recorder:
    """An eps function that remembers each trace and, by a callback, each execution."""

    def __init__(self):
        self.traces = []
        self.runs = []

    def __call__(self, z, logsnr, labels):
        self.traces.append(z.shape)
        jax.debug.callback(lambda *arrays: self.runs.append([np.array(a) for a in arrays]), z, logsnr, labels)
        return _toy_eps(z, logsnr, labels)


def _inputs():
    z = np.random.default_rng(1).standard_normal((3, 2)).astype(np.float32)
    return z, np.array([7, 0, 4], np.int32)


@pytest.mark.parametrize('levels', [np.float32(0.7), np.float32([0.7, -3, 5])], ids=['scalar', 'per_example'])
def test_the_network_sees_one_batch_with_the_conditional_half_first(levels):
    z, labels = _inputs()
    network = _Recorder()
    result = guidance.classifier_free_eps_fn(network, 1.5, null_label=NULL)(z, levels, labels)
    jax.effects_barrier()
    (run,) = network.runs
    np.testing.assert_array_equal(run[0], np.concatenate([z, z]))
    np.testing.assert_array_equal(run[1], np.tile(np.broadcast_to(levels, (3,)), 2))
    np.testing.assert_array_equal(run[2], [7, 0, 4, NULL, NULL, NULL])
    expected = 2.5 * _toy_eps(z, levels, labels) - 1.5 * _toy_eps(z, levels, np.full(3, NULL))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('levels', [np.float32(0.7), np.float32([0.7, -3, 5])], ids=['scalar', 'per_example'])
@pytest.mark.parametrize('compiled', [False, True], ids=['eager', 'jit'])
def test_without_guidance_only_the_conditional_pass_runs(levels, compiled):
    z, labels = _inputs()
    network = _Recorder()
    guided = guidance.classifier_free_eps_fn(network, jnp.zeros(3), null_label=NULL)
    result = (jax.jit(guided) if compiled else guided)(z, levels, labels)
    jax.effects_barrier()
    (run,) = network.runs
    np.testing.assert_array_equal(run[0], z)
    np.testing.assert_array_equal(run[2], labels)
    np.testing.assert_allclose(result, _toy_eps(z, levels, labels), rtol=1e-6, atol=1e-6)


def test_one_guided_example_is_enough_for_both_passes():
    z, labels = _inputs()
    network = _Recorder()
    w = np.float32([0, 0, 2])
    result = guidance.classifier_free_eps_fn(network, w, null_label=NULL)(z, np.float32(0), labels)
    jax.effects_barrier()
    assert [run[0].shape for run in network.runs] == [(6, 2)]
    np.testing.assert_allclose(result[:2], _toy_eps(z, np.float32(0), labels)[:2], rtol=1e-6, atol=1e-6)


def test_strengths_share_one_compilation():
    z, labels = _inputs()
    network = _Recorder()
    compiled = jax.jit(
        lambda w: guidance.classifier_free_eps_fn(network, w, null_label=NULL)(z, np.float32(0.5), labels)
    )
    cond, uncond = (_toy_eps(z, np.float32(0.5), c) for c in (labels, np.full(3, NULL)))
    for w in (0.0, -1.0, 0.1, 4.0, -0.5):
        np.testing.assert_allclose(compiled(np.float32(w)), (1 + w) * cond - w * uncond, rtol=1e-5, atol=1e-5)
    jax.effects_barrier()
    # One trace for each of the two branches, for all the strengths.
    assert sorted(network.traces) == [(3, 2), (6, 2)]
    assert [run[0].shape[0] for run in network.runs] == [3, 3, 6, 6, 6]  # w = 0 and w = -1 need one prediction


def test_strengths_of_a_batch_equal_separate_runs():
    z, labels = _inputs()
    strengths_of_batch = np.float32([0, 0.3, 4])
    together = guidance.classifier_free_eps_fn(_toy_eps, strengths_of_batch, null_label=NULL)(z, 0.5, labels)
    for i, w in enumerate(strengths_of_batch):
        alone = guidance.classifier_free_eps_fn(_toy_eps, w, null_label=NULL)(z[i : i + 1], 0.5, labels[i : i + 1])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('p_uncond', [0.1, 0.2, 0.5])
def test_labels_are_dropped_at_the_given_rate(p_uncond):
    count = 50000
    u = jax.random.uniform(jax.random.key(0), (count,))
    labels = np.arange(count, dtype=np.int32) % NULL
    dropped = np.asarray(guidance.drop_labels(u, labels, p_uncond=p_uncond, null_label=NULL))
    gone = dropped == NULL
    assert scipy.stats.binomtest(int(gone.sum()), count, p_uncond).pvalue > 1e-3
    np.testing.assert_array_equal(dropped[~gone], labels[~gone])
    # Whether a label goes says nothing about which label it was.
    table = np.stack([np.bincount(labels[gone], minlength=NULL), np.bincount(labels[~gone], minlength=NULL)])
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


def test_never_and_always_dropped():
    # The smallest and the largest draw of [0, 1).
    u = np.float32([0, 0.5, np.nextafter(np.float32(1), np.float32(0))])
    labels = np.array([3, 0, 9], np.int32)
    never = guidance.drop_labels(u, labels, p_uncond=0.0, null_label=NULL)
    always = guidance.drop_labels(u, labels, p_uncond=1.0, null_label=NULL)
    np.testing.assert_array_equal(never, labels)
    np.testing.assert_array_equal(always, [NULL] * 3)
    assert never.dtype == always.dtype == jnp.int32


def test_each_example_at_0_or_minus_1_gets_its_one_prediction():
    z, labels = _inputs()
    network = _Recorder()
    w = np.float32([0, -1, 0])
    guided = guidance.classifier_free_eps_fn(network, w, null_label=NULL)(z, np.float32(0.5), labels)
    expected = _toy_eps(z, np.float32(0.5), np.where(w == -1, NULL, labels))
    np.testing.assert_array_equal(guided, expected)


# Three classes in two dimensions, one of them narrow.
MIXTURE = mixture.gaussian_mixture(
    np.array([[0.9, 0.2], [-0.6, 0.5], [0.1, -0.8]]),
    np.array([[[0.3, 0.12], [0.12, 0.2]], [[0.25, 0], [0, 0.25]], [[0.05, -0.04], [-0.04, 0.4]]]),
    np.array([0.5, 0.3, 0.2]),
)


def _mixture_inputs(count=60):
    labels = np.arange(count, dtype=np.int32) % 3
    logsnr = np.linspace(-20, 20, count, dtype=np.float32)
    x = mixture.sample(MIXTURE, jax.random.split(jax.random.key(0), count), labels)
    alpha, sigma = schedule.alpha_sigma(logsnr)
    return alpha[:, None] * x + sigma[:, None] * jax.random.normal(jax.random.key(1), x.shape), logsnr, labels


@pytest.mark.parametrize('null_label', [None, 3], ids=['conditional_with_w', 'unconditional_with_w_plus_1'])
def test_guidance_by_the_exact_classifier_is_eq_6_with_exact_scores(null_label):
    """Both ways of Section 3.1, with the gradient taken through the classifier; w = 0 and -1 among the strengths."""
    z, logsnr, labels = _mixture_inputs()
    w = np.resize(np.float32([0, -1, 0.1, 1, 4]), 60)
    exact = mixture.eps_fn(MIXTURE)
    guided = jax.jit(guidance.classifier_eps_fn(exact, mixture.logits_fn(MIXTURE), w, null_label=null_label))(
        z, logsnr, labels
    )
    expected = guidance.classifier_free_eps_fn(exact, w, null_label=3)(z, logsnr, labels)
    np.testing.assert_allclose(guided, expected, rtol=1e-4, atol=2e-5)
    # Guidance does something here.
    assert np.abs(guided - exact(z, logsnr, labels))[w == 4].max() > 0.1


@pytest.mark.parametrize('null_label', [None, 3])
def test_the_classifier_runs_only_where_someone_is_guided(null_label):
    z, logsnr, labels = _mixture_inputs(4)
    runs = []

    def logits_fn(z, logsnr):
        jax.debug.callback(lambda: runs.append(1))
        return mixture.log_class_posterior(MIXTURE, z, logsnr)

    @jax.jit
    def guided(w):
        wrapped = guidance.classifier_eps_fn(mixture.eps_fn(MIXTURE), logits_fn, w, null_label=null_label)
        return wrapped(z, logsnr, labels)

    unguided = np.float32(0 if null_label is None else -1)
    expected = mixture.eps(MIXTURE, z, logsnr, labels if null_label is None else np.full_like(labels, 3))
    np.testing.assert_allclose(guided(np.full(4, unguided)), expected, rtol=1e-6, atol=1e-6)
    jax.effects_barrier()
    assert runs == []
    guided(np.float32([unguided, unguided, 1, unguided]))
    jax.effects_barrier()
    assert runs == [1]


@pytest.mark.parametrize('factor', [1.0, 0.7, 1.4, np.float32([0, 1, 2])])
def test_scaling_eps_scales_the_score(factor):
    z, labels = _inputs()
    level = np.float32(0.5)
    eps = _toy_eps(z, level, labels)
    actual = guidance.scaled_eps_fn(_toy_eps, factor)(z, level, labels)
    _, sigma = schedule.alpha_sigma(level)
    np.testing.assert_allclose(-actual / sigma, np.reshape(factor, (-1, 1)) * (-eps / sigma), rtol=1e-6)
    unchanged = np.broadcast_to(np.reshape(factor, (-1, 1)) == 1, eps.shape)
    np.testing.assert_array_equal(np.asarray(actual)[unchanged], np.asarray(eps)[unchanged])


def test_a_strength_may_be_a_function_of_the_level():
    z, labels = _inputs()

    def guided(w):
        return guidance.classifier_free_eps_fn(_toy_eps, w, null_label=NULL)

    for level in np.float32([-3, 0, 2]):
        actual = guided(lambda logsnr: 0.5 * logsnr)(z, level, labels)
        np.testing.assert_allclose(actual, guided(0.5 * level)(z, level, labels), rtol=1e-6)
