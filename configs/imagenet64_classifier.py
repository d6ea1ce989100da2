"""Trains a classifier of noisy 64x64 ImageNet, for classifier guidance of the model of configs/imagenet64.py.

ADM's architecture and recipe (Dhariwal & Nichol 2021). It released the flags of training at 128x128 and says to modify
them for other sizes; what is not stated for 64x64 is taken from there. ADM's random crops are not made
(docs/imagenet.md).
"""

from configs import imagenet64


def get_config():
    """Changes what differs from the diffusion model; the data, the crop and the range of logsnr stay its own."""
    config = imagenet64.get_config()

    config.train.kind = 'classifier'
    config.train.num_steps = 300_000
    config.train.decay_steps = 300_000
    config.train.batch_size = 256
    config.train.learning_rate = 3e-4
    config.train.weight_decay = 0.05
    config.train.sample_every = 5000

    return config
