"""Draws the paper's Fig. 2: three 2-D Gaussians, exact scores, no training. Run with --mode=report."""

from configs import default


def get_config():
    """Returns the config of `make mixture`."""
    config = default.get_config()
    config.data.name = 'mixture'
    return config
