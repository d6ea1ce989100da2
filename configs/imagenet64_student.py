"""Distils the guidance of a 64x64 ImageNet model into one pass a step, and into fewer steps (docs/students.md).

--config=configs/imagenet64_student.py is stage one, --config=configs/imagenet64_student.py:N a student of N steps of
one of 2N. The teacher predicts v: --config=configs/imagenet64.py --config.diffusion.prediction=v.
"""

from cfg.runtime.errors import UserError
from configs import imagenet64

STEPS = (128, 64, 32, 16, 8, 4, 2, 1)


def get_config(steps: str = ''):
    """Returns the config of a student (Meng et al. 2022, arXiv 2210.03142); what they do not state is ours.

    Raises:
      UserError: when `steps` is not a number of `STEPS`.
    """
    if steps and steps not in map(str, STEPS):
        raise UserError(
            f'configs/imagenet64_student.py:{steps} is no student: give one of {", ".join(map(str, STEPS))} after the '
            'colon, or nothing for stage one.'
        )
    config = imagenet64.get_config()

    config.diffusion.prediction = 'v'
    config.model.dropout = 0.0
    config.train.kind = 'student'
    config.train.teacher_workdir = 'runs/imagenet64_v'
    config.train.num_steps = 100_000
    config.train.learning_rate = 1e-4
    config.sampling.guidance = 'one_pass'
    config.sampling.sampler = 'ddim'
    config.sampling.grid = 'nested'
    if steps:
        config.train.num_steps = 50_000
        config.train.teacher_guidance = 'one_pass'
        config.train.student_steps = config.sampling.num_steps = int(steps)
        config.train.teacher_workdir = f'runs/imagenet64_student{"" if steps == "128" else 2 * int(steps)}'
    return config
