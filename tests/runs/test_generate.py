import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.data.digits import digits
from cfg.data.images import to_uint8
from cfg.diffusion import mixture, process
from cfg.models.flops import matmul_flops
from cfg.runs import build as rbuild
from cfg.runs import generate
from cfg.runs.generate import Generator, Model, Networks, SamplerSettings
from cfg.runtime import parallel
from cfg.runtime.errors import UserError
from cfg.settings.data import spec_of
from cfg.settings.networks import abstract_params, build_network, init_params
from tests.conftest import small_config

SETTINGS = SamplerSettings(num_steps=4, logvar_interp=0.3, clip_x=True, logsnr_min=-20.0, logsnr_max=20.0)


@pytest.fixture(scope='module', name='network')
def network_fixture():
    """A small network with random weights everywhere, and the number of times that it was traced."""
    config = small_config()
    source = digits('all')
    network = build_network(config, source)
    params = init_params(network, source, seed=0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    traces = []

    def apply(params, z, logsnr, labels):
        traces.append(z.shape)
        return network.apply({'params': params}, z, logsnr, labels)

    return apply, params, traces


def images_of(network, *, batch_size, devices, labels, w, seed=1):
    apply, params, _ = network
    devices = jax.local_devices()[:devices]
    generator = Generator(
        Networks(Model(apply, 'eps', null_label=10), 10),
        image_shape=(8, 8, 1),
        settings=SETTINGS,
        seed=seed,
        batch_size=batch_size,
        devices=devices,
    )
    batches = list(generator(parallel.replicate({'model': params}, devices), labels, w))
    assert [b.start for b in batches] == list(range(0, len(labels), batch_size))
    assert np.array_equal(np.concatenate([b.labels for b in batches]), labels)
    return np.concatenate([b.images for b in batches])


def test_a_sample_depends_on_its_index_alone(network):
    """One and four devices, whole and cut batches: the same images, bit for bit."""
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
    apply, params, traces = network
    networks = Networks(Model(apply, 'eps', null_label=10), 10)
    generator = Generator(networks, image_shape=(8, 8, 1), settings=SETTINGS, seed=1, batch_size=4)
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

    def apply(params, z, logsnr, labels):
        flat = z.reshape(-1, 1)
        levels = jnp.broadcast_to(logsnr, len(z)).repeat(64)
        eps = exact(flat, levels, jnp.zeros(len(flat), jnp.int32)).reshape(z.shape)
        x = process.x_from_eps(z, eps, logsnr)
        return {'eps': eps, 'x': x, 'v': process.v_from_x_eps(x, eps, logsnr)}[prediction]

    generator = Generator(
        Networks(Model(apply, prediction, null_label=1), 1),
        image_shape=(8, 8, 1),
        settings=SamplerSettings(256, 0.3, False, -20.0, 20.0),
        seed=0,
        batch_size=64,
    )
    images = next(generator(parallel.replicate({'model': np.zeros(1)}), np.zeros(64, np.int32), 0.0)).images
    values = images.astype(np.float64) / 127.5 - 1
    # 4096 draws: five standard errors of the mean, and a deviation within 10 % (T is finite).
    assert abs(values.mean() - 0.2) < 5 * 0.1 / 64
    assert values.std() == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize('prediction', ['eps', 'x', 'v'])
def test_both_predictions_become_eps_as_one_does(prediction):
    def apply(params, z, logsnr, labels):
        output = jnp.tanh(params * z + labels[:, None, None, None])
        return jnp.concatenate([output, 7 * output], axis=-1)  # and what is not used

    def apply_both(params, z, logsnr, labels, other_labels):
        return apply(params, z, logsnr, labels), apply(params, z, logsnr, other_labels)

    model = Model(apply, prediction, null_label=10, apply_both=apply_both)
    z, logsnr = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32), np.float32([-3, 0, 4])
    labels = np.array([3, 1, 4]), np.array([10, 0, 4])
    for actual, asked in zip(model.both_fn(0.5)(z, logsnr, *labels), labels, strict=True):
        np.testing.assert_array_equal(actual, model.eps_fn(0.5)(z, logsnr, asked))
    assert Model(apply, prediction, null_label=10).both_fn(0.5) is None


def test_a_label_in_the_decoder_makes_both_predictions_cheaper():
    config = small_config()
    sizes = {}
    for where in ('everywhere', 'decoder'):
        config.model.label_in = where
        network = build_network(config, spec_of(config))
        model = rbuild.make_model(config, network)
        sizes[where] = model.apply_both
    assert sizes['everywhere'] is None
    params = abstract_params(network, spec_of(config))
    z, labels = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    made = matmul_flops(model.apply_both, params, z, jax.ShapeDtypeStruct((), jnp.float32), labels, labels)
    single = matmul_flops(model.apply, params, z, jax.ShapeDtypeStruct((), jnp.float32), labels)
    assert 1.4 * single < made < 1.9 * single


def test_sharing_the_encoder_changes_no_sample():
    config = small_config()
    config.model.label_in = 'decoder'
    source = digits('all')
    network = build_network(config, source)
    rng = np.random.default_rng(0)
    params = init_params(network, source, seed=0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    model, images = rbuild.make_model(config, network), []
    for one in (model, dataclasses.replace(model, apply_both=None)):
        generator = Generator(Networks(one, 10), image_shape=(8, 8, 1), settings=SETTINGS, seed=1, batch_size=4)
        images.append(next(generator(parallel.replicate({'model': params}), np.arange(4), 1.0)).images.astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1


def test_a_sample_that_is_not_finite_is_named_with_its_w():
    def apply(params, z, logsnr, labels):
        return jnp.where(labels[:, None, None, None] == 7, jnp.nan, z)

    networks = Networks(Model(apply, 'eps', null_label=10), 10)
    generator = Generator(networks, image_shape=(2, 2, 1), settings=SETTINGS, seed=0, batch_size=4)
    batches = generator(parallel.replicate({'model': np.zeros(1)}), np.array([0, 1, 2, 3, 4, 7, 6, 5]), 0.5)
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
