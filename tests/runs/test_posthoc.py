"""Averages that are made after training, against those of every step's recorded parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from cfg.modes.status import run as describe
from cfg.runs import state
from cfg.runs.checkpoints import Checkpoints
from cfg.runs.posthoc import reconstruct
from cfg.runs.profiles import exponent
from cfg.runs.trained import TrainedRun
from cfg.runtime.errors import UserError
from cfg.training import loop
from cfg.training.step import train_step

STEPS, EVERY, KEPT = 1200, 50, (0.05, 0.1)


@pytest.fixture(scope='module', name='recorded')
def recorded_fixture(tmp_path_factory):
    """(a workdir with 24 checkpoints, the parameters after each step) of a regression on noisy gradients."""
    tx = optax.adam(2e-3)
    batch = {'image': jnp.zeros((1, 1, 1, 1), jnp.uint8), 'label': jnp.zeros(1, jnp.int32), 'index': jnp.arange(1)}
    target = np.linspace(-2, 2, 40, dtype=np.float32)

    def loss_fn(params, images, labels, keys, index):
        noise = jax.random.normal(keys[0], (40,))
        return jnp.sum((params['a'] - target) ** 2 / 2 + noise * params['a'])[None], {}

    def step(at, _):
        options = {'ema_decay': 0.99, 'grad_accum': 1, 'seed': 0, 'mean_over_devices': lambda tree: tree}
        at, _ = train_step(at, batch, loss_fn=loss_fn, tx=tx, **options)
        return at, (at.params['a'], at.averages)

    begin = state.create({'a': jnp.ones(40)}, tx, KEPT)
    _, (params, averages) = jax.device_get(jax.jit(lambda at: jax.lax.scan(step, at, length=STEPS))(begin))
    workdir = tmp_path_factory.mktemp('recorded')
    meta = {'config': {'train': {'ema_lengths': list(KEPT), 'keep_every': EVERY}}}
    with Checkpoints(workdir, keep_last=1, keep_every=EVERY) as checkpoints:
        for count in range(EVERY, STEPS + 1, EVERY):
            of_step = jax.tree.map(lambda x, count=count: x[count - 1], averages)
            now = {'a': params[count - 1]}
            checkpoints.save(state.TrainState(np.int32(count), now, now, (now,), of_step), meta=meta)
        checkpoints.wait()
    return workdir, params


def averaged(params, length):
    """The average of parameters [T, ...], each with the integral of the profile over its step."""
    gamma, steps = exponent(length), len(params)

    def weight(i):
        return integrate.quad(lambda t: (gamma + 1) * (t / steps) ** gamma / steps, i, i + 1)[0]

    return np.tensordot([weight(i) for i in range(steps)], params.astype(np.float64), axes=1)


@pytest.mark.parametrize(('step', 'bound'), [(600, 5e-3), (STEPS, 1e-3)])  # from 12 and 24 checkpoints
@pytest.mark.parametrize('length', [0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2])
def test_a_made_average_is_that_of_all_steps(recorded, length, step, bound):
    workdir, params = recorded
    made, expected = reconstruct(workdir, step, length).params()['a'], averaged(params[:step], length)
    assert made.dtype == np.float32
    error = np.linalg.norm(made - expected)
    assert error < bound * np.linalg.norm(expected)
    # It is an average, and not the parameters at the end, nor that of a length that was kept.
    others = [params[step - 1], *(averaged(params[:step], kept) for kept in KEPT if kept != length)]
    assert all(error < 0.1 * np.linalg.norm(other - expected) for other in others)


def test_what_was_kept_is_read_as_it_is(recorded):
    workdir, params = recorded
    with Checkpoints(workdir, read_only=True) as checkpoints:
        kept = checkpoints.restore_averages(STEPS)
    for length in KEPT:
        np.testing.assert_allclose(kept[str(length)]['a'], averaged(params, length), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reconstruct(workdir, STEPS, length).params()['a'], kept[str(length)]['a'], rtol=1e-5)


def test_digests_are_of_lengths_and_of_what_they_are_made_of(recorded):
    workdir, _ = recorded
    found = {reconstruct(workdir, step, length).sha256 for step in (600, STEPS) for length in (0.08, 0.1)}
    assert len(found) == 4
    assert reconstruct(workdir, STEPS, 0.1).sha256 in found


@pytest.mark.parametrize('length', [0.004, 0.01, 0.288])
def test_a_length_that_cannot_be_made_is_refused(recorded, length):
    with pytest.raises(UserError, match=rf'ema_length={length} at step 1200 cannot be made of .* 24 checkpoints'):
        reconstruct(recorded[0], STEPS, length)


def test_few_checkpoints_make_few_lengths(recorded):
    """At step 50 there is none before it."""
    reconstruct(recorded[0], 50, 0.06)
    with pytest.raises(UserError, match=r'of 1 checkpoints .* (\d\d)% of its profile would be missing.*keep_every'):
        reconstruct(recorded[0], 50, 0.15)


def test_a_run_without_averages_is_refused(recorded, tmp_path):
    tree = {'a': np.zeros(2, np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state.TrainState(np.int32(1), tree, tree, (tree,), {}), meta={'config': {'train': {}}})
        checkpoints.wait()
        assert not (tmp_path / 'checkpoints/1/averages').exists()
        assert 'averages' not in checkpoints.meta(1)['sha256']
        with pytest.raises(
            UserError, match=r'kept no averages to make ema_length=0\.1 of: .*ema_lengths=\(0\.05, 0\.1\)'
        ):
            reconstruct(tmp_path, 1, 0.1)
        like = state.TrainState(np.int32(0), tree, tree, (tree,), {'0.05': tree})
        with pytest.raises(UserError, match=r'holds no averages for config\.train\.ema_lengths=\(0\.05,\)'):
            checkpoints.restore_state(1, like)


def test_a_run_keeps_averages_and_is_sampled_from_them(tmp_path, small_config):
    """Also after a stop, with the same parameters beside them as without."""
    small_config.train.ema_lengths, small_config.train.keep_every = KEPT, 2
    whole, parts, plain = (tmp_path / name for name in ('whole', 'parts', 'plain'))
    for folder in (whole, parts, plain):
        folder.mkdir()
    loop.train(small_config, whole)
    for steps in (3, 6):
        small_config.train.num_steps = steps
        loop.train(small_config, parts)
    digests = [[line for line in describe(it).splitlines() if 'sha256' in line] for it in (whole, parts)]
    assert digests[0] == digests[1]
    assert digests[0][-1].startswith('averages_sha256: ')
    run = TrainedRun.of_config(small_config, parts, ema_length=0.08)
    other = TrainedRun.of_config(small_config, parts, ema_length=0.0)
    assert run.sha256 == TrainedRun.of_config(small_config, whole, ema_length=0.08).sha256 != other.sha256
    jax.tree.map(np.testing.assert_array_equal, run.params(), run.average.params())
    assert jax.tree.structure(run.params()) == jax.tree.structure(other.params())
    assert TrainedRun.of_config(small_config, parts).sha256 == other.sha256
    small_config.train.ema_lengths = ()
    with pytest.raises(UserError, match=r'come from config\.train\.ema_lengths=\[0\.05, 0\.1\], not \[\]'):
        loop.train(small_config, parts)
    loop.train(small_config, plain)
    assert [line for line in describe(plain).splitlines() if 'sha256' in line] == digests[0][:-1]
