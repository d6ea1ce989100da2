import os
import re

import jax
import pytest

from cfg.runtime import environment
from cfg.runtime.environment import PINNED, RECORDED, pin, recorded, unreadable
from cfg.runtime.xla_flags import CPU_FLAG, CPU_VALUE

# What the other variables of JAX are about: none changes a number. Some raise where something is found.
OTHERS = re.compile(
    'cache|dump|debug|log|trace|check|error|disable_|format|pprint|guard|leak|cpu_|visible|platform|backend|tpu|cross_host|'
    'pgle|profil|pallas|mosaic|mtls|secure|distributed|recover|preempt|topology|shard|mesh|export|serializ|source|'
    'captured|embedded|jax2tf|bcoo|mock|share_binary|pjrt|no_execution|no_tracing|default_device|magma|shardy|'
    'f16_reductions|garbage|mutable|memory_fitting|emit_pipeline|triton|raise_on|include_|vma|pcast|'
    'sort_devices|constant|vjp|jvp|remat|rgv3|scan3|linearize|refs_to|size_one|threefry_gpu|persistent|explain|xla_backend'
)


def test_every_variable_of_jax_is_pinned_or_recorded_or_changes_no_number():
    """A new version of JAX may bring more: they are to be looked at, and put where they belong."""
    names = {name for name in jax.config.values if name.startswith('jax_')}
    known = {name.lower() for name in (*PINNED, *RECORDED)}
    assert {name for name in names - known if not OTHERS.search(name)} == set()
    ours = {name.lower() for name in PINNED if name.lower() in names}
    assert len(ours) >= 12  # of either version of JAX
    for name in ours:
        value = jax.config.values[name]
        assert str(getattr(value, 'value', value)).lower() in (PINNED[name.upper()], 'none', '1'), name


def test_what_changes_the_meaning_of_a_run_is_ignored_in_one_line(caplog):
    environ = dict.fromkeys(PINNED, '1') | {'JAX_DEBUG_NANS': '1', 'JAX_PLATFORMS': 'cpu'}
    with caplog.at_level('WARNING', logger='cfg'):
        pin(environ)
    assert environ == {'JAX_DEBUG_NANS': '1', 'JAX_PLATFORMS': 'cpu'}
    lines = [record.message for record in caplog.records]
    assert 'JAX_ENABLE_X64=1 is ignored, as it would change results: it counts as false.' in lines
    told = {line.partition('=')[0] for line in lines}
    assert told == PINNED.keys() - {'JAX_THREEFRY_PARTITIONABLE'}  # which is what was asked for


@pytest.mark.parametrize('value', ['0', 'off', 'False', ''])
def test_what_is_so_anyway_is_not_worth_a_line(value, caplog):
    environ = {'JAX_ENABLE_X64': value, 'JAX_DEFAULT_PRNG_IMPL': 'threefry2x32'}
    pin(environ)
    assert not environ
    assert not caplog.text


def test_the_rest_is_recorded_without_our_own_flag():
    environ = {
        'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
        'XLA_FLAGS': f'--{CPU_FLAG}={CPU_VALUE}',
        'HOME': '/',
        'LIBTPU_INIT_ARGS': '',
    }
    assert recorded(environ) == {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
    others = f'--{CPU_FLAG}={CPU_VALUE} --xla_force_host_platform_device_count=4 --xla_dump_to=/somewhere'
    environ['XLA_FLAGS'] = f'--xla_cpu_enable_fast_math=true {others}'
    assert recorded(environ)['XLA_FLAGS'] == '--xla_cpu_enable_fast_math=true'


@pytest.mark.parametrize('name', ['JAX_DEFAULT_MATMUL_PRECISION', 'JAX_DEBUG_NANS'])
def test_a_value_that_jax_does_not_take_is_named(name, monkeypatch):
    monkeypatch.setattr(environment.os, 'environ', os.environ | {name: 'perhaps'})
    said = {
        'JAX_DEBUG_NANS': "invalid truth value 'perhaps' for environment 'JAX_DEBUG_NANS'",
        'JAX_DEFAULT_MATMUL_PRECISION': 'Invalid value "perhaps" for JAX flag jax_default_matmul_precision',
    }[name]
    assert f'{name}=perhaps is no value that JAX takes' in unreadable(ValueError(said))
    assert unreadable(ValueError('something else')) is None
