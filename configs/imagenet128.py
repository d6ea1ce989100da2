"""Trains on class-conditional ImageNet at 128x128: the paper's model of Table 2.

T is 128, 256 or 1024 there: --config.sampling.num_steps=1024. p_uncond is not stated; 0.1 is the default.
"""

from configs import imagenet64


def get_config():
    """Changes what differs from 64x64 (ADM, Table 11 and released flags; v, T and number of steps: the paper)."""
    config = imagenet64.get_config()

    config.data.image_size = 128

    config.model.channels = 256
    config.model.channel_mult = (1, 1, 2, 3, 4)
    config.model.num_res_blocks = 2
    config.model.num_heads = 4
    config.model.head_channels = 0
    config.model.dropout = 0.0

    config.train.num_steps = 2_700_000
    config.train.batch_size = 256
    config.train.learning_rate = 1e-4

    config.sampling.logvar_interp = 0.2
    config.sampling.batch_size = 128

    config.report.paper = 'table2_imagenet128'

    config.classifier.num_res_blocks = 2
    config.classifier.channel_mult = (1, 1, 2, 3, 4)

    return config
