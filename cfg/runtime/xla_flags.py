"""Makes XLA's settings for speed, which must come before JAX starts."""

import importlib.metadata
import importlib.util
import mmap
import os
from pathlib import Path

# Lets XLA's CPU backend hand convolutions and matrix products to a faster library; numerics stay within rounding.
# Experimental, so it is set only where the installed jaxlib knows it: XLA ends the process on an unknown flag.
CPU_FLAG = 'xla_cpu_experimental_ynn_fusion_type'
CPU_VALUE = 'LIBRARY_FUSION_TYPE_DOT'


def choose(environ: dict[str, str] | None = None) -> bool:
    """Adds the CPU flag to XLA_FLAGS if JAX will run on the CPU, jaxlib knows it and the user has not set it.

    Call it before the first use of JAX. Returns whether the flag was added.
    """
    environ = os.environ if environ is None else environ
    flags = environ.get('XLA_FLAGS', '')
    if CPU_FLAG in flags or not _runs_on_cpu(environ) or not jaxlib_knows(CPU_FLAG):
        return False
    environ['XLA_FLAGS'] = f'{flags} --{CPU_FLAG}={CPU_VALUE}'.strip()
    return True


def _runs_on_cpu(environ: dict[str, str]) -> bool:
    platforms = environ.get('JAX_PLATFORMS', '')
    if platforms:
        return platforms.split(',')[0] == 'cpu'
    accelerators = importlib.metadata.entry_points(group='jax_plugins')
    return not accelerators and importlib.util.find_spec('libtpu') is None


def jaxlib_knows(flag: str) -> bool:
    """Tells whether the installed jaxlib has an XLA flag of this name, found by its name in the library.

    A flag's name is a string of its own there. Names of flags that are gone stay as parts of longer texts.
    """
    spec = importlib.util.find_spec('jaxlib')
    if spec is None or spec.origin is None:
        return False
    library = Path(spec.origin).parent / 'libjax_common.so'
    if not library.exists():
        return False
    with library.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b'\0' + flag.encode() + b'\0') >= 0
