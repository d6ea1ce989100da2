"""DINOv2 against transformers' Dinov2Model on the same random weights, its resizes against PyTorch's and PIL's."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from cfg.features import opening
from cfg.features.dinov2 import (
    DEVIATION,
    MEAN,
    VIT_L14,
    Dinov2,
    Sizes,
    antialiased,
    dinov2_shapes,
    resize_pil,
    resize_torch,
)
from cfg.features.dinov2_weights import META, params_from_tensors, read_tensors, resized
from cfg.features.network import COLOUR_IMAGES, FeatureNetwork, Features, dinov2, shared, with_second
from cfg.features.weights import dinov2_files, load_weights
from cfg.modes import fetch_weights
from cfg.runtime import processes
from cfg.runtime.errors import UserError
from cfg.settings.checks import check_config
from cfg.settings.table import feature_names
from tests import peers

SMALL = Sizes(width=32, depth=2, heads=4, patch=14, grid=3)
SIDE = 5  # of the grid of positions that the small network was trained on


def in_metas_names(tensors):
    """Renames the tensors of Hugging Face's file, and puts query, key and value together, as Meta's file has them."""
    renamed = {
        'embeddings.cls_token': 'cls_token',
        'embeddings.mask_token': 'mask_token',
        'embeddings.position_embeddings': 'pos_embed',
        'embeddings.patch_embeddings.projection': 'patch_embed.proj',
        'layernorm.': 'norm.',
        'encoder.layer.': 'blocks.',
        'attention.output.dense': 'attn.proj',
        'layer_scale1.lambda1': 'ls1.gamma',
        'layer_scale2.lambda1': 'ls2.gamma',
    }
    found = {}
    for name, value in tensors.items():
        for theirs, ours in renamed.items():
            name = name.replace(theirs, ours)
        found[name] = value
    for name in [name for name in found if 'attention.attention.query' in name]:
        parts = [found.pop(name.replace('query', part)) for part in ('query', 'key', 'value')]
        found[name.replace('attention.attention.query', 'attn.qkv')] = np.concatenate(parts)
    return found


@pytest.fixture(scope='module', name='peer')
def peer_fixture():
    """A small Dinov2Model in which no parameter is what an initialiser makes of it."""
    make_config, make = peers.dinov2()
    config = make_config(
        hidden_size=SMALL.width,
        num_hidden_layers=SMALL.depth,
        num_attention_heads=SMALL.heads,
        patch_size=SMALL.patch,
        image_size=SMALL.patch * SIDE,
    )
    torch.manual_seed(0)
    peer = make(config).eval()
    with torch.no_grad():
        for value in peer.parameters():
            value.copy_(torch.randn_like(value) * 0.2 + (value.ndim == 1))
    return peer


@pytest.fixture(scope='module', name='files')
def files_fixture(peer, tmp_path_factory):
    """The weights as Hugging Face's file and as Meta's, of both layouts of PyTorch's."""
    folder = tmp_path_factory.mktemp('dinov2')
    peer.save_pretrained(folder)
    meta = in_metas_names(read_tensors(folder / 'model.safetensors'))
    state = {name: torch.from_numpy(value) for name, value in meta.items()}
    torch.save(state, folder / 'meta.pth')
    torch.save(state, folder / 'old.pth', _use_new_zipfile_serialization=False)
    return folder


@functools.cache
def compiled():
    def run(params, images):
        with jax.default_matmul_precision('highest'):
            return Dinov2(SMALL).apply({'params': params}, images)

    return jax.jit(run)


def pictures(size, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def theirs(peer, images, *, pil=False):
    """The class tokens by transformers and PyTorch alone."""
    pixels = SMALL.pixels
    if pil:
        sides = [Image.fromarray(image).resize((pixels, pixels), Image.Resampling.BICUBIC) for image in images]
        images = np.stack([np.asarray(side) for side in sides])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if not pil:
        x = torch.nn.functional.interpolate(x, (pixels, pixels), mode='bicubic', antialias=True)
    x = (x / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    with torch.no_grad():
        return peer(x).last_hidden_state[:, 0].numpy()


def as_metas_network(peer, monkeypatch):
    """Interpolates the embeddings of positions as Meta's network does, with its offset."""

    def positions(embeddings, height, width):
        table = peer.embeddings.position_embeddings
        x = table[:, 1:].reshape(1, SIDE, SIDE, -1).permute(0, 3, 1, 2)
        factor = (height // SMALL.patch + 0.1) / SIDE
        x = torch.nn.functional.interpolate(x, scale_factor=(factor, factor), mode='bicubic')
        return torch.cat([table[:, :1], x.permute(0, 2, 3, 1).reshape(1, -1, SMALL.width)], dim=1)

    monkeypatch.setattr(peer.embeddings, 'interpolate_pos_encoding', positions)


@pytest.mark.parametrize('name', ['model.safetensors', 'meta.pth', 'old.pth'])
@pytest.mark.parametrize('pil', [False, True], ids=['torch', 'pil'])
def test_features_are_those_of_transformers(peer, files, monkeypatch, name, pil):
    as_metas_network(peer, monkeypatch)
    params = params_from_tensors(read_tensors(files / name), SMALL)
    images = pictures(64)
    expected = theirs(peer, images, pil=pil)
    ours = compiled()(params, resize_pil(images, SMALL.pixels) if pil else images)
    assert np.abs(expected - expected.mean(axis=0)).max() > 0.01 * np.abs(expected).max()  # images differ
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_network_of_the_same_grid_needs_no_interpolation(peer, files):
    sizes = Sizes(width=32, depth=2, heads=4, patch=14, grid=SIDE)
    params = params_from_tensors(read_tensors(files / 'model.safetensors'), sizes)
    images = pictures(sizes.pixels)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    with torch.no_grad():
        expected = peer(x).pooler_output.numpy()
    with jax.default_matmul_precision('highest'):
        ours = Dinov2(sizes).apply({'params': params}, images)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_both_formats_give_the_same_parameters_bit_for_bit(files):
    found = [params_from_tensors(read_tensors(files / name), SMALL) for name in ('model.safetensors', 'meta.pth')]
    assert jax.tree.structure(found[0]) == jax.tree.structure(found[1])
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, found), strict=True))


@pytest.mark.parametrize(('side', 'grid'), [(37, 16), (5, 3), (3, 5)])
def test_positions_are_interpolated_as_by_meta_and_by_transformers(side, grid):
    table = np.random.default_rng(0).normal(size=(side**2, 4)).astype(np.float32)
    x = torch.from_numpy(table).reshape(1, side, side, 4).permute(0, 3, 1, 2)
    factor = float(grid + 0.1) / side
    for options, offset in (({'scale_factor': (factor, factor)}, 0.1), ({'size': (grid, grid)}, 0.0)):
        expected = torch.nn.functional.interpolate(x, mode='bicubic', **options)[0].permute(1, 2, 0).reshape(-1, 4)
        np.testing.assert_allclose(resized(table, grid, offset), expected, rtol=0, atol=3e-5)


SIZES = [1, 2, 8, 32, 64, 100, 223, 224, 225, 256, 500, 512]


@pytest.mark.parametrize('size', SIZES)
def test_resizes_are_those_of_torch_and_pil(size):
    """Far closer than half a grey level."""
    images = pictures(size, 2)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(x, (224, 224), mode='bicubic', antialias=True).permute(0, 2, 3, 1)
    np.testing.assert_allclose(resize_torch(images, 224), expected, rtol=0, atol=0.01)  # theirs is of float32 weights
    pil = resize_pil(images, 224)
    for image, ours in zip(images, pil, strict=True):
        assert np.array_equal(ours, Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC))
    # The two forms are one filter where nothing is clipped: PIL rounds after each axis.
    images = images // 3 + 80
    assert np.abs(resize_torch(images, 224) - resize_pil(images, 224)).max() <= 1.2


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=25)
def test_a_resize_keeps_flat_images_and_mirrors(given_size, wanted):
    weights = antialiased(given_size, wanted)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-9)


def test_the_network_is_vit_l14():
    """Its parameters are those of the public file, less the mask token and what is folded."""
    shapes = dinov2_shapes()
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    layers = 24 * (12 * 1024**2 + 13 * 1024)
    assert count == layers + 588 * 1024 + 257 * 1024 + 2 * 1024
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8)
    output = jax.eval_shape(Dinov2().apply, {'params': shapes}, images)
    assert (output.shape, output.dtype) == ((2, VIT_L14.width), np.float32)
    assert VIT_L14.pixels == 224


def test_the_converted_parameters_have_the_shapes_of_the_network(files):
    params = params_from_tensors(read_tensors(files / 'meta.pth'), SMALL)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, dinov2_shapes(SMALL))


def changed(files, name, value=None):
    tensors = read_tensors(files / 'meta.pth')
    if value is None:
        del tensors[name]
    return tensors if value is None else {**tensors, name: value}


@pytest.mark.parametrize(
    ('name', 'value', 'words'),
    [
        ('blocks.1.ls2.gamma', None, r'lack blocks\.1\.ls2\.gamma'),
        ('register_tokens', np.zeros((1, 4, 32), np.float32), 'hold register_tokens, which ViT-L/14 has not'),
        ('blocks.2.norm1.bias', np.zeros(32, np.float32), r'hold blocks\.2\.norm1\.bias'),
        ('cls_token', np.zeros((1, 1, 768), np.float32), r'cls_token .* has shape \(1, 1, 768\), not \(1, 1, 32\)'),
        ('pos_embed', np.zeros((1, 25, 32), np.float32), r'pos_embed .* has shape \(1, 25, 32\)'),
        ('norm.bias', np.full(32, np.nan, np.float32), r'norm\.bias .* is not finite: download'),
    ],
)
def test_weights_of_another_network_are_named(files, name, value, words):
    with pytest.raises(UserError, match=words):
        params_from_tensors(changed(files, name, value), SMALL)


def test_a_tensor_that_hugging_faces_file_lacks_has_its_name_there(files):
    tensors = read_tensors(files / 'model.safetensors')
    del tensors['encoder.layer.1.attention.attention.key.bias']
    with pytest.raises(UserError, match=re.escape('lack encoder.layer.1.attention.attention.key.bias')):
        params_from_tensors(tensors, SMALL)


def test_the_network_may_be_wrapped(files):
    tensors = {f'module.{name}': value for name, value in read_tensors(files / 'meta.pth').items()}
    found = params_from_tensors(tensors, SMALL)
    assert np.array_equal(found['norm']['bias'], tensors['module.norm.bias'])


def test_files_that_are_neither_are_one_sentence(tmp_path):
    path = tmp_path / 'x.safetensors'
    save_file({'a': np.zeros(100, np.float32)}, path)
    content = path.read_bytes()
    for broken in (content[:-8], content[:20], b'', b'hello, this is no network at all'):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r'x\.safetensors cannot be read as weights of DINOv2'):
            read_tensors(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r'lack embeddings\.cls_token: give dinov2_vitl14_pretrain\.pth'):
        params_from_tensors(read_tensors(path))


def test_a_file_of_the_cache_is_converted_once(files, tmp_path, monkeypatch):
    (tmp_path / META).symlink_to(files / 'meta.pth')
    first = load_weights(dinov2_files(SMALL), '', tmp_path)
    other = load_weights(dinov2_files(SMALL), str(files / 'model.safetensors'), tmp_path)
    assert first.params_sha256 == other.params_sha256
    assert len(list(tmp_path.glob('dinov2_*.npz'))) == 2
    monkeypatch.setattr('cfg.features.dinov2_weights.convert', lambda *_: pytest.fail('converted again'))
    assert load_weights(dinov2_files(SMALL), '', tmp_path).file_sha256 == first.file_sha256


def test_missing_weights_and_wrong_ones_say_what_to_do(files, tmp_path):
    with pytest.raises(
        UserError, match=r'DINOv2 are not in .*dinov2-large\.safetensors.*--config\.eval\.dinov2_weights'
    ):
        load_weights(dinov2_files(), '', tmp_path)
    with pytest.raises(UserError, match=r'meta\.pth: cls_token of the weights of DINOv2 has shape'):
        load_weights(dinov2_files(), str(files / 'meta.pth'), tmp_path)


def fake_inception(cache):
    def extract(images):
        return Features(np.zeros((len(images), 2), np.float32), None, np.zeros((len(images), 1)), None)

    return FeatureNetwork('fake', 'f' * 64, None, 2, 0, COLOUR_IMAGES, extract, None, cache)


def test_a_config_opens_it_beside_inception(peer, files, small_config, monkeypatch, tmp_path):
    as_metas_network(peer, monkeypatch)
    monkeypatch.setattr(opening, 'inception', lambda *_, **__: fake_inception(tmp_path))
    monkeypatch.setattr(opening, 'dinov2', functools.partial(dinov2, sizes=SMALL))
    options, images, found = small_config.eval, pictures(64, 5), []
    options.features, options.batch_size, options.cache_dir = "('inception', 'dinov2')", 4, str(tmp_path)
    options.dinov2_weights = str(files / 'meta.pth')
    for resize in ('torch', 'pil'):
        options.dinov2_resize = resize
        network = opening.open_features(small_config, (64, 64, 3), 'x')
        features, expected = network.extract(images), theirs(peer, images, pil=resize == 'pil')
        np.testing.assert_allclose(features.second, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        assert features.pool.shape == (5, 2)
        found.append(network.second)
        assert resize in network.second.name
    assert found[0].file_sha256 == found[1].file_sha256
    assert found[0].sha256 != found[1].sha256  # features of another resize are others
    options.features = 'dinov2, small_classifier'
    with pytest.raises(UserError, match='x has images of 8x8x1, but DINOv2'):
        opening.open_features(small_config, (8, 8, 1), 'x')


def test_processes_share_the_images_of_both_networks(tmp_path, monkeypatch):
    """Each of two sees half of them, and both get the features of all."""
    seen = []

    def extract(images):
        seen.append(len(images))
        return Features(images.reshape(len(images), -1)[:, :3].astype(np.float32), None, None, None)

    first = dataclasses.replace(fake_inception(tmp_path), extract=lambda images: extract(images)._replace(log_p=images))
    second = FeatureNetwork('second', 's' * 64, None, 3, 0, COLOUR_IMAGES, extract, None, tmp_path)
    network, images = with_second(first, second), pictures(4, 5)
    monkeypatch.setattr(processes, 'count', lambda: 2)
    halves = []
    for place in (0, 1):
        monkeypatch.setattr(processes, 'index', lambda place=place: place)
        monkeypatch.setattr(processes, 'gather', halves.append)
        shared(network).extract(images)
    assert seen == [3, 3, 3, 3]
    monkeypatch.setattr(processes, 'gather', lambda _: jax.tree.map(lambda *x: np.concatenate(x), *halves))
    found = shared(network).extract(images)
    assert np.array_equal(found.second, extract(images).pool)
    assert np.array_equal(found.log_p, images)


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('inception', ('inception',)),
        ("('small_classifier',)", ('small_classifier',)),
        ('inception,dinov2', ('inception', 'dinov2')),
        ('dinov2, inception', ('dinov2', 'inception')),
        ('[\'small_classifier\', "dinov2"]', ('small_classifier', 'dinov2')),
    ],
)
def test_the_networks_that_a_config_may_name(small_config, text, names):
    small_config.eval.features = text
    check_config(small_config)
    assert feature_names(small_config.eval.features) == names


@pytest.mark.parametrize('text', ['', 'dinov2', 'inception, small_classifier', 'inception, dinov2, dinov2', 'a'])
def test_the_networks_that_a_config_may_not_name(small_config, text):
    small_config.eval.features = text
    with pytest.raises(UserError, match='one of inception, small_classifier, or one and dinov2'):
        check_config(small_config)


@pytest.mark.parametrize(('text', 'count'), [('inception', 1), ('inception, dinov2', 2)])
def test_weights_are_fetched_of_all_that_a_config_names(small_config, tmp_path, monkeypatch, text, count):
    fetched = []
    monkeypatch.setattr('cfg.modes.fetch_weights.fetch_weights', lambda cache, public: fetched.append(public.network))
    small_config.eval.features, small_config.eval.cache_dir = text, str(tmp_path)
    fetch_weights.run(small_config)
    assert fetched == ['Inception', 'DINOv2'][:count]
