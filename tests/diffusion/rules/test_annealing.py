"""Noise on the embeddings of labels: its formula in float64, and what a network then sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.diffusion import corrections, schedule, solvers, strength
from cfg.diffusion.denoiser import Annealing, Denoiser, Models
from cfg.diffusion.rules import RULES, Cfg
from cfg.diffusion.rules.pairs import Labelled
from cfg.diffusion.sampler import Sampler
from cfg.runs.generate import binder
from tests.diffusion.toys import CLASSES, COUNT, MODELS, NULL, SHAPE, keys, labels, toy_eps
from tests.models.test_unet import SMALL, randomised

LABELLED = [kind() for kind in RULES if issubclass(kind, Labelled)]
LEVELS = schedule.uniform_grid(4, logsnr_min=-5.0, logsnr_max=6.0)
NOISY = (0.2, 0.9, 1.3, 0.6)


def annealed(y, noise, kept, scale, mix):
    """As public implementations have it, of one example."""
    noisy = np.sqrt(kept) * y + scale * np.sqrt(1 - kept) * noise
    restored = (noisy - noisy.mean()) / noisy.std(ddof=1) * y.std(ddof=1) + y.mean()
    return mix * restored + (1 - mix) * noisy


def test_the_formula_in_float64():
    """Each example with its own mean and deviation, as the embedding of a class is all of it."""
    rng = np.random.default_rng(0)
    y, noise = 3 * rng.standard_normal((5, 32)) + 1, rng.standard_normal((5, 32))
    kept, scale, mix = np.array([0.0, 0.3, 0.9, 1.0, 0.5]), np.array([1.0, 0.2, 2, 5, 0]), np.array([1, 0.5, 0, 1, 1.0])
    options = {name: np.float32(of) for name, of in (('kept', kept), ('scale', scale), ('mix', mix))}
    actual = np.asarray(corrections.anneal(np.float32(y), np.float32(noise), **options))
    expected = np.stack([annealed(*of) for of in zip(y, noise, kept, scale, mix, strict=True)])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(actual[3], np.float32(y)[3])
    zero = corrections.anneal(np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32), kept=0.5, scale=1.0, mix=1.0)
    np.testing.assert_array_equal(zero, 0)


def test_what_is_kept_falls_over_the_time_of_the_cosine_schedule():
    time = np.linspace(0.01, 0.99, 50)
    alpha, sigma = np.cos(np.pi / 2 * time), np.sin(np.pi / 2 * time)
    actual = strength.annealing(jnp.float32(2 * np.log(alpha / sigma)), tau1=0.3, tau2=0.8)
    np.testing.assert_allclose(actual, np.interp(time, [0.3, 0.8], [1, 0]), rtol=0, atol=2e-6)


def told_of(rule, *, rows=slice(None)):
    """What a network is told at each evaluation."""
    told = []

    def fn(z, logsnr, labels, anneal):
        told.append((labels, anneal))
        return toy_eps(z, logsnr, labels)

    guided = Sampler(rule=rule).guided(Models(Denoiser(fn, CLASSES)), labels()[rows], jnp.float32(1.0))
    solvers.Ddim().sample(guided, keys()[rows], LEVELS, shape=SHAPE)
    return told


@pytest.mark.usefixtures('eager')
def test_each_sample_has_its_own_noise_new_at_each_evaluation():
    """The two predictions of a sample share it, whatever the batch, and whatever labels are drawn."""
    told, rows = told_of(Cfg(anneal_label=NOISY)), np.array([4, 1])
    data = [jax.random.key_data(anneal.keys) for _, anneal in told]
    for of in data:
        np.testing.assert_array_equal(of[:COUNT], of[COUNT:])
    assert len(np.unique(np.concatenate([of[:COUNT] for of in data]), axis=0)) == COUNT * len(LEVELS)
    for of, (_, anneal) in zip(data, told_of(Cfg(anneal_label=NOISY, against='random'), rows=rows), strict=True):
        np.testing.assert_array_equal(jax.random.key_data(anneal.keys)[:2], of[rows])
    kept = np.stack([anneal.kept for _, anneal in told])
    np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :1], kept.shape))
    np.testing.assert_allclose(kept[:, 0], strength.annealing(LEVELS, tau1=0.2, tau2=0.9), rtol=1e-6)
    assert (kept[0, 0], kept[-1, 0]) == (0.0, 1.0)
    assert {float(anneal.scale[0]) for _, anneal in told} == {np.float32(1.3)}
    assert {float(anneal.mix[0]) for _, anneal in told} == {np.float32(0.6)}


@pytest.mark.usefixtures('eager')
@pytest.mark.parametrize('rule', LABELLED, ids=lambda rule: rule.name)
def test_every_rule_that_compares_labels_tells_the_network(rule):
    """And one without the option tells it nothing, so that a network need not know of it."""
    assert all(isinstance(anneal, Annealing) for _, anneal in told_of(dataclasses.replace(rule, anneal_label=NOISY)))
    guided = Sampler(rule=rule).guided(MODELS, labels(), jnp.float32(1.0))
    guided.predict(np.ones((COUNT, *SHAPE), np.float32), jnp.float32(0), guided.init(keys(), jnp.ones((COUNT, *SHAPE))))


@pytest.fixture(scope='module', name='network')
def network_fixture():
    """Parameters, and a batch with the null label in it."""
    z = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    inputs = z, jnp.array([-4.0, -1.0, 3.0, 0.5]), jnp.array([0, 1, 2, 3])
    return randomised(jax.jit(SMALL.init)(jax.random.key(0), *inputs)), inputs


@pytest.mark.parametrize('label_in', ['everywhere', 'decoder'])
def test_a_network_sees_the_noisy_embedding_in_place_of_its_row(network, label_in):
    """As if the row of the label were another one; the null label keeps its own, in one call and in `both`."""
    params, (z, logsnr, asked) = network
    told = SMALL.clone(label_in=label_in)
    keys = jax.random.split(jax.random.key(3), 4)
    anneal = Annealing(keys, jnp.full(4, 0.4), jnp.full(4, 1.3), jnp.full(4, 0.6))
    table = np.array(params['params']['classes']['embedding'])
    for row in range(3):
        noise = np.asarray(jax.random.normal(keys[row], table.shape[1:]))
        table[row] = annealed(np.float64(table[row]), noise, 0.4, 1.3, 0.6)
    other = {'params': params['params'] | {'classes': {'embedding': table}}}
    apply = jax.jit(told.apply)
    expected, plain, null = apply(other, z, logsnr, asked), apply(params, z, logsnr, asked), jnp.full(4, 3)
    actual = jax.jit(lambda anneal: told.apply(params, z, logsnr, asked, anneal=anneal))(anneal)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    assert (np.abs(actual - plain).max(axis=(1, 2, 3)) > 1e-3).tolist() == [True] * 3 + [False]
    both = jax.jit(lambda anneal: told.apply(params, z, logsnr, asked, null, anneal, method='both'))(anneal)
    np.testing.assert_allclose(both[0], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(both[1], apply(params, z, logsnr, null), rtol=0, atol=1e-5)


@pytest.mark.parametrize('label_in', ['everywhere', 'decoder'])
def test_samples_without_noise_are_plain_to_the_bit_and_others_follow_from_their_key(network, label_in):
    params, _ = network
    models = Models(binder(SMALL.clone(label_in=label_in), 'v')(params['params']))
    assert NULL > 2  # the toys' labels are classes of this network

    def draw(anneal_label, rows, w=1.0):
        rule = Cfg(anneal_label=anneal_label)
        sampler = Sampler(rule=rule, num_steps=3, logsnr_min=-5.0, logsnr_max=6.0)
        run = jax.jit(lambda keys, labels: sampler.sample(models, keys, labels, w, shape=(8, 8, 2)))
        return np.asarray(run(keys()[rows], labels()[rows]))

    every = np.arange(COUNT)
    plain, noisy = draw(None, every), draw(NOISY, every)
    np.testing.assert_array_equal(draw((1.0, 1.5, 1.0, 1.0), every), plain)
    assert (np.abs(noisy - plain).max(axis=(1, 2, 3)) > 1e-3).all()
    np.testing.assert_allclose(draw(NOISY, np.array([5, 0])), noisy[[5, 0]], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(draw(NOISY, every, -1.0), draw(None, every, -1.0))  # the null label alone
