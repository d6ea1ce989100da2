"""Trains a network of a third of the paper's size on ImageNet at 64x64, on one GPU; TFDS downloads the images.

They are those of configs/imagenet32.py at 64 pixels. The paper's own, cropped, are --config.data.name=imagenet, which
are prepared first (docs/imagenet.md). The network's width is that of the 100M network of improved DDPM (Nichol &
Dhariwal 2021, arXiv 2102.09672). Values without a source are ours.
"""

from configs import imagenet64


def get_config():
    """Changes what differs from the paper's settings."""
    config = imagenet64.get_config()

    config.data.name = 'imagenet_resized64'
    config.report.paper = ''  # of other data

    config.model.channels = 128  # improved DDPM
    config.model.num_res_blocks = 2  # 3 there
    config.model.attention_resolutions = (16, 8)  # improved DDPM

    # 200 million images, a quarter of the paper's 819 million, in marks of 50 million whose checkpoints are kept.
    config.train.batch_size = 512
    config.train.grad_accum = 4  # for 24 GB of memory
    config.train.num_steps = 390_400
    config.train.keep_every = 97_600
    config.train.checkpoint_every = 4_880
    config.train.sample_every = 4_880
    config.train.learning_rate = 2e-4  # between improved DDPM's 1e-4 at batches of 128 and ADM's 3e-4 at 2048
    config.train.warmup_steps = 5000
    config.train.grad_clip = 1.0
    config.train.ema_decay = 0.9996  # over as many images as 0.9999 at batches of 128
    config.train.max_skipped = 10

    # As in configs/cifar10.py.
    config.sampling.sampler = 'dpm_solver_2m'
    config.sampling.grid = 'rho(logsnr_min=-8.76, logsnr_max=12.43)'
    config.sampling.num_steps = 32
    config.eval.w = (*(i / 10 for i in range(0, 10, 2)), 1.0, 1.5, 2.0, 3.0, 4.0)  # of the paper's rows

    return config
