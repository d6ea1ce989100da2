"""Searches for the best setting of the digits' early checkpoint (docs/tuning.md).

It reads the run of configs/digits.py, at the step where guidance has something to mend.
"""

from configs import digits


def get_config():
    """Returns the digits with the budget of `make tune`. The values are ours, chosen for a 2-core CPU."""
    config = digits.get_config()

    config.tune.evaluations = 32
    config.tune.samples = 80_000
    config.tune.first_samples = 250
    config.tune.final_seeds = 5
    config.tune.steps = (300,)
    # Every way of sampling takes some seconds to compile, as long as a hundred samples take.
    config.tune.sampler = ('dpm_solver_2m', 'dpm_solver_2m(stochastic=True)')
    config.tune.grid = ('uniform', 'nested')
    config.tune.w = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0)

    return config
