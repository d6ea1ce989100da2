"""Names the sizes of the comparison with openai/guided-diffusion: --config=benchmarks/config.py:medium_32."""

from cfg.runtime.errors import UserError
from configs import default

# image size, channels, channel_mult, heights with attention, batch size
SIZES = {
    'medium_32': (32, 128, (1, 2, 2, 2), (16,), 16),
    'small_16': (16, 64, (1, 2), (8,), 128),
    'small_8': (8, 64, (1, 2), (4,), 128),
}


def get_config(name: str = ''):
    """Returns a config for timing: only the shapes mean something.

    Raises:
      UserError: when the name is none of `SIZES`.
    """
    if name not in SIZES:
        raise UserError(f'benchmarks/config.py:{name} is not a size: give one of {", ".join(SIZES)} after the colon.')
    image_size, channels, channel_mult, attention, batch_size = SIZES[name]
    config = default.get_config()
    config.data.name = 'imagenet'
    config.data.image_size = image_size
    config.model.channels = channels
    config.model.channel_mult = channel_mult
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = attention
    config.model.head_channels = 64
    config.model.dropout = 0.0
    config.train.batch_size = batch_size
    config.sampling.batch_size = batch_size
    return config
