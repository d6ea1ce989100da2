"""Trains on class-conditional ImageNet at 32x32 on one GPU; TFDS downloads the images (docs/one_gpu.md).

They are those of Chrabaszcz et al. (2017, arXiv 1707.08819), squeezed to squares and not cropped. Values are those of
configs/cifar10.py, or ours.
"""

from configs import cifar10


def get_config():
    """Changes what differs from CIFAR-10: more classes, more images, a wider network."""
    config = cifar10.get_config()
    config.data.name = 'imagenet_resized32'
    config.model.channels = 192  # ADM, Table 11, at 64x64
    config.model.attention_resolutions = (16, 8)  # the same
    config.model.dropout = 0.1  # the same
    config.train.grad_accum = 2  # for 24 GB of memory
    config.eval.w = (*(i / 10 for i in range(0, 10, 2)), 1.0, 1.5, 2.0, 3.0, 4.0)  # of the paper's rows
    config.report.w = (0.0, 0.4, 1.0, 4.0)
    return config
