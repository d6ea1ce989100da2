import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.models.unet import UNet
from cfg.runtime import xla_flags
from cfg.runtime.devices import check_devices
from cfg.runtime.errors import UserError

# As users compile, and not as the suite does.
USERS = {'xla_backend_optimization_level': 1}
if xla_flags.jaxlib_knows('xla_cpu_use_fusion_emitters'):
    USERS['xla_cpu_use_fusion_emitters'] = True
ON = USERS | {xla_flags.CPU_FLAG: xla_flags.CPU_VALUE}
OFF = USERS | {xla_flags.CPU_FLAG: 'LIBRARY_FUSION_TYPE_INVALID'}


def test_the_flag_is_set_for_the_cpu_alone_and_never_over_the_users():
    known = xla_flags.jaxlib_knows(xla_flags.CPU_FLAG)
    environ = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
    assert xla_flags.choose(environ) == known
    if known:
        flag = f'--{xla_flags.CPU_FLAG}={xla_flags.CPU_VALUE}'
        assert environ['XLA_FLAGS'] == f'--xla_force_host_platform_device_count=2 {flag}'
    for other in (
        {'JAX_PLATFORMS': 'cuda,cpu'},
        {'JAX_PLATFORMS': 'tpu'},
        {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--{xla_flags.CPU_FLAG}=LIBRARY_FUSION_TYPE_INVALID'},
    ):
        before = dict(other)
        assert not xla_flags.choose(other)
        assert other == before


def test_an_unknown_flag_is_not_found():
    assert not xla_flags.jaxlib_knows('xla_cpu_a_flag_that_nobody_has_written')
    assert not xla_flags.jaxlib_knows('xla_force_host_platform_device')
    assert xla_flags.jaxlib_knows('xla_force_host_platform_device_count')


def test_flags_that_would_end_the_process_are_named(monkeypatch):
    known = f'--{xla_flags.ANY_FLAG}=4 --xla_dump_to=/x --xla_gpu_autotune_level=0'
    assert xla_flags.unknown(known) == xla_flags.unknown('') == xla_flags.unknown('a_file') == []
    assert xla_flags.unknown(f'{known} --xla_cpu_fast=--xla_no') == ['xla_cpu_fast']
    monkeypatch.setenv('XLA_FLAGS', f'{known} --xla_tpu_enable_async_collective_fusion=true')
    with pytest.raises(UserError, match=r'holds --xla_tpu_enable_async_collective_fusion.*LIBTPU_INIT_ARGS'):
        check_devices()


def test_numerics_are_unchanged_by_the_flag():
    """Output and gradient of the network with and without the library's convolutions."""
    if not xla_flags.jaxlib_knows(xla_flags.CPU_FLAG):
        pytest.skip('this jaxlib does not have the flag')
    network = UNet(
        out_channels=1,
        num_classes=2,
        channels=16,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        head_channels=8,
        norm_groups=4,
    )
    inputs = (jax.random.normal(jax.random.key(0), (4, 8, 8, 1)), jnp.zeros(4), jnp.arange(4) % 3)
    params = jax.jit(network.init)(jax.random.key(1), *inputs)
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32), params)

    def loss(params):
        return jnp.mean(network.apply(params, *inputs) ** 2)

    on, off = (jax.jit(jax.value_and_grad(loss), compiler_options=options)(params) for options in (ON, OFF))
    np.testing.assert_allclose(on[0], off[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(on[1]), jax.tree.leaves(off[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max() + 1e-3))
