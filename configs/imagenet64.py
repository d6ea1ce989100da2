"""Trains on class-conditional ImageNet at 64x64: the paper's model of Table 1.

p_uncond is 0.1, 0.2 or 0.5 there: --config.train.p_uncond=0.2.
"""

from configs import default


def get_config():
    """Returns the paper's 64x64 settings, which are the defaults."""
    config = default.get_config()
    config.data.name = 'imagenet'
    config.model.dtype = 'bfloat16'  # of computation; ADM trained in float16
    config.report.paper = 'table1_imagenet64'
    return config
