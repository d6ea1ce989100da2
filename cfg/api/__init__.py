"""Holds what a user's own program may call; `cfg` passes it on, so `cfg.load` is `cfg.api.load`."""

from cfg.api.evaluating import evaluate
from cfg.api.models import Model, load
from cfg.api.sampling import guided, sample
from cfg.diffusion import grids, options, process, rules, schedule, solvers
from cfg.diffusion.adapters import adapt
from cfg.diffusion.denoiser import Denoiser, Models
from cfg.diffusion.sampler import Sampler
from cfg.metrics import distances, neighbours
from cfg.runtime.errors import UserError

__all__ = [
    'Denoiser',
    'Model',
    'Models',
    'Sampler',
    'UserError',
    'adapt',
    'distances',
    'evaluate',
    'grids',
    'guided',
    'load',
    'neighbours',
    'options',
    'process',
    'rules',
    'sample',
    'schedule',
    'solvers',
]
