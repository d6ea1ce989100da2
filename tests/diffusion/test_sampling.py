import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cfg.diffusion import guidance, sampling, schedule

SHAPE = (2, 3)


def _scales(logsnr):
    """alpha and sigma of Eq. 1 in float64."""
    logsnr = np.float64(logsnr)
    return np.sqrt(scipy.special.expit(logsnr)), np.sqrt(scipy.special.expit(-logsnr))


def _keys(count=8):
    return jax.random.split(jax.random.key(7), count)


def _labels(count=8):
    return np.arange(count, dtype=np.int32) % 3


@jax.jit
def _normal(keys, index):
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), SHAPE))(keys)


def _noise(keys, index):
    """The noise that a sample meets at the start (index 0) and on entering each further level, in float64."""
    return np.float64(_normal(keys, index))


def _toy_eps(z, logsnr, labels, np_=jnp):
    """Nonlinear in z, and different for each level and label."""
    level = np_.reshape(logsnr, (-1, 1, 1))  # of one level for all, or of one an example
    return np_.tanh(z + 0.3 * labels[:, None, None]) * (1 + 0.1 * np_.sin(level)) + 0.1 * np_.cos(3 * z)


def _reference(eps_fn, keys, labels, logsnrs, *, logvar_interp, clip_x):
    """Alg. 2 as a loop in float64. Returns the samples and the share of components that were clipped."""
    levels = np.float64(logsnrs)
    z = _noise(keys, 0)
    clipped = []
    for i, level in enumerate(levels):
        alpha, sigma = _scales(level)
        x = (z - sigma * eps_fn(z, level, labels, np_=np)) / alpha
        clipped.append(np.mean(np.abs(x) > 1))
        if clip_x:
            x = np.clip(x, -1, 1)
        if i + 1 == len(levels):
            return x, clipped
        next_alpha, next_sigma = _scales(levels[i + 1])
        shrink = 1 - np.exp(level - levels[i + 1])
        mean = np.exp(level - levels[i + 1]) * next_alpha / alpha * z + shrink * next_alpha * x
        variance = (shrink * next_sigma**2) ** (1 - logvar_interp) * (shrink * sigma**2) ** logvar_interp
        z = mean + np.sqrt(variance) * _noise(keys, i + 1)


def _sample(eps_fn, logsnrs, *, keys=None, labels=None, logvar_interp=0.3, clip_x=True):
    return sampling.ancestral(
        eps_fn,
        _keys() if keys is None else keys,
        _labels() if labels is None else labels,
        logsnrs,
        shape=SHAPE,
        logvar_interp=logvar_interp,
        clip_x=clip_x,
    )


def _grid(num_steps, logsnr_min=-6.0, logsnr_max=6.0):
    return schedule.sampling_grid(num_steps, logsnr_min=logsnr_min, logsnr_max=logsnr_max)


@functools.partial(jax.jit, static_argnames='clip_x')
def _compiled(keys, labels, logsnrs, logvar_interp, clip_x):
    return _sample(_toy_eps, logsnrs, keys=keys, labels=labels, logvar_interp=logvar_interp, clip_x=clip_x)


@pytest.mark.parametrize('clip_x', [False, True], ids=['free', 'clipped'])
@pytest.mark.parametrize('num_steps', [2, 9])
def test_samples_match_the_algorithm_in_float64(num_steps, clip_x):
    logsnrs = _grid(num_steps)
    for interp in (0.0, 0.3, 1.0):
        actual = _compiled(_keys(), _labels(), logsnrs, interp, clip_x)
        expected, clipped = _reference(_toy_eps, _keys(), _labels(), logsnrs, logvar_interp=interp, clip_x=clip_x)
        assert actual.shape == (8, *SHAPE)
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)
        if clip_x:
            # Some components are cut and some are not at two levels or more, so both paths are followed.
            assert sum(0 < share < 1 for share in clipped) >= 2
            assert np.abs(actual).max() <= 1


def test_samples_are_the_same_without_jit():
    np.testing.assert_allclose(
        _sample(_toy_eps, _grid(9)), _compiled(_keys(), _labels(), _grid(9), 0.3, True), rtol=0, atol=1e-5
    )


def test_samples_match_the_algorithm_over_the_whole_range():
    # At logsnr = -20 an error of eps reaches x multiplied by e^10, which clipping bounds.
    logsnrs = _grid(9, -20.0, 20.0)
    actual = _compiled(_keys(), _labels(), logsnrs, 0.3, True)
    expected, _ = _reference(_toy_eps, _keys(), _labels(), logsnrs, logvar_interp=0.3, clip_x=True)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-3)
    free = _compiled(_keys(), _labels(), logsnrs, 0.3, False)
    assert np.isfinite(free).all()


def test_clipping_acts_at_every_step_and_not_only_at_the_end():
    logsnrs = _grid(9)
    clipped, free = (_compiled(_keys(), _labels(), logsnrs, 0.3, clip_x) for clip_x in (True, False))
    assert np.abs(free).max() > 1
    assert np.abs(np.asarray(clipped) - np.clip(free, -1, 1)).max() > 0.05


def test_two_levels_by_hand():
    # eps = 0.25 everywhere. At logsnr = 0, alpha = sigma = sqrt(1/2); at log 3, alpha^2 = 3/4 and sigma^2 = 1/4.
    logsnrs = jnp.log(jnp.float32([1, 3]))
    actual = _sample(lambda z, logsnr, labels: jnp.full_like(z, 0.25), logsnrs, logvar_interp=0.0, clip_x=False)
    start, step = _noise(_keys(), 0), _noise(_keys(), 1)
    x = np.sqrt(2) * start - 0.25
    # e^(logsnr_t - logsnr_s) = 1/3, so Eq. 3 has mean sqrt(3/2) z / 3 + (2/3) sqrt(3/4) x and variance (2/3) / 4.
    z = np.sqrt(3 / 2) / 3 * start + 2 / 3 * np.sqrt(3 / 4) * x + np.sqrt(1 / 6) * step
    np.testing.assert_allclose(actual, (z - 0.5 * 0.25) / np.sqrt(3 / 4), rtol=0, atol=5e-6)


def test_the_last_step_adds_no_noise():
    # A network that always says x = 0.5 leaves no noise in the sample, whatever the steps before added.
    def says_half(z, logsnr, labels):
        alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
        return (z - alpha * 0.5) / sigma

    result = _sample(says_half, _grid(5, -4.0, 1.0), logvar_interp=1.0, clip_x=False)
    np.testing.assert_allclose(result, 0.5, rtol=0, atol=5e-6)


def test_the_network_is_asked_once_at_each_level_in_order():
    seen = []

    def eps_fn(z, logsnr, labels):
        jax.debug.callback(lambda *values: seen.append([np.array(v) for v in values]), logsnr, z, labels, ordered=True)
        return _toy_eps(z, logsnr, labels)

    logsnrs = _grid(6)
    _sample(eps_fn, logsnrs)
    jax.effects_barrier()
    np.testing.assert_array_equal([run[0] for run in seen], logsnrs)
    np.testing.assert_allclose(seen[0][1], _noise(_keys(), 0), rtol=1e-6, atol=1e-6)
    for run in seen:
        np.testing.assert_array_equal(run[2], _labels())


@pytest.mark.parametrize('clip_x', [False, True], ids=['free', 'clipped'])
def test_a_sample_depends_only_on_its_key_and_label(clip_x):
    keys, labels, logsnrs = _keys(), _labels(), _grid(9)

    def compiled(keys, labels):
        return _compiled(keys, labels, logsnrs, 0.3, clip_x)

    def run(rows):
        return np.asarray(compiled(keys[rows], labels[rows]))

    whole = run(np.arange(8))
    order = np.random.default_rng(0).permutation(8)
    # Not bit for bit: a compiler may round a vector of another length differently.
    np.testing.assert_allclose(np.concatenate([run(np.arange(4)), run(np.arange(4, 8))]), whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(order), whole[order], rtol=1e-5, atol=1e-5)
    # Another label or another key gives another sample, and only there.
    for changed in (
        compiled(keys, np.where(np.arange(8) == 3, 9, labels).astype(np.int32)),
        compiled(keys.at[3].set(jax.random.key(99)), labels),
    ):
        moved = np.abs(np.asarray(changed) - whole).max(axis=(1, 2)) > 1e-3
        np.testing.assert_array_equal(moved, np.arange(8) == 3)


def test_noise_is_standard_normal_and_new_at_every_step():
    # With eps = z / sigma the estimate of x is 0 and a step from a very noisy level is almost only its noise.
    keys = _keys(3000)
    seen = []

    def says_zero(z, logsnr, labels):
        jax.debug.callback(lambda value: seen.append(np.array(value)), z, ordered=True)
        return z / jnp.sqrt(jax.nn.sigmoid(-logsnr))

    logsnrs = jnp.float32([-20, -8, 4])
    _sample(says_zero, logsnrs, keys=keys, labels=np.zeros(3000, np.int32), logvar_interp=0.0, clip_x=False)
    jax.effects_barrier()
    values = np.column_stack([z.ravel() for z in seen])
    # x = 0 throughout, so each z has the law of q(z | x = 0) = N(0, sigma^2): the ancestral chain keeps it.
    _, sigma = _scales(logsnrs)
    count = values.shape[0]
    assert (np.abs(values.mean(axis=0) / sigma) < 4.5 / np.sqrt(count)).all()
    assert (np.abs((values / sigma).var(axis=0) - 1) < 4.5 * np.sqrt(2 / count)).all()
    correlation = np.corrcoef(values, rowvar=False)
    # Neighbours are correlated by r sigma_s / sigma_t = e^((logsnr_t - logsnr_s) / 2) = e^-6, and no more.
    assert np.abs(correlation - np.eye(3)).max() < np.exp(-6) + 4.5 / np.sqrt(count)


def test_guided_sampling_matches_the_algorithm_in_float64():
    # Eq. 6 inside Alg. 2, with one strength a sample; label 5 stands for no label.
    w = np.float32([0, 0, 0.1, 0.3, 1, 2, 4, -1])
    logsnrs = _grid(7)
    actual = _sample(guidance.classifier_free_eps_fn(_toy_eps, w, null_label=5), logsnrs)

    def guided(z, logsnr, labels, np_):
        strength = np.float64(w)[:, None, None]
        cond = _toy_eps(z, logsnr, labels, np_=np_)
        return (1 + strength) * cond - strength * _toy_eps(z, logsnr, np.full_like(labels, 5), np_=np_)

    expected, _ = _reference(guided, _keys(), _labels(), logsnrs, logvar_interp=0.3, clip_x=True)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
