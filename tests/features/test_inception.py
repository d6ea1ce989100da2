"""Inception against torch-fidelity and pytorch-fid on the same random weights, and its resize against TensorFlow's."""

import functools

import jax
import numpy as np
import pytest
import torch

from cfg.features import inception
from cfg.features.inception import Inception, max_pool, mean_pool, resize_tf1
from cfg.features.inception_weights import params_from_graph, params_from_torch
from cfg.runtime.errors import UserError
from tests.inception_file import random_state
from tests.peers import pytorch_fid_inception, torch_fidelity_inception


@pytest.fixture(scope='module', name='state')
def state_fixture():
    return random_state(0)


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


@pytest.fixture(scope='module', name='params')
def params_fixture(state):
    return params_from_torch(arrays(state))


@functools.cache
def compiled():
    def run(params, images):
        with jax.default_matmul_precision('highest'):
            return Inception().apply({'params': params}, images)

    return jax.jit(run)


def pictures(shape, seed=0):
    """Images that differ in more than noise: a few large spots each."""
    rng = np.random.default_rng(seed)
    n, height, width, _ = shape
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    images = np.zeros(shape)
    for i in range(n):
        for c in range(3):
            for a, b, k in rng.uniform(0.5, 9, (4, 3)):
                images[i, :, :, c] += k * np.sin(a * x + b * y + k)
    images = 128 + 12 * images + rng.normal(0, 9, shape)
    return np.clip(images, 0, 255).astype(np.uint8)


def close(ours, theirs, tolerance=1e-4):
    """To a fraction of how much the images differ, a stricter scale than the values."""
    theirs = np.asarray(theirs)
    scale = np.abs(theirs - theirs.mean(axis=0)).max()
    assert scale > 0.01 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def test_features_agree_with_torch_fidelity(state, params, tmp_path, monkeypatch):
    module = torch_fidelity_inception
    monkeypatch.setattr(module, 'load_state_dict_from_url', lambda *_, **__: state)
    theirs = module.FeatureExtractorInceptionV3('x', ['2048', 'logits_unbiased'])
    seen = {}
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, output: seen.update(spatial=output))
    images = pictures((4, 64, 64, 3))
    pool, logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    spatial = seen['spatial'].numpy()[:, :7].transpose(0, 2, 3, 1).reshape(4, -1)
    ours = compiled()(params, images)
    assert ours.spatial.shape == (4, inception.SPATIAL_WIDTH) == (4, 2023)
    close(ours.pool, pool)
    close(ours.logits, logits)
    close(ours.spatial, spatial)


def test_features_agree_with_pytorch_fid(state, params, monkeypatch):
    """Its resize is another one, so the images come in the network's own size."""
    module = pytorch_fid_inception
    monkeypatch.setattr(module, 'load_state_dict_from_url', lambda *_, **__: state)
    theirs = module.InceptionV3([3], resize_input=False, normalize_input=False).eval()
    images = pictures((3, 299, 299, 3), seed=1)
    with torch.no_grad():
        (pool,) = theirs(torch.from_numpy((images.transpose(0, 3, 1, 2).astype(np.float32) - 128) / 128))
    close(compiled()(params, images).pool, pool[:, :, 0, 0])


@pytest.mark.parametrize(
    'shape', [(32, 32), (64, 64), (128, 128), (256, 256), (299, 299), (500, 400), (48, 311), (1, 1), (2, 7)]
)
def test_the_resize_is_tensorflows(shape):
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.uint8)
    theirs = tf.compat.v1.image.resize_bilinear(images.astype(np.float32), (299, 299)).numpy()
    np.testing.assert_allclose(resize_tf1(images, (299, 299)), theirs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        resize_tf1(images, (17, 40)),
        tf.compat.v1.image.resize_bilinear(images.astype(np.float32), (17, 40)).numpy(),
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.parametrize('size', [5, 8, 17])
def test_pools_are_window_reductions(size):
    x = np.random.default_rng(0).normal(size=(2, size, size + 2, 3)).astype(np.float32)
    torch_x = torch.from_numpy(x.transpose(0, 3, 1, 2))
    pool = torch.nn.functional
    for ours, theirs in (
        (max_pool(x, 2), pool.max_pool2d(torch_x, 3, 2)),
        (max_pool(x, 1), pool.max_pool2d(torch_x, 3, 1, padding=1)),
        (mean_pool(x), pool.avg_pool2d(torch_x, 3, 1, padding=1, count_include_pad=False)),
    ):
        np.testing.assert_allclose(np.asarray(ours).transpose(0, 3, 1, 2), theirs, atol=1e-6)


def test_features_do_not_depend_on_the_batch(params):
    images = pictures((4, 64, 64, 3))
    whole = compiled()(params, images)
    for i in (0, 3):
        one = compiled()(params, images[i : i + 1])
        for a, b in zip(one, whole, strict=True):
            np.testing.assert_allclose(a[0], b[i], rtol=0, atol=1e-5 * np.abs(b).max())


def test_uint8_and_float_images_are_the_same(params):
    images = pictures((1, 64, 64, 3))
    a, b = compiled()(params, images), compiled()(params, images.astype(np.float32))
    assert np.array_equal(a.pool, b.pool)


def graph_constants(state):
    """As the graph has them, by the names that torch-fidelity's converter pairs up."""
    from cfg.features.inception_weights import graph_name

    found = {'softmax/weights': state['fc.weight'].T, 'softmax/biases': state['fc.bias']}
    parts = {'weight': 'gamma', 'bias': 'beta', 'running_mean': 'moving_mean', 'running_var': 'moving_variance'}
    for name, value in state.items():
        layer, _, last = name.rpartition('.')
        if name.endswith('conv.weight'):
            found[f'{graph_name(layer.removesuffix(".conv"))}/conv2d_params'] = value.transpose(2, 3, 1, 0)
        elif '.bn.' in name and last in parts:
            found[f'{graph_name(layer.removesuffix(".bn"))}/batchnorm/{parts[last]}'] = value
    return found


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        ('Conv2d_1a_3x3', 'conv'),
        ('Conv2d_4a_3x3', 'conv_4'),
        ('Mixed_5b.branch1x1', 'mixed/conv'),
        ('Mixed_5b.branch5x5_2', 'mixed/tower/conv_1'),
        ('Mixed_5d.branch_pool', 'mixed_2/tower_2/conv'),
        ('Mixed_6a.branch3x3', 'mixed_3/conv'),
        ('Mixed_6a.branch3x3dbl_3', 'mixed_3/tower/conv_2'),
        ('Mixed_6d.branch1x1', 'mixed_6/conv'),
        ('Mixed_6e.branch7x7dbl_5', 'mixed_7/tower_1/conv_4'),
        ('Mixed_7a.branch7x7x3_4', 'mixed_8/tower_1/conv_3'),
        ('Mixed_7b.branch3x3_2a', 'mixed_9/tower/mixed/conv'),
        ('Mixed_7c.branch3x3dbl_3b', 'mixed_10/tower_1/mixed/conv_1'),
    ],
)
def test_names_of_the_graph(ours, theirs):
    from cfg.features.inception_weights import graph_name

    assert graph_name(ours) == theirs


def test_both_formats_give_the_same_parameters_bit_for_bit(state, params):
    other = params_from_graph(graph_constants(arrays(state)))
    assert jax.tree.structure(other) == jax.tree.structure(params)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(params), strict=True))


def changed(state, name, value):
    return {**arrays(state), name: value}


def test_weights_that_are_not_inceptions_are_named(state):
    missing = arrays(state)
    del missing['Mixed_6d.branch1x1.bn.running_mean']
    with pytest.raises(UserError, match=r'lack Mixed_6d\.branch1x1\.bn\.running_mean'):
        params_from_torch(missing)
    with pytest.raises(UserError, match=r'hold AuxLogits\.fc\.weight'):
        params_from_torch(changed(state, 'AuxLogits.fc.weight', np.zeros(3, np.float32)))
    with pytest.raises(UserError, match=r'fc\.weight .* has shape \(2048, 1000\)'):
        params_from_torch(changed(state, 'fc.weight', np.zeros((1000, 2048), np.float32)))
    with pytest.raises(UserError, match=r'Conv2d_1a_3x3\.conv\.weight .* has shape \(3, 3\)'):
        params_from_torch(changed(state, 'Conv2d_1a_3x3.conv.weight', np.zeros((3, 3), np.float32)))
    with pytest.raises(UserError, match=r'Conv2d_1a_3x3\.bn\.bias .* is not finite'):
        params_from_torch(changed(state, 'Conv2d_1a_3x3.bn.bias', np.full(32, np.nan, np.float32)))
    with pytest.raises(UserError, match=r'running_var .* variance below 0'):
        params_from_torch(changed(state, 'Conv2d_1a_3x3.bn.running_var', np.full(32, -1, np.float32)))
    with pytest.raises(UserError, match='lack conv/conv2d_params'):
        params_from_graph({})
