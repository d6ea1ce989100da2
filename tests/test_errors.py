import jax
import jax.numpy as jnp
import pytest

from cfg.errors import out_of_memory


def test_a_device_out_of_memory_is_told_what_to_change():
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jnp.zeros((1 << 48,), jnp.float32).block_until_ready()
    sentence = out_of_memory(caught.value, 'train')
    assert 'config.train.grad_accum' in sentence
    assert 'config.train.remat' in sentence
    assert 'config.sampling.batch_size' in out_of_memory(caught.value, 'eval')
    for mode in ('stats', 'evaluate_npz'):  # which draw nothing
        assert out_of_memory(caught.value, mode) == (
            'The device ran out of memory: lower config.eval.batch_size; what is finished is kept.'
        )


def test_the_host_too_and_nothing_else():
    assert out_of_memory(MemoryError(), 'sample').startswith('The host ran out of memory')
    assert 'config.prepare.workers' in out_of_memory(MemoryError(), 'prepare_data')
    assert out_of_memory(RuntimeError('something else'), 'train') is None
