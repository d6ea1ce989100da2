"""Makes XLA's settings for speed, which must come before JAX starts."""

import functools
import importlib.metadata
import importlib.util
import mmap
import os
import re
from pathlib import Path

# Lets XLA's CPU backend hand convolutions and matrix products to a faster library; numerics stay within rounding.
# Experimental, so it is set only where the installed jaxlib knows it: XLA ends the process on an unknown flag.
CPU_FLAG = 'xla_cpu_experimental_ynn_fusion_type'
CPU_VALUE = 'LIBRARY_FUSION_TYPE_DOT'
ANY_FLAG = 'xla_force_host_platform_device_count'  # where this is not found either, names cannot be looked up


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


def unknown(flags: str) -> list[str]:
    """Returns those of XLA_FLAGS that the installed jaxlib does not know: XLA would end the process.

    A name counts as known if any text of the library ends with it, so that no flag that XLA takes is among them.
    """
    names = re.findall(r'(?:^|\s)--(\w+)', flags)
    return [name for name in names if not _in_jaxlib(name.encode() + b'\0')] if jaxlib_knows(ANY_FLAG) else []


def jaxlib_knows(flag: str) -> bool:
    """Tells whether the installed jaxlib has an XLA flag of this name, found by its name in the library.

    A flag's name is a string of its own there. Names of flags that are gone stay as parts of longer texts.
    """
    return _in_jaxlib(b'\0' + flag.encode() + b'\0')


@functools.cache  # half a second for what is not there
def _in_jaxlib(text: bytes) -> bool:
    spec = importlib.util.find_spec('jaxlib')
    if spec is None or spec.origin is None:
        return False
    library = Path(spec.origin).parent / 'libjax_common.so'
    if not library.exists():
        return False
    with library.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0
