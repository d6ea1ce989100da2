"""Trains on class-conditional CIFAR-10 on one GPU; TFDS downloads the images (docs/one_gpu.md).

"DDPM" is Ho et al. (2020, arXiv 2006.11239), whose sizes the network has, built of ADM's blocks. "EDM" is the defaults
of the code of Karras et al. (2022, arXiv 2206.00364). Values without a source are ours.
"""

from configs import default


def get_config():
    """Changes what differs from ADM's settings."""
    config = default.get_config()

    config.data.name = 'cifar10'
    config.data.image_size = 32

    config.model.channels = 128  # DDPM
    config.model.channel_mult = (1, 2, 2, 2)  # DDPM
    config.model.num_res_blocks = 2  # DDPM
    config.model.attention_resolutions = (16,)  # DDPM
    config.model.dropout = 0.13  # EDM; 0.1 in DDPM
    config.model.dtype = 'bfloat16'

    # 200 million images (EDM), in marks of 50 million whose checkpoints are kept.
    config.train.batch_size = 512  # EDM
    config.train.num_steps = 390_400
    config.train.keep_every = 97_600
    config.train.checkpoint_every = 4_880
    config.train.sample_every = 4_880
    config.train.learning_rate = 2e-4  # DDPM
    config.train.warmup_steps = 5000  # DDPM
    config.train.grad_clip = 1.0  # DDPM
    config.train.ema_decay = 0.9996  # over as many images as DDPM's 0.9999 at batches of 128
    config.train.max_skipped = 10

    # A tenth of Alg. 2's steps, so that the whole curve takes an hour or two: EDM's sampler has 35 evaluations.
    config.sampling.sampler = 'dpm_solver_2m'
    config.sampling.grid = 'rho(logsnr_min=-8.76, logsnr_max=12.43)'  # EDM's sigma from 80 to 0.002
    config.sampling.num_steps = 32
    config.sampling.batch_size = 1024
    config.sampling.num_samples = 100

    # Where the curve of CIFAR-10 bends.
    config.eval.w = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)
    config.eval.batch_size = 256

    config.report.w = (0.0, 0.2, 1.0, 4.0)

    return config
