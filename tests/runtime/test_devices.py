import logging
import re
from types import SimpleNamespace

import jax
import pytest

from cfg.runtime import devices
from cfg.runtime.errors import UserError
from tests.in_process import refused

SET, UNSET = "(set JAX_PLATFORMS='' to automatically choose an available backend)", '(you may need to uninstall the ...'
HELD = (
    'ABORTED: The TPU is already in use by process with pid 176028. Not attempting to load libtpu.so in this process.'
)
DRIVER = 'CUDA driver version is insufficient for CUDA runtime version'


def starting(monkeypatch, error, asked='', *, variable='JAX_PLATFORMS'):
    """Has JAX raise an error when it is asked for its devices."""
    monkeypatch.delenv('JAX_PLATFORMS')
    if asked:
        monkeypatch.setenv(variable, asked)

    def fail(*_):
        raise error

    monkeypatch.setattr(devices.jax, 'devices', fail)


def sentence():
    with pytest.raises(UserError) as refused:
        devices.check_devices()
    return str(refused.value)


@pytest.mark.parametrize(
    ('asked', 'said', 'expected'),
    [
        ('cuda', None, r'PLATFORMS=cuda \(there is no such device here\).*"jax\[cuda13\]".*or unset JAX_PLATFORMS'),
        ('tpu', f"Unable to initialize backend 'tpu': INTERNAL: no libtpu.so {SET}", r'"jax\[tpu\]"'),
        ('cdua', f"Unable to initialize backend 'cdua': Backend 'cdua' is not in {SET}", 'cpu, cuda, tpu'),
        ('tpu', f"Unable to initialize backend 'tpu': {HELD} {SET}", r'pid 176028.*another process holds'),
        ('', f"Unable to initialize backend 'cuda': INTERNAL: {DRIVER} {UNSET}", 'update the driver.*cuda12'),
        ('', 'INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory', 'another process holds it.*JAX_PLATFORMS=cpu'),
        (
            '',
            'INTERNAL: cuInit: CUDA_ERROR_SYSTEM_NOT_READY: not yet initialized',
            'NOT_READY.*whether its driver works',
        ),
        ('', 'INTERNAL: no supported devices found for platform CUDA', 'CUDA_VISIBLE_DEVICES'),
    ],
)
def test_what_jax_says_becomes_one_sentence(monkeypatch, asked, said, expected):
    starting(monkeypatch, RuntimeError(said) if said else AssertionError(), asked)
    found = sentence()
    assert re.search(expected, found)
    assert 'automatically' not in found
    assert 'may need' not in found


def test_the_older_variable_is_named(monkeypatch):
    starting(monkeypatch, RuntimeError("Unknown backend: 'gpu' requested"), 'gpu', variable='JAX_PLATFORM_NAME')
    assert re.search(r'JAX_PLATFORM_NAME=gpu.*unset JAX_PLATFORM_NAME', sentence())


def test_a_process_that_died_meanwhile_is_no_mistake(monkeypatch):
    starting(monkeypatch, RuntimeError('DEADLINE_EXCEEDED: Barrier timed out'))
    monkeypatch.setattr(devices.jax.distributed, 'is_initialized', lambda: True)
    with pytest.raises(RuntimeError, match='Barrier'):
        devices.check_devices()


def falling_back(monkeypatch, packages=(), libtpu=None):
    """Has JAX take the CPU because what is installed for accelerators fails."""
    cpu = jax.devices()

    def of(platform=None):
        if platform is None:
            return cpu
        raise RuntimeError(f"Backend 'tpu' failed to initialize: {libtpu}. Available backends are ['cpu']")

    monkeypatch.delenv('JAX_PLATFORMS')
    monkeypatch.setattr(devices.jax, 'devices', of)
    entries = [SimpleNamespace(name=name) for name in packages]
    monkeypatch.setattr(devices.importlib.metadata, 'entry_points', lambda **_: entries)
    monkeypatch.setattr(devices.importlib.util, 'find_spec', lambda name: libtpu and name)


def test_a_tpu_that_is_held_is_not_passed_over(monkeypatch):
    falling_back(monkeypatch, packages=['xla_cuda13'], libtpu=HELD)  # which has no GPU to look for
    assert re.search('already in use by process with pid 176028.*another process holds', sentence())


@pytest.mark.parametrize('reason', [None, 'NOT_FOUND: TPU initialization failed: No jellyfish device found.'])
def test_where_there_is_no_tpu_the_cpu_is_right(monkeypatch, reason):
    falling_back(monkeypatch, libtpu=reason)
    devices.check_devices()


@pytest.mark.parametrize('there', [True, False])
def test_a_gpu_whose_driver_is_too_old_is_not_passed_over(monkeypatch, tmp_path, there, caplog):
    """JAX logs a traceback of its plugin, and goes on with the CPU."""
    falling_back(monkeypatch, packages=['xla_cuda13'])
    found = devices.jax.devices

    def of(platform=None):
        try:
            raise RuntimeError(DRIVER)
        except RuntimeError:
            logging.getLogger('jax._src.xla_bridge').exception('Jax plugin configuration error')
        return found(platform)

    monkeypatch.setattr(devices.jax, 'devices', of)
    monkeypatch.setattr(devices, 'GPU_FILES', (str(tmp_path / ('' if there else 'nvidia0')),))
    if there:
        assert re.search(rf'accelerator of this machine \({DRIVER}\): .*update the driver', sentence())
        assert not caplog.text
    else:
        devices.check_devices()
        assert 'Jax plugin configuration error' in caplog.text  # as JAX says it


def test_the_report_of_a_mixture_computes_too(monkeypatch, tmp_path):
    starting(monkeypatch, AssertionError(), 'cuda')
    message = refused('--mode=report', f'--workdir={tmp_path / "new"}', config='configs/mixture.py', small=False)
    assert 'JAX_PLATFORMS=cuda (there is no such device here)' in message
    assert not (tmp_path / 'new').exists()
