"""Trains a classifier of noisy digits, to guide the model of configs/digits.py: three minutes on two CPU cores."""

from configs import digits


def get_config():
    """Returns the digits, their schedule, and a small classifier. The values are ours, chosen for a 2-core CPU."""
    config = digits.get_config()

    # Half of the images, so that the other half tells what it has learned.
    config.data.split = 'train'

    config.classifier.channels = 32
    config.classifier.channel_mult = (1, 2)
    config.classifier.num_res_blocks = 1
    config.classifier.attention_resolutions = (4,)
    config.classifier.head_channels = 32
    config.classifier.norm_groups = 8
    config.classifier.dropout = 0.1

    config.train.kind = 'classifier'
    config.train.num_steps = 1000
    config.train.decay_steps = 1000
    config.train.weight_decay = 0.05
    config.train.sample_every = 100

    return config
