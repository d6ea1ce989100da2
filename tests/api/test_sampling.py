"""The public API on functions in closed form, on a run, and on what a user may get wrong."""

import copy
import subprocess
import sys

import flax.errors
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cfg
from cfg.api import models
from cfg.runs import run_files, trained
from cfg.runtime import parallel
from tests.command_line import ROOT
from tests.conftest import small_config

MEANS, SPREAD, WIDE = np.float32([-0.4, 0.5]), 0.3, 0.8  # of two classes of Gaussian data, and of both together


def moments(labels):
    """Mean and deviation of the data of each label; the null label has both classes, as one Gaussian."""
    null = labels == 2
    mean = jnp.where(null, 0.05, jnp.asarray(MEANS)[jnp.minimum(labels, 1)])
    return mean[:, None], jnp.where(null, WIDE, SPREAD)[:, None]


def gaussian_eps(z, logsnr, labels):
    """E[eps | z] of the data of each label (Bayes' rule for Gaussians)."""
    alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * logsnr))[:, None] for sign in (1, -1))
    mean, spread = moments(labels)
    return sigma * (z - alpha * mean) / ((alpha * spread) ** 2 + sigma**2)


def gaussian_x_of_noisy(y, sigma, labels):
    """E[x | y = x + sigma eps], as EDM's denoiser gives it."""
    mean, spread = moments(labels)
    sigma = sigma[:, None]
    return (sigma**2 * mean + spread**2 * y) / (sigma**2 + spread**2)


def gaussian_velocity(y, t, labels):
    """E[eps - x | y = (1 - t) x + t eps], as flow matching learns it."""
    mean, spread = moments(labels)
    t = t[:, None]
    slope = (t - (1 - t) * spread**2) / (t**2 + ((1 - t) * spread) ** 2)
    return -mean + slope * (y - (1 - t) * mean)


def of_adapted(fn):
    """eps, x and v at (z, logsnr), of the eps function above."""

    def changed(z, logsnr, labels):
        eps = gaussian_eps(z, logsnr, labels)
        x = cfg.process.x_from_eps(z, eps, logsnr)
        return {'eps': eps, 'x': x, 'v': cfg.process.v_from_x_eps(x, eps, logsnr)}[fn]

    return changed


CONVENTIONS = {
    **{name: of_adapted(name) for name in ('eps', 'x', 'v')},
    'sigma_x': gaussian_x_of_noisy,
    'sigma_eps': lambda y, sigma, labels: (y - gaussian_x_of_noisy(y, sigma, labels)) / sigma[:, None],
    'flow': gaussian_velocity,
}
LABELS = np.arange(8) % 2


def test_samples_of_a_function_have_the_moments_of_its_data():
    labels = np.arange(4000) % 2
    how = {'num_classes': 2, 'shape': (1,), 'sampler': 'heun', 'grid': 'uniform', 'steps': 64, 'clip_x': False}
    x = cfg.sample(gaussian_eps, labels, w=0.0, batch_size=4096, **how)
    assert x.shape == (4000, 1)
    assert x.dtype == np.float32
    for label, mean in enumerate(MEANS):
        drawn = x[labels == label]
        assert drawn.mean() == pytest.approx(mean, abs=4 * SPREAD / np.sqrt(2000))
        assert drawn.std() == pytest.approx(SPREAD, rel=4 / np.sqrt(2 * 2000))


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_a_network_of_another_convention_draws_the_same_samples(convention):
    how = {'shape': (1,), 'sampler': 'dpm_solver_2m', 'grid': 'uniform', 'steps': 12, 'clip_x': False}
    ours = cfg.sample(gaussian_eps, LABELS, w=1.0, num_classes=2, **how)
    theirs = cfg.sample(cfg.adapt(CONVENTIONS[convention], convention, num_classes=2), LABELS, w=1.0, **how)
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)


def test_another_convention_is_named():
    with pytest.raises(cfg.UserError, match="'flow', not 'rf'"):
        cfg.adapt(gaussian_velocity, 'rf', num_classes=2)


def test_modules_of_flax_draw_what_their_function_draws():
    class OfLinen(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, z, logsnr, labels):
            return gaussian_eps(z, logsnr, labels) + self.param('bias', flax.linen.initializers.zeros, ())

    class OfNnx(flax.nnx.Module):
        def __init__(self):
            self.bias = flax.nnx.Param(jnp.zeros(()))

        def __call__(self, z, logsnr, labels):
            return gaussian_eps(z, logsnr, labels) + self.bias[...]

    linen, nnx = OfLinen(), OfNnx()
    bound = linen.bind(linen.init(jax.random.key(0), np.zeros((1, 1)), np.zeros(1), np.zeros(1, int)))
    how = {'num_classes': 2, 'shape': (1,), 'steps': 4}
    ours = cfg.sample(gaussian_eps, LABELS, **how)
    np.testing.assert_array_equal(cfg.sample(bound, LABELS, **how), ours)
    np.testing.assert_array_equal(cfg.sample(nnx, LABELS, **how), ours)


def test_a_rule_is_differentiated_within_jit():
    """Eq. 6: eps = eps_cond + w (eps_cond - eps_null), so its derivative by w is the difference."""
    labels, z, logsnr = jnp.asarray(LABELS, jnp.int32), jnp.linspace(-1, 1, 8)[:, None], jnp.linspace(-3, 3, 8)

    @jax.jit
    def total(w):
        of = cfg.guided(gaussian_eps, labels, w, num_classes=2)
        prediction, _ = of.predict(z, logsnr, of.init(jax.random.split(jax.random.key(0), 8), z))
        return prediction.eps.sum()

    difference = gaussian_eps(z, logsnr, labels) - gaussian_eps(z, logsnr, jnp.full(8, 2))
    assert jax.grad(total)(0.7) == pytest.approx(float(difference.sum()), rel=1e-5)


def test_autoguidance_takes_the_network_beside():
    """With itself as the weaker model it changes nothing."""
    how = {'shape': (1,), 'steps': 4}
    model = cfg.adapt(gaussian_eps, 'eps', num_classes=2)
    guided = cfg.sample(cfg.Models(model, weaker=model), LABELS, w=2.0, guidance='autoguidance', **how)
    np.testing.assert_allclose(guided, cfg.sample(model, LABELS, w=0.0, **how), atol=1e-5)


def test_a_run_is_sampled_as_its_config_says_and_as_the_parameters_are(small_run):
    model, labels = cfg.load(small_run), np.arange(10)
    assert (model.shape, model.num_classes, model.step) == ((8, 8, 1), 10, small_config().train.num_steps)
    assert str(small_run) in repr(model)
    images = cfg.sample(model, labels, w=0.5, seed=3)
    assert images.shape == (10, 8, 8, 1)
    assert images.dtype == np.uint8

    sampler = cfg.Sampler(num_steps=model.config.sampling.num_steps, grid=cfg.grids.Uniform())
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(np.arange(10))
    draw = jax.jit(lambda: sampler.sample(cfg.Models(model.denoiser), keys, labels, 0.5, shape=model.shape))
    other = cfg.sample(model, labels, w=0.5, seed=3, grid='uniform')
    assert np.abs(np.int32(other) - np.round((np.asarray(draw()) + 1) * 127.5)).max() <= 1
    assert (other != images).any()
    with pytest.raises(cfg.UserError, match='shape=\\(3,\\) is not that of the run, \\(8, 8, 1\\): leave it out'):
        cfg.sample(model, labels, shape=(3,))


def test_a_run_may_be_guided_by_an_earlier_checkpoint(small_run):
    model = cfg.load(small_run)
    step = f'autoguidance(step={model.step})'
    mine = cfg.sample(model, LABELS, w=3.0, guidance=step)
    assert np.abs(np.int32(mine) - cfg.sample(model, LABELS, w=0.0)).max() <= 1
    labels, z = jnp.asarray(LABELS, jnp.int32), jnp.ones((8, *model.shape))
    of = cfg.guided(model, labels, 3.0, guidance=step)
    found, _ = of.predict(z, jnp.zeros(8), of.init(jax.random.split(jax.random.key(0), 8), z))
    np.testing.assert_allclose(found.eps, model.denoiser(z, jnp.zeros(8), labels), atol=1e-4)


def test_a_run_older_than_some_fields_is_read(small_run, monkeypatch):
    def older(*args):
        meta = copy.deepcopy(run_files.checkpoint_meta(*args))
        del meta['config']['data']['augment'], meta['config']['sampling']['ema_length'], meta['config']['export']
        return meta

    for module in (models, trained):
        monkeypatch.setattr(module, 'checkpoint_meta', older)
    images = cfg.sample(cfg.load(small_run), LABELS, w=1.0)
    monkeypatch.undo()
    np.testing.assert_array_equal(images, cfg.sample(cfg.load(small_run), LABELS, w=1.0))


OF_TWO = {'num_classes': 2, 'shape': (1,)}


@pytest.mark.parametrize(
    ('model', 'labels', 'options', 'sentence'),
    [
        (3, [0], OF_TWO, 'model must be of cfg.load, or a function, not int'),
        (gaussian_eps, [0], {'shape': (1,)}, 'num_classes is missing'),
        (gaussian_eps, [0], {'num_classes': 2}, 'shape is missing'),
        (cfg.Denoiser(gaussian_eps, 2), [0], {'num_classes': 3}, 'num_classes=3 is not that of the model, 2'),
        (gaussian_eps, [0, 3], OF_TWO, r'labels must be whole numbers \[N\] from 0 to 1 \(2 is the null label\)'),
        (gaussian_eps, [0.5], OF_TWO, 'labels must be whole numbers'),
        (gaussian_eps, [], OF_TWO, 'labels must be whole numbers'),
        (gaussian_eps, [0, 1], {'w': [1.0, 2.0, 3.0]} | OF_TWO, 'w must be a finite number, or one for each of the 2'),
        (gaussian_eps, [0], {'w': float('nan')} | OF_TWO, 'w must be a finite number'),
        (gaussian_eps, [0], {'w': 'much'} | OF_TWO, "w must be a finite number, .* not 'much'"),
        (gaussian_eps, [0], {'guidance': 'ctg'} | OF_TWO, "^guidance='ctg' must be one of cfg,"),
        (gaussian_eps, [0], {'guidance': 'cfg(w=1.0)'} | OF_TWO, "guidance='cfg' has a w of its own: give it as w"),
        (gaussian_eps, [0], {'sampler': 'ddimm'} | OF_TWO, "^sampler='ddimm' must be one of ancestral"),
        (gaussian_eps, [0], {'grid': 'nested', 'steps': 0} | OF_TWO, '^steps=0 must be at least'),
        (gaussian_eps, [0], {'guidance': 'temperature', 'sampler': 'ddim'} | OF_TWO, 'scales the noise'),
        (
            gaussian_eps,
            [0],
            {'guidance': cfg.rules.Apg} | OF_TWO,
            r"guidance must be one such as 'apg' or cfg.rules.Apg\(\)",
        ),
        (gaussian_eps, [0], {'sampler': cfg.rules.Apg()} | OF_TWO, "sampler must be one such as 'ddim' or"),
        (gaussian_eps, [0], {'grid': 0.5} | OF_TWO, "grid must be one such as 'uniform' or .*, not 0.5"),
        (
            gaussian_eps,
            [0],
            {'seed': 0.5} | OF_TWO,
            r'seed must be a whole number of at least 0 and below 2\^32, not 0.5',
        ),
        (gaussian_eps, [0], {'seed': 2**32} | OF_TWO, r'seed must be a whole number .*, not 4294967296'),
        (gaussian_eps, [0], {'batch_size': 0} | OF_TWO, 'batch_size must be a whole number of at least 1'),
        (gaussian_eps, [0], {'steps': 2.5} | OF_TWO, 'steps must be a whole number'),
        (gaussian_eps, [0], OF_TWO | {'shape': 1}, r'shape must be that of one sample, as in \(32, 32, 3\)'),
        (gaussian_eps, [0], OF_TWO | {'shape': ()}, 'shape must be that of one sample'),
        (gaussian_eps, [0], {'guidance': 'autoguidance'} | OF_TWO, r'give cfg.Models\(model=..., weaker=...\)'),
    ],
)
def test_what_cannot_be_is_named(model, labels, options, sentence):
    with pytest.raises(cfg.UserError, match=sentence):
        cfg.sample(model, labels, **options)


def test_within_jit_it_is_guided_that_may_be_called():
    with pytest.raises(cfg.UserError, match=r'cannot be called within jit or grad: use cfg\.guided there'):
        jax.jit(lambda labels: cfg.sample(gaussian_eps, labels, **OF_TWO))(jnp.array([0, 1]))
    with pytest.raises(cfg.UserError, match='cannot be called within jit'):
        jax.grad(lambda w: cfg.sample(gaussian_eps, [0, 1], w, **OF_TWO).sum())(1.0)
    with pytest.raises(cfg.UserError, match='cannot be called within jit'):
        jax.jit(lambda scale: scale * cfg.sample(gaussian_eps, [0, 1], **OF_TWO))(2.0)
    z = jnp.ones((2, 1))

    def guided_x(labels):
        rule = cfg.guided(gaussian_eps, labels, 2.0, num_classes=2)
        return rule.predict(z, jnp.float32(0), rule.init(jax.random.split(jax.random.key(0), 2), z))[0].x

    np.testing.assert_allclose(jax.jit(guided_x)(jnp.array([0, 1])), guided_x([0, 1]), rtol=1e-6)
    for labels in ([0, 3], [0.5, 1.0]):
        with pytest.raises(cfg.UserError, match='labels must be whole numbers'):
            guided_x(labels)


@pytest.mark.parametrize(
    ('returned', 'sentence'),
    [
        (lambda z: None, 'returned no array but NoneType'),
        (lambda z: (z, z), 'returned no array but tuple'),
        (lambda z: 0.0, 'returned no array but float'),
        (
            lambda z: z[:, :1],
            r'returned the shape \((\d), 1\) for z of the shape \(\1, 2\)',
        ),  # once broadcast
        (lambda z: z[:1], r'returned the shape \(1, 2\)'),
        (lambda z: z[:, :, None], r'returned the shape \(\d, 2, 1\)'),
        (lambda z: z.astype(int), 'returned int32'),
        (lambda z: z * jnp.nan, 'Sample 0 at w=1 is not finite: the network has diverged or does not have the label'),
    ],
)
@pytest.mark.parametrize('convention', ['eps', 'flow'])
def test_what_a_network_may_not_return(convention, returned, sentence):
    network = cfg.adapt(lambda z, level, labels: returned(z), convention, num_classes=3)
    with pytest.raises(cfg.UserError, match=sentence):
        cfg.sample(network, [0, 1, 2, 0], w=1.0, shape=(2,), steps=4, sampler='ddim', clip_x=False)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_a_network_may_compute_in_fewer_bits_and_tell_variances(dtype):
    def short(z, logsnr, labels):
        eps = gaussian_eps(z, logsnr, labels).astype(dtype)
        return jnp.concatenate([eps, eps + 7], -1)

    how = OF_TWO | {'w': 1.0, 'steps': 8, 'sampler': 'ddim'}
    x = cfg.sample(short, LABELS, **how)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, cfg.sample(gaussian_eps, LABELS, **how), atol=0.05)


class Dropping(flax.nnx.Module):
    def __init__(self):
        self.dropout = flax.nnx.Dropout(0.5, rngs=flax.nnx.Rngs(0))

    def __call__(self, z, logsnr, labels):
        return self.dropout(gaussian_eps(z, logsnr, labels))


def test_a_network_with_a_state_needs_its_eval_and_what_fails_within_says_how_it_was_called():
    network = Dropping()
    with pytest.raises(flax.errors.TraceContextError) as caught:
        cfg.sample(network, LABELS, steps=4, **OF_TWO)
    notes = ' '.join(caught.value.__notes__)
    assert 'called by cfg with (z, level, labels), z of the shape' in notes
    assert 'needs its eval()' in notes
    network.eval()
    found = cfg.sample(network, LABELS, steps=4, **OF_TWO)
    np.testing.assert_array_equal(found, cfg.sample(gaussian_eps, LABELS, steps=4, **OF_TWO))


def test_a_function_may_take_w():
    def strong(z, logsnr, labels, w):
        cond, other = (gaussian_eps(z, logsnr, each) for each in (labels, jnp.full_like(labels, 2)))
        return cond + w[:, None] * (cond - other)

    how = OF_TWO | {'w': 1.5, 'steps': 8}
    one = cfg.sample(strong, LABELS, guidance='one_pass', **how)
    np.testing.assert_allclose(one, cfg.sample(gaussian_eps, LABELS, **how), atol=1e-5)
    with pytest.raises(TypeError) as caught:
        cfg.sample(gaussian_eps, LABELS, guidance='one_pass', **how)
    assert 'called by cfg with (z, level, labels, w)' in ' '.join(caught.value.__notes__)


def test_batches_fit_the_devices():
    """Whatever the number of samples and devices: the batch is filled up, and the samples are the same."""
    one = cfg.sample(gaussian_eps, LABELS[:7], steps=4, **OF_TWO)
    np.testing.assert_allclose(cfg.sample(gaussian_eps, LABELS[:7], steps=4, batch_size=3, **OF_TWO), one, atol=1e-6)
    assert len(one) % len(parallel.local_devices()) or len(parallel.local_devices()) == 1


def test_every_name_is_there_and_nothing_heavy_is_imported():
    code = (
        'import sys, cfg; assert "jax" not in sys.modules; names = {n: getattr(cfg, n) for n in dir(cfg)}; '
        'assert len(names) > 9; cfg.sample(lambda z, l, c: z, [0], num_classes=1, shape=(2,), steps=2); '
        'print({"tensorflow", "tensorflow_datasets", "clu", "matplotlib", "sklearn"} & set(sys.modules))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == 'set()\n', done.stderr
    with pytest.raises(AttributeError, match="'cfg' has no attribute 'smaple'"):
        _ = cfg.smaple
