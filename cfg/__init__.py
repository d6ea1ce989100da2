"""Implements classifier-free diffusion guidance (Ho & Salimans, arXiv 2207.12598) in JAX/Flax.

What a program may use is in `cfg.api` and found here too: docs/api.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfg.api import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """Imports the API when a program asks for it; commands set up JAX first, and need other parts."""
        if not name.startswith('_'):
            api = importlib.import_module('cfg.api')
            if name in api.__all__:
                return getattr(api, name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted(importlib.import_module('cfg.api').__all__)
