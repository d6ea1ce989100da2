"""Starts JAX's devices, and says what is wrong where it cannot use those that it was told of, or found."""

import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp

from cfg.runtime import xla_flags
from cfg.runtime.errors import UserError

# Of what JAX, CUDA and libtpu say: what it means, and what helps. The first that is found counts.
CAUSES = (
    (
        r'already in use|lockfile|resource busy|OUT_OF_MEMORY|RESOURCE_EXHAUSTED',
        'another process holds it: end that one (nvidia-smi, or sudo lsof -w /dev/accel* /dev/vfio/*, names it)',
    ),
    (
        r'driver version is insufficient|Outdated|Unable to load|COMPAT|MISMATCH|UNSUPPORTED_PTX|kernel image',
        'its driver or its libraries do not fit this JAX: update the driver, or pip install "jax[cuda13]", or for '
        'an older driver "jax[cuda12]"',
    ),
    (
        r'no supported devices|NO_DEVICE|INVALID_DEVICE|/dev/(accel|vfio)',
        'it is not to be seen: look at nvidia-smi or /dev/accel*, the rights on it, and CUDA_VISIBLE_DEVICES',
    ),
)
# Where JAX has none of these words: by the name in JAX_PLATFORMS.
PACKAGES = {'cuda': 'jax[cuda13]', 'gpu': 'jax[cuda13]', 'tpu': 'jax[tpu]'}
GPU_FILES = ('/dev/nvidia0', '/dev/nvidiactl', '/dev/dxg')


def check_devices() -> None:
    """Starts JAX's devices and computes one number on them, before any other use of them.

    Raises:
      UserError: when XLA does not know one of its flags; when JAX cannot use the devices of JAX_PLATFORMS; or, without
        it, would leave an accelerator alone whose package is installed, because it is held by another process or its
        driver does not fit.
    """
    variable = next((name for name in ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME') if os.environ.get(name)), 'JAX_PLATFORMS')
    asked = os.environ.get(variable, '')
    if flags := xla_flags.unknown(os.environ.get('XLA_FLAGS', '')):
        raise UserError(
            f'XLA_FLAGS holds --{flags[0]}, which this jaxlib does not know: mend it or take it out; flags of TPUs '
            '(xla_tpu_...) belong in LIBTPU_INIT_ARGS.'
        )
    with _heard() as records:
        try:
            device = jax.devices()[0]
            (jnp.ones(()) + 1).block_until_ready()
            reason = _passed_over() if device.platform == 'cpu' and not asked else None
        except (RuntimeError, AssertionError) as error:
            reason = _words(error) or 'there is no such device here'
            if jax.distributed.is_initialized() and not _remedy(reason):  # another process may have died
                raise
        if reason is None:
            return
        told = [_words(record.exc_info[1]) for record in records if record.exc_info and record.exc_info[1]]
        records.clear()
    if _remedy(reason) is None:
        reason = next((text for text in told if text), reason)
    names = [name for name in asked.split(',') if name]
    packages = [PACKAGES[name] for name in names if name in PACKAGES]
    remedy = _remedy(reason)
    if remedy is None and packages:
        remedy = f'install JAX for it (pip install "{packages[0]}") where there is one'
    if remedy is None:
        remedy = 'give one that JAX has (cpu, cuda, tpu)' if asked else 'see whether its driver works (nvidia-smi)'
    instead = f'unset {variable} to take what there is' if asked else 'set JAX_PLATFORMS=cpu to compute without it'
    what = f'the devices of {variable}={asked}' if asked else 'the accelerator of this machine'
    raise UserError(f'JAX cannot use {what} ({reason}): {remedy}, or {instead}.')


def _passed_over() -> str | None:
    """Says why JAX took the CPU though there is an accelerator and its package; None where it is right to."""
    packages = [entry.name for entry in importlib.metadata.entry_points(group='jax_plugins')]
    if any('cuda' in name for name in packages) and any(Path(path).exists() for path in GPU_FILES):
        return 'the package for it cannot be loaded'
    if importlib.util.find_spec('libtpu') is not None:
        try:
            jax.devices('tpu')
        except RuntimeError as error:  # the only one that JAX passes over without a word
            reason = _words(error)
            return reason if re.search(r'already in use|lockfile|/dev/(accel|vfio)', reason) else None
    return None


def _remedy(reason: str) -> str | None:
    """Tells what helps against one of the causes; None for any other."""
    return next((text for pattern, text in CAUSES if re.search(pattern, reason)), None)


def _words(error: BaseException) -> str:
    """Returns what JAX says of a device, in short and without its advice."""
    text = ' '.join(str(error).split())
    text = re.sub(r"^Unable to initialize backend '\w+': |^Backend '\w+' failed to initialize: ", '', text)
    return re.sub(r'( \((set JAX_PLATFORMS|you may need)|\.? Available backends).*', '', text)[:300].rstrip('.')


@contextmanager
def _heard() -> Iterator[list[logging.LogRecord]]:
    """Holds back what JAX logs, tracebacks among it; what is still in the list at the end is logged then."""
    logger, records = logging.getLogger('jax'), []
    before = logger.handlers[:], logger.propagate
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    logger.handlers[:], logger.propagate = [handler], False
    try:
        yield records
    finally:
        logger.handlers[:], logger.propagate = before
        for record in records:
            logger.handle(record)
