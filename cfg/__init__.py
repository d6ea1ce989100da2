"""Implements classifier-free diffusion guidance (Ho & Salimans, arXiv 2207.12598) in JAX/Flax.

A program uses these; `help(cfg.sample)` and docs/api.md say how:

  load       opens a trained run
  sample     draws guided samples of a run, or of an eps function
  adapt      makes an eps function of one that predicts x or v, of EDM's networks and of flow matching
  Models     holds a network and those that guide it
  guided     gives the guided prediction for a loop of one's own
  evaluate   measures images: FID, inception score, precision, recall and more
  Sampler, rules, solvers, grids, process, schedule
             are the parts of it, and UserError says what is wrong in an argument
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
