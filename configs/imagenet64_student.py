"""Distils the guidance of the paper's 64x64 model into one network that takes w as an input (docs/students.md)."""

from configs import imagenet64


def get_config():
    """Returns the config of stage one of Meng et al. 2022 (arXiv 2210.03142); what they do not state is ours."""
    config = imagenet64.get_config()

    config.train.kind = 'student'
    config.train.teacher_workdir = 'runs/imagenet64'
    config.train.weighting = 'eps'  # as the paper's network predicts eps
    config.train.num_steps = 100_000
    config.train.learning_rate = 1e-4

    config.sampling.guidance = 'one_pass'

    return config
