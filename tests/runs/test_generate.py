import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.data.images import to_uint8
from cfg.diffusion import mixture, process
from cfg.diffusion.denoiser import Denoiser
from cfg.diffusion.sampler import Sampler
from cfg.models.flops import matmul_flops
from cfg.runs import generate
from cfg.runs.generate import Generator, binder
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.settings.data import spec_of
from cfg.settings.networks import abstract_params, build_network, init_params
from tests.command_line import ROOT
from tests.conftest import small_config

SAMPLER = Sampler(num_steps=4)


@pytest.fixture(scope='module', name='network')
def network_fixture():
    return traced_network()


def traced_network():
    """How parameters are bound to a small network, random ones, and the shapes with which it was traced."""
    network, params = random_network(small_config())
    traces = []

    def bind(params):
        def fn(z, logsnr, labels):
            traces.append(z.shape)
            return network.apply({'params': params}, z, logsnr, labels)

        return Denoiser(fn, 10)

    return bind, params, traces


def random_network(config):
    """(the network of a config, parameters that are random everywhere)."""
    source = digits('all')
    network, rng = build_network(config, source), np.random.default_rng(0)
    params = init_params(network, source, seed=0)
    return network, jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)


def generator_of(bind, *, sampler=SAMPLER, image_shape=(8, 8, 1), batch_size=4, devices=None):
    return Generator({'model': bind}, sampler, image_shape=image_shape, batch_size=batch_size, devices=devices)


@functools.cache
def compiled(bind, batch_size, devices):
    return generator_of(bind, batch_size=batch_size, devices=jax.local_devices()[:devices])


def images_of(network, *, batch_size, devices, labels, w, seed=1):
    bind, params, _ = network
    params = parallel.replicate({'model': params}, jax.local_devices()[:devices])
    batches = list(compiled(bind, batch_size, devices)(params, labels, w, seed=seed))
    assert [b.start for b in batches] == list(range(0, len(labels), batch_size))
    assert np.array_equal(np.concatenate([b.labels for b in batches]), labels)
    return np.concatenate([b.images for b in batches])


AS_USERS_COMPILE = """
from cfg.runtime import xla_flags
xla_flags.choose()
import jax
assert jax.device_count() == 4  # JAX has started, so the suite's own flags come too late
from tests.runs import test_generate
test_generate.check_that_samples_depend_on_their_index_alone()
"""


def test_a_sample_depends_on_its_index_alone():
    """With all of XLA's optimisation, which could compute a row in another way in a batch of another size."""
    flags = '--xla_force_host_platform_device_count=4'
    command = [sys.executable, '-c', AS_USERS_COMPILE]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {'XLA_FLAGS': flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_that_samples_depend_on_their_index_alone():
    """One and four devices, whole and cut batches: the same images, bit for bit."""
    network = traced_network()
    labels = np.arange(20) % 10
    w = np.linspace(0, 2, 20)
    one = images_of(network, batch_size=20, devices=1, labels=labels, w=w)
    assert one.shape == (20, 8, 8, 1)
    assert one.dtype == np.uint8
    assert np.array_equal(images_of(network, batch_size=20, devices=4, labels=labels, w=w), one)
    assert np.array_equal(images_of(network, batch_size=8, devices=4, labels=labels, w=w), one)
    assert np.array_equal(images_of(network, batch_size=20, devices=4, labels=labels[:7], w=w[:7]), one[:7])
    assert not np.array_equal(images_of(network, batch_size=20, devices=4, labels=labels, w=w, seed=2), one)
    assert len({image.tobytes() for image in one}) == 20


def test_a_sweep_over_w_compiles_once_and_w_of_each_sample_is_its_own(network):
    bind, params, traces = network
    generator = functools.partial(generator_of(bind), seed=1)
    replicated, labels = parallel.replicate({'model': params}), np.array([3, 1, 4, 1])
    first = {0.0: next(generator(replicated, labels, 0.0)).images}
    count = len(traces)
    for w in (0.5, 3.0):
        first[w] = next(generator(replicated, labels, w)).images
    assert len(traces) == count
    mixed = next(generator(replicated, labels, np.array([0.5, 3.0, 3.0, 0.0]))).images
    for i, w in enumerate((0.5, 3.0, 3.0, 0.0)):
        # A last bit may round the other way in a batch of 2N than in one of N: one grey level at most.
        assert np.abs(mixed[i].astype(int) - first[w][i]).max() <= 1
    assert not np.array_equal(first[0.5], first[3.0])


def test_w_of_minus_one_is_the_unconditional_model(network):
    labels = np.array([3, 1, 4, 1])
    guided = images_of(network, batch_size=4, devices=1, labels=labels, w=-1.0)
    null = images_of(network, batch_size=4, devices=1, labels=np.full(4, 10), w=0.0)
    assert np.abs(guided.astype(int) - null).max() <= 1


@pytest.mark.parametrize('prediction', ['eps', 'x', 'v'])
def test_every_prediction_type_draws_from_an_exact_gaussian(prediction):
    """A network that knows the data's distribution exactly, whatever it is asked to predict."""
    gaussian = mixture.gaussian_mixture(np.array([[0.2]]), np.array([[[0.01]]]), np.ones(1))
    exact = mixture.eps_fn(gaussian)

    def fn(z, logsnr, labels):
        flat = z.reshape(-1, 1)
        levels = jnp.broadcast_to(logsnr, len(z)).repeat(64)
        eps = exact(flat, levels, jnp.zeros(len(flat), jnp.int32)).reshape(z.shape)
        return process.target(process.x_from_eps(z, eps, logsnr), eps, logsnr, prediction=prediction)

    generator = generator_of(lambda _: Denoiser(fn, 1, prediction), sampler=Sampler(clip_x=False), batch_size=64)
    replicated = parallel.replicate({'model': np.zeros(1)})
    images = next(generator(replicated, np.zeros(64, np.int32), 0.0, seed=0)).images
    values = images.astype(np.float64) / 127.5 - 1
    # 4096 draws: five standard errors of the mean, and a deviation within 10 % (T is finite).
    assert abs(values.mean() - 0.2) < 5 * 0.1 / 64
    assert values.std() == pytest.approx(0.1, rel=0.1)


def test_a_label_in_the_decoder_makes_both_predictions_cheaper():
    config = small_config()
    spec, bound = spec_of(config), {}
    for where in ('everywhere', 'decoder'):
        config.model.label_in = where
        network = build_network(config, spec)
        params = abstract_params(network, spec)
        bound[where] = binder(network, 'eps')
    assert bound['everywhere'](None).both_fn is None
    z, labels = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    level = jax.ShapeDtypeStruct((), jnp.float32)
    made = matmul_flops(lambda params, *args: bound['decoder'](params).both(*args), params, z, level, labels, labels)
    single = matmul_flops(lambda params, *args: bound['decoder'](params)(*args), params, z, level, labels)
    assert 1.4 * single < made < 1.9 * single


def test_sharing_the_encoder_changes_no_sample():
    config = small_config()
    config.model.label_in = 'decoder'
    network, params = random_network(config)
    cheaper, images = binder(network, 'eps'), []
    for bind in (cheaper, lambda params: Denoiser(cheaper(params).fn, 10)):
        drawn = generator_of(bind)(parallel.replicate({'model': params}), np.arange(4), 1.0, seed=1)
        images.append(next(drawn).images.astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1


def test_a_sample_that_is_not_finite_is_named_with_its_w():
    def fn(z, logsnr, labels):
        return jnp.where(labels[:, None, None, None] == 7, jnp.nan, z)

    generator = generator_of(lambda _: Denoiser(fn, 10), image_shape=(2, 2, 1))
    labels = np.array([0, 1, 2, 3, 4, 7, 6, 5])
    batches = generator(parallel.replicate({'model': np.zeros(1)}), labels, 0.5, seed=0)
    next(batches)
    with pytest.raises(UserError, match=r'Sample 5 at w=0\.5 is not finite'):
        next(batches)


def test_a_batch_that_does_not_divide_is_refused(network):
    with pytest.raises(UserError, match=r'config\.sampling\.batch_size=6 does not divide over 4 devices: use 4'):
        images_of(network, batch_size=6, devices=4, labels=np.zeros(6), w=0.0)


def test_labels():
    balanced = generate.draw_labels('balanced', num_samples=25, num_classes=10, seed=0)
    assert balanced.dtype == np.int32
    assert np.array_equal(np.bincount(balanced), [3] * 5 + [2] * 5)
    drawn = generate.draw_labels('random', num_samples=10_000, num_classes=10, seed=0)
    # Each count is binomial with standard deviation 30.
    assert np.abs(np.bincount(drawn, minlength=10) - 1000).max() < 150
    assert np.array_equal(drawn[:50], generate.draw_labels('random', num_samples=50, num_classes=10, seed=0))
    with pytest.raises(UserError, match="'alphabetical'"):
        generate.draw_labels('alphabetical', num_samples=1, num_classes=10, seed=0)


def test_sampled_pixels_are_rounded():
    assert np.array_equal(to_uint8(jnp.array([-1.0, 1.0, 0.5 / 127.5 - 1 + 1e-4])), [0, 255, 1])
