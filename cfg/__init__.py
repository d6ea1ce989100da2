"""Implements classifier-free diffusion guidance (Ho & Salimans, arXiv 2207.12598) in JAX/Flax.

`__all__` is what a program may use; docs/api.md shows it. Each name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cfg.api.models import Model, load
    from cfg.api.sampling import guided, sample
    from cfg.diffusion import grids, process, rules, schedule, solvers
    from cfg.diffusion.adapters import adapt
    from cfg.diffusion.denoiser import Denoiser, Models
    from cfg.diffusion.sampler import Sampler
    from cfg.runtime.errors import UserError

_HOMES = {
    'cfg.api.models': ('Model', 'load'),
    'cfg.api.sampling': ('guided', 'sample'),
    'cfg.diffusion': ('grids', 'process', 'rules', 'schedule', 'solvers'),
    'cfg.diffusion.adapters': ('adapt',),
    'cfg.diffusion.denoiser': ('Denoiser', 'Models'),
    'cfg.diffusion.sampler': ('Sampler',),
    'cfg.runtime.errors': ('UserError',),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022
    *('load', 'sample', 'guided', 'adapt'),
    *('Model', 'Models', 'Denoiser', 'Sampler', 'UserError'),
    *('rules', 'solvers', 'grids', 'schedule', 'process'),
]


def __getattr__(name: str) -> Any:
    """Imports what `__all__` names: JAX's settings come before JAX, and a command needs few of them."""
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    home = _HOME[name]
    if home == 'cfg.diffusion':
        return importlib.import_module(f'{home}.{name}')
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
