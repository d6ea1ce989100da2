import errno

import jax
import jax.numpy as jnp
import pytest

from cfg.runtime.errors import os_error, out_of_memory
from tests.in_process import modes


def test_a_device_out_of_memory_is_told_what_to_change():
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jnp.zeros((1 << 48,), jnp.float32).block_until_ready()
    sentence = out_of_memory(caught.value, 'lower config.eval.batch_size')
    assert sentence == 'The device ran out of memory: lower config.eval.batch_size; what is finished is kept.'


def test_the_host_too_and_nothing_else():
    assert out_of_memory(MemoryError(), 'do').startswith('The host ran out of memory: do; ')
    assert out_of_memory(RuntimeError('something else'), 'do') is None


def test_every_mode_names_what_takes_its_memory():
    remedies = {name: mode.memory for name, mode in modes().items()}
    assert 'config.train.grad_accum' in remedies['train']
    assert 'config.train.remat' in remedies['train']
    assert 'config.prepare.workers' in remedies['prepare_data']
    for name in ('sample', 'eval', 'compare'):
        assert 'config.sampling.batch_size' in remedies[name]
    for name in ('stats', 'evaluate_npz'):  # which draw nothing
        assert remedies[name] == 'lower config.eval.batch_size'


def test_the_systems_error_behind_errors_that_go_round():
    first, second = ValueError('a'), ValueError('b')
    first.__cause__, second.__context__ = second, first
    assert os_error(first) is None
    second.__cause__ = OSError(errno.EIO, 'x')
    assert os_error(first) == errno.EIO
