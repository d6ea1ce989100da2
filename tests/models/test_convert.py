"""Converted networks against the PyTorch reference of adm_reference.py, through a file as guided-diffusion has it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cfg.models.classifier import EncoderUNet
from cfg.models.convert import adm_params
from cfg.models.torch_file import read_state_dict
from cfg.models.unet import UNet
from cfg.runtime.errors import UserError
from tests.models.adm_reference import Adm, classifier_forward, random_state, unet_forward

BASE = {'size': 8, 'channels': 16, 'mult': (1, 2), 'blocks': 1, 'attention_sizes': (4,), 'out_channels': 3}
CASES = {
    'old order, by number': Adm(**BASE | {'attention_sizes': (8, 4), 'out_channels': 6}, heads=4, rows=3),
    'old order, by channels, no labels': Adm(**BASE | {'mult': (0.5, 1, 2)}, head_channels=8),
    'new order, by number': Adm(**BASE | {'attention_sizes': ()}, heads=2, rows=4, new_order=True),
    'new order, by channels': Adm(**BASE | {'mult': (0.5, 1), 'blocks': 2}, head_channels=8, rows=3, new_order=True),
}
CLASSIFIER = Adm(**BASE | {'out_channels': 5}, head_channels=8)
SHAPE = (8, 8, 3)
LABELS = np.array([0, 2, 1])
TIMESTEPS = np.array([0, 333, 999])


def timestep(t):
    """In place of logsnr_to_time: the tests feed the timestep itself."""
    return t


def unet(adm, **changes):
    fields = {
        'out_channels': adm.out_channels,
        'num_classes': 3,
        'channels': adm.channels,
        'channel_mult': adm.mult,
        'num_res_blocks': adm.blocks,
        'attention_resolutions': adm.attention_sizes,
        'num_heads': adm.heads,
        'head_channels': adm.head_channels,
        'norm_groups': adm.groups,
        'time_fn': timestep,
    }
    return UNet(**fields | changes)


def encoder(adm, **changes):
    fields = {
        'num_classes': adm.out_channels,
        'channels': adm.channels,
        'channel_mult': adm.mult,
        'num_res_blocks': adm.blocks,
        'attention_resolutions': adm.attention_sizes,
        'head_channels': adm.head_channels,
        'dropout': 0.5,  # only where keys are given
        'norm_groups': adm.groups,
        'time_fn': timestep,
    }
    return EncoderUNet(**fields | changes)


@functools.cache
def jitted(network):
    return jax.jit(network.apply)


def images():
    return np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)


def ours(network, params, *labels):
    return np.asarray(jitted(network)({'params': params}, images(), jnp.asarray(TIMESTEPS, jnp.float32), *labels))


def theirs(forward, state, adm, *labels):
    x = torch.from_numpy(images().transpose(0, 3, 1, 2))
    output = forward(state, adm, x, torch.from_numpy(TIMESTEPS), *map(torch.from_numpy, labels)).numpy()
    return output.transpose(0, 2, 3, 1) if output.ndim == 4 else output


def through_file(state, tmp_path):
    torch.save(state, tmp_path / 'state.pt')
    return read_state_dict(tmp_path / 'state.pt')


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def difference(got, expected):
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def assert_params_of(network, params, *inputs):
    expected = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs))['params']
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}


@pytest.mark.parametrize('name', CASES)
def test_a_converted_unet_computes_what_the_reference_does(name, tmp_path):
    adm = CASES[name]
    state, network = random_state(adm), unet(adm)
    read = through_file(state, tmp_path)
    params = adm_params(read, network, SHAPE, new_attention_order=adm.new_order)
    assert_params_of(network, params, jnp.zeros((1, *SHAPE)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    expected = theirs(unet_forward, state, adm, LABELS)
    assert difference(ours(network, params, LABELS), expected) < 1e-4
    assert not any(np.shares_memory(a, b) for a in jax.tree.leaves(params) for b in read.values())

    # The comparison can fail: the other order of attention is another function, where there is more than one head.
    other = adm_params(arrays(state), network, SHAPE, new_attention_order=not adm.new_order)
    assert difference(ours(network, other, LABELS), expected) > 1e-2


def test_a_label_in_the_decoder_alone_is_what_the_reference_computes():
    adm = CASES['new order, by channels']
    state, network = random_state(adm), unet(adm, label_in='decoder')
    params = adm_params(arrays(state), network, SHAPE, new_attention_order=True)
    got = ours(network, params, LABELS)
    assert difference(got, theirs(functools.partial(unet_forward, label_in='decoder'), state, adm, LABELS)) < 1e-4
    assert difference(got, theirs(unet_forward, state, adm, LABELS)) > 1e-2


def test_the_null_label(tmp_path):
    """No row in the file: zeros are added. One row more than classes: it is the null label."""
    adm = CASES['new order, by channels']
    network, state = unet(adm), random_state(adm)
    params = adm_params(arrays(state), network, SHAPE, new_attention_order=True)
    np.testing.assert_array_equal(params['classes']['embedding'][:3], state['label_emb.weight'])
    assert not params['classes']['embedding'][3].any()

    adm = CASES['new order, by number']
    network, state = unet(adm), random_state(adm)
    params = adm_params(arrays(state), network, SHAPE, new_attention_order=True)
    np.testing.assert_array_equal(params['classes']['embedding'], state['label_emb.weight'])
    null = np.full(3, 3)
    assert difference(ours(network, params, null), theirs(unet_forward, state, adm, null)) < 1e-4


def test_labels_change_nothing_in_an_unconditional_network():
    adm = CASES['old order, by channels, no labels']
    network = unet(adm)
    params = adm_params(arrays(random_state(adm)), network, SHAPE, new_attention_order=False)
    output = ours(network, params, LABELS)
    np.testing.assert_array_equal(output, ours(network, params, np.full(3, 3)))


def test_a_converted_classifier_computes_what_the_reference_does(tmp_path):
    state, network = random_state(CLASSIFIER, encoder=True), encoder(CLASSIFIER)
    params = adm_params(through_file(state, tmp_path), network, SHAPE)
    assert_params_of(network, params, jnp.zeros((1, *SHAPE)), jnp.zeros(1))
    expected = theirs(classifier_forward, state, CLASSIFIER)
    got = ours(network, params)
    assert got.shape == (3, 5)
    assert difference(got, expected) < 1e-4

    half = ours(encoder(CLASSIFIER, dtype=jnp.bfloat16), params)
    assert half.dtype == np.float32
    assert 0 < difference(half, expected) < 5e-2


def test_the_classifiers_dropout_follows_its_keys():
    network = encoder(CLASSIFIER)
    params = {'params': adm_params(arrays(random_state(CLASSIFIER, encoder=True)), network, SHAPE)}
    keys, order, level = jax.random.split(jax.random.key(0), 3), np.array([2, 0, 1]), jnp.array(7.0)
    dropped = jitted(network)(params, images(), level, keys)
    reordered = jitted(network)(params, images()[order], level, keys[order])
    np.testing.assert_allclose(reordered, dropped[order], rtol=1e-4, atol=1e-5)
    other = jitted(network)(params, images(), level, jax.random.split(jax.random.key(1), 3))
    assert np.abs(dropped - other).max() > 1e-2


def refusal(state, network):
    with pytest.raises(UserError) as error:
        adm_params(state, network, SHAPE, new_attention_order=True)
    message = str(error.value)
    assert message.endswith("config.model must be the checkpoint's architecture.")
    return message


def test_a_wider_network_is_refused_with_both_shapes():
    adm = CASES['new order, by channels']
    message = refusal(arrays(random_state(adm)), unet(adm, channels=32))
    assert message.count(' has shape ') == 3
    assert 'more' in message
    state = arrays(random_state(adm))
    message = refusal(state, unet(adm, out_channels=6))
    for name, end in (('weight', ', 8, 3, 3)'), ('bias', ',)')):
        assert f'out.2.{name} has shape (3{end} where (6{end} is needed' in message
    assert 'more' not in message


def test_another_number_of_classes_is_refused_and_never_padded():
    adm = CASES['new order, by channels']
    for num_classes in (1, 4):
        message = refusal(arrays(random_state(adm)), unet(adm, num_classes=num_classes))
        assert f'(label_emb.weight has shape (3, 64) where ({num_classes}, 64) is needed)' in message


def test_missing_and_left_over_names_are_told():
    adm = CASES['new order, by channels']
    state = arrays(random_state(adm))
    state['time_embed.one'] = state.pop('time_embed.0.bias')
    assert '(it lacks time_embed.0.bias; left over are time_embed.one)' in refusal(state, unet(adm))

    assert 'it lacks ' in refusal(arrays(random_state(adm)), unet(adm, num_res_blocks=3))
    # No attention at any level: their names are left over.
    message = refusal(arrays(random_state(adm)), unet(adm, attention_resolutions=()))
    assert 'left over are input_blocks.4.1.norm.bias, ' in message
    assert message.count('left over') == 1


def test_a_unet_is_no_classifier():
    with pytest.raises(UserError, match=r"lacks .*left over .*of a diffusion network, config\.adm\.kind='model'"):
        adm_params(arrays(random_state(CASES['new order, by channels'])), encoder(CLASSIFIER), SHAPE)
    classifier = arrays(random_state(CLASSIFIER, encoder=True))
    with pytest.raises(UserError, match=r"it is that of a classifier, config\.adm\.kind='classifier'"):
        adm_params(classifier, unet(CASES['new order, by channels']), SHAPE)
    other = dataclasses.replace(CLASSIFIER, blocks=3)
    with pytest.raises(UserError, match=r'the classifier must be built'):
        adm_params(arrays(random_state(other, encoder=True)), encoder(CLASSIFIER), SHAPE)
