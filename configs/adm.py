"""Describes the networks that Dhariwal & Nichol (2021) released: to import, then to sample and evaluate.

Give the name after a colon: --config=configs/adm.py:64, :128, :256, :256_uncond or :512. Settings: their README's
flags. They were trained on 1000 discrete steps with learned variances; logsnr stays within the levels of those steps.
"""

from configs import default

NAMES = ('64', '128', '256', '256_uncond', '512')


def get_config(name: str = ''):
    """Returns the config of one released network."""
    if name not in NAMES:
        raise ValueError(f'give the network after a colon, configs/adm.py:NAME with NAME one of {", ".join(NAMES)}')
    config = default.get_config()
    size = int(name.split('_')[0])

    config.data.name = 'imagenet'
    config.data.image_size = size
    config.model.learned_variance = True
    config.sampling.w = (0.0,)  # they have no null label: any other w needs sampling.uncond_workdir
    config.sampling.logvar_interp = 0.3 if size == 64 else 0.2

    if size == 64:
        config.model.time = 'adm_cosine'
        config.diffusion.logsnr_min = -19.8
        config.diffusion.logsnr_max = 10.09
        return config

    config.model.time = 'adm_linear'
    config.diffusion.logsnr_min = -10.1
    config.diffusion.logsnr_max = 9.2
    config.model.dropout = 0.0
    config.model.channels = 256
    config.model.num_res_blocks = 2
    config.model.channel_mult = {
        128: (1, 1, 2, 3, 4),
        256: (1, 1, 2, 2, 4, 4),
        512: (0.5, 1, 1, 2, 2, 4, 4),
    }[size]
    config.adm.new_attention_order = False
    config.classifier.num_res_blocks = 2
    config.classifier.channel_mult = config.model.channel_mult
    config.sampling.batch_size = {128: 128, 256: 32, 512: 8}[size]
    if size == 128:
        config.model.num_heads = 4
        config.model.head_channels = 0
    if name == '256_uncond':
        config.sampling.w = (-1.0,)  # without classes, all of the network is the unconditional prediction
    return config
