"""Networks as rules see them: which of the two predictions run, in what batch, of which network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.rules import Apg, Autoguidance, Cfg, CfgPlusPlus, Rescale
from tests.diffusion.toys import CLASSES, NULL, keys

pytestmark = pytest.mark.usefixtures('eager')
LABELS = np.array([3, 1, 4], np.int32)
NULLS = np.full_like(LABELS, NULL)
Z = np.random.default_rng(1).standard_normal((3, 2)).astype(np.float32)
RULES = {'cfg': Cfg(), 'rescale': Rescale(), 'apg': Apg(eta=0.2, norm_threshold=0.5), 'cfg_plus_plus': CfgPlusPlus()}


def toy_eps(z, logsnr, labels):
    """Depends on all of its arguments, each in its own way."""
    level = jnp.broadcast_to(logsnr, labels.shape)
    return jnp.sin(z) * (1 + level[:, None]) + jnp.cos(labels.astype(jnp.float32))[:, None]


class Watched:
    """A network that writes down each evaluation as it happens, and each trace."""

    def __init__(self, name='model', runs=None):
        self.name, self.runs, self.traces = name, [] if runs is None else runs, []

    def __call__(self, z, logsnr, labels):
        self.traces.append(z.shape)
        jax.debug.callback(lambda *arrays: self.runs.append((self.name, *map(np.array, arrays))), z, logsnr, labels)
        return toy_eps(z, logsnr, labels)

    @property
    def asked(self):
        """The labels of every evaluation."""
        return [run[3].tolist() for run in self.runs]


def eps_of(rule, models, w, level=0.5, labels=LABELS):
    z = Z[: len(labels)]
    state = rule.init(keys(len(z)), z)
    w = jnp.broadcast_to(jnp.float32(w), len(z))
    return rule.predict(models, z, jnp.asarray(level, jnp.float32), labels, w, state)[0].eps


def eq_6(w, level=0.5):
    cond, uncond = (toy_eps(Z, jnp.asarray(level, jnp.float32), labels) for labels in (LABELS, NULLS))
    w = np.reshape(w, (-1, 1))
    return (1 + w) * cond - w * uncond


@pytest.mark.parametrize('level', [0.7, [0.7, -3, 5]], ids=['scalar', 'per_example'])
def test_the_network_sees_one_batch_with_the_conditional_half_first(level):
    network = Watched()
    result = eps_of(Cfg(), Models(Denoiser(network, CLASSES)), 1.5, level)
    (run,) = network.runs
    np.testing.assert_array_equal(run[1], np.concatenate([Z, Z]))
    np.testing.assert_array_equal(run[2], np.tile(np.broadcast_to(np.float32(level), (3,)), 2))
    np.testing.assert_array_equal(run[3], [*LABELS, *NULLS])
    np.testing.assert_allclose(result, eq_6(1.5, level), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'w', 'passes'),
    [
        ('cfg', [0, 0], ['cond']),
        ('cfg', [-1, -1], ['other']),
        ('cfg', [0, 1], ['cond', 'other']),
        ('rescale', [0, 0], ['cond']),
        ('rescale', [-1, -1], ['cond', 'other']),
        ('apg', [0, 0], ['cond']),
        ('apg', [0, 2], ['cond', 'other']),
        ('cfg_plus_plus', [-1, -1], ['other']),
        ('cfg_plus_plus', [0, 0], ['cond', 'other']),
    ],
)
def test_only_the_passes_that_are_needed_run(name, w, passes):
    labels, network, runs = LABELS[:2], Watched(), []
    eps_of(RULES[name], Models(Denoiser(network, CLASSES)), w, labels=labels)
    asked = {'cond': [3, 1], 'other': [NULL, NULL]}
    assert network.asked == [[label for name in passes for label in asked[name]]]

    first, second = (Denoiser(Watched(name, runs), CLASSES) for name in ('cond', 'other'))
    eps_of(RULES[name], Models(first, uncond=second), w, labels=labels)
    assert [(run[0], run[3].tolist()) for run in runs] == [(name, asked[name]) for name in passes]
    if name == 'cfg':
        runs.clear()
        eps_of(Autoguidance(), Models(first, weaker=second), w, labels=labels)
        assert [(run[0], run[3].tolist()) for run in runs] == [(name, [3, 1]) for name in passes]


def test_each_example_at_0_or_minus_1_gets_its_one_prediction(eager):
    network, w = Watched(), np.float32([0, -1, 0])
    guided = eps_of(Cfg(), Models(Denoiser(network, CLASSES)), w)
    assert network.asked == [[3, NULL, 4]]
    np.testing.assert_array_equal(guided, toy_eps(Z, np.float32(0.5), np.where(w == -1, NULL, LABELS)))


def test_strengths_share_one_compilation():
    network = Watched()
    compiled = jax.jit(lambda w: eps_of(Cfg(), Models(Denoiser(network, CLASSES)), w))
    with jax.disable_jit(False):
        for w in (0.0, -1.0, 0.1, 4.0, -0.5, [0.0, 0.0, 2.0]):
            guided = compiled(np.broadcast_to(np.float32(w), 3))
            np.testing.assert_allclose(guided, eq_6(w), rtol=1e-5, atol=1e-5)
        jax.effects_barrier()
    # One trace for each of the two branches, for all the strengths.
    assert sorted(network.traces) == [(3, 2), (6, 2)]
    assert [len(run[1]) for run in network.runs] == [3, 3, 6, 6, 6, 6]  # w = 0 and w = -1 need one prediction


@pytest.mark.parametrize('against', ['null', 'random'])
@pytest.mark.parametrize('w', [[0, 1], [0, 0], [-1, -1]])
def test_a_cheaper_way_to_both_is_taken_where_both_are_needed(w, against):
    network, seen = Watched(), []

    def both_fn(z, logsnr, labels, other_labels):
        seen.append((labels.tolist(), other_labels.tolist()))
        return toy_eps(z, logsnr, labels), toy_eps(z, logsnr, other_labels)

    rule, labels = Cfg(against=against), LABELS[:2]
    actual = eps_of(rule, Models(Denoiser(network, CLASSES, both_fn=both_fn)), w, labels=labels)
    assert (len(seen), len(network.runs)) == ((1, 0) if w[1] == 1 else (0, 1))
    if against == 'null':
        asked = [3, 1] if w[0] == 0 else [NULL, NULL]
        assert (seen, network.asked) == (([([3, 1], [NULL, NULL])], []) if w[1] == 1 else ([], [asked]))
    expected = eps_of(rule, Models(Denoiser(toy_eps, CLASSES)), w, labels=labels)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_channels_past_those_of_the_image_are_not_used():
    """Learned variances; and the output has the type of z, whatever the network computes in."""

    def fn(z, logsnr, labels):
        output = jnp.tanh(z + labels[:, None, None, None]).astype(jnp.bfloat16)
        return jnp.concatenate([output, 7 * output], axis=-1)

    def both_fn(z, logsnr, *labels):
        return tuple(fn(z, logsnr, one) for one in labels)

    z = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
    level = np.float32([-3, 0, 4])
    model, cheaper = Denoiser(fn, CLASSES), Denoiser(fn, CLASSES, both_fn=both_fn)
    assert model.null_label == CLASSES
    for made in (model.both(z, level, LABELS, NULLS), cheaper.both(z, level, LABELS, NULLS)):
        for output, labels in zip(made, (LABELS, NULLS), strict=True):
            assert output.dtype == z.dtype
            np.testing.assert_array_equal(output, model(z, level, labels))
            np.testing.assert_array_equal(output, fn(z, level, labels)[..., :1].astype(z.dtype))
