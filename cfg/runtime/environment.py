"""Decides what the environment may say to JAX: what would change the meaning of a run is ignored, the rest recorded.

It imports no JAX: JAX reads the environment when it is imported.
"""

import logging
import os
import re
from collections.abc import MutableMapping

from cfg.runtime.xla_flags import CPU_FLAG

log = logging.getLogger('cfg')

# These change the types of arrays, the numbers that a seed means, or what the code may say: {name: JAX's own value}.
PINNED = {
    'JAX_ENABLE_X64': 'false',
    'JAX_EXPLICIT_X64_DTYPES': 'warn',
    'JAX_NUMPY_DTYPE_PROMOTION': 'standard',
    'JAX_NUMPY_RANK_PROMOTION': 'allow',
    'JAX_DEFAULT_PRNG_IMPL': 'threefry2x32',
    'JAX_ENABLE_CUSTOM_PRNG': 'false',
    'JAX_LEGACY_PRNG_KEY': 'allow',
    'JAX_THREEFRY_PARTITIONABLE': 'true',
    'JAX_HIGH_DYNAMIC_RANGE_GUMBEL': 'false',
    'JAX_RANDOM_SEED_OFFSET': '0',
    'JAX_ACCURATE_ERF_INV': 'false',
    **{
        f'JAX_TRANSFER_GUARD{which}': 'allow'
        for which in ('', *(f'_{way}' for way in ('HOST_TO_DEVICE', 'DEVICE_TO_HOST', 'DEVICE_TO_DEVICE')))
    },
}
# These are the user's right: they change how numbers are rounded, or look for faults.
RECORDED = (
    *('JAX_DEFAULT_MATMUL_PRECISION', 'NVIDIA_TF32_OVERRIDE', 'XLA_FLAGS', 'LIBTPU_INIT_ARGS'),
    *('JAX_DISABLE_JIT', 'JAX_DEBUG_NANS', 'JAX_DEBUG_INFS', 'JAX_DISABLE_MOST_OPTIMIZATIONS'),
    *('JAX_OPTIMIZATION_LEVEL', 'JAX_EXEC_TIME_OPTIMIZATION_EFFORT', 'JAX_COMPILER_ENABLE_REMAT_PASS'),
    *('JAX_SOFTMAX_CUSTOM_JVP', 'JAX_USE_HLO_LOGISTIC_LOWERING', 'JAX_RAGGED_DOT_USE_RAGGED_DOT_INSTRUCTION'),
)
# Of the flags of XLA: our own for speed, how many devices it makes of a CPU, and what it writes for people.
_NO_ROUNDING = rf'\s*--({CPU_FLAG}|xla_force_host_platform_device_count|xla_dump_\w+)=\S+'
_BOOLS = dict.fromkeys(('0', 'n', 'no', 'f', 'off'), 'false') | dict.fromkeys(('1', 'y', 'yes', 't', 'on'), 'true')


def pin(environ: MutableMapping[str, str] | None = None) -> None:
    """Takes out of the environment what would change the meaning of a run, and says so in the log.

    Call it before JAX is imported.
    """
    environ = os.environ if environ is None else environ
    for name in sorted(PINNED.keys() & environ.keys()):
        value = environ.pop(name)
        if value and _BOOLS.get(value.lower(), value.lower()) != PINNED[name]:
            log.warning('%s=%s is ignored, as it would change results: it counts as %s.', name, value, PINNED[name])


def recorded(environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Returns what the environment says that may change the rounding of numbers."""
    environ = os.environ if environ is None else environ
    said = {name: re.sub(_NO_ROUNDING, '', environ.get(name, '')).strip() for name in RECORDED}
    return {name: value for name, value in said.items() if value}


def unreadable(error: ValueError) -> str | None:
    """Says which variable has a value that JAX does not take, by what it raises when imported; None for others."""
    found = re.search(r"(.*) for (?:JAX flag (jax_\w+)|environment '(JAX_\w+)')", str(error))
    if not found:
        return None
    name = (found[2] or found[3]).upper()
    return f'{name}={os.environ.get(name)} is no value that JAX takes ({found[1].strip()}): mend it, or unset {name}.'
