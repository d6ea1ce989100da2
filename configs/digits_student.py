"""Distils the guidance of a digits run into one network that takes w as an input (docs/students.md)."""

from configs import digits


def get_config():
    """Returns the config of the student of `runs/digits`. The values are ours, chosen for a 2-core CPU."""
    config = digits.get_config()

    config.train.kind = 'student'
    config.train.teacher_workdir = 'runs/digits'
    config.train.weighting = 'eps'  # as the network predicts eps
    config.train.num_steps = 600
    config.train.learning_rate = 5e-4

    config.sampling.guidance = 'one_pass'
    config.eval.steps = (600,)

    return config
