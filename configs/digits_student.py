"""Distils a guided model of the digits into one pass a step, and then into fewer and fewer steps (docs/students.md).

--config=configs/digits_student.py:PART, where PART is 'teacher', 'guided' (its student, at all levels), or the number
of steps of a student of the one with twice as many: '32', '16', '8', '4', '2', '1'. `make students` runs these. Beside
them are 'guidance_free', which has no teacher, and '16_stochastic', '8_stochastic' and '4_stochastic', students of as
many steps of forth_and_back, each of the one with as many of ddim.
"""

from cfg.runtime.errors import UserError
from configs import digits

FOLDER = 'runs/students'
STEPS = 64  # of the teacher
LADDER = ('teacher', 'guided', '32', '16', '8', '4', '2', '1')
STOCHASTIC = ('16_stochastic', '8_stochastic', '4_stochastic')
PARTS = (*LADDER, 'guidance_free', *STOCHASTIC)


def get_config(part: str = 'guided'):
    """Returns the config of one part. The values are ours, chosen for a 2-core CPU.

    Raises:
      UserError: when the part is none of `PARTS`.
    """
    if part not in PARTS:
        raise UserError(f'configs/digits_student.py:{part} is no part: give one of {", ".join(PARTS)} after the colon.')
    config = digits.get_config()

    # In a few steps too little of x is left in eps (Salimans & Ho 2022).
    config.diffusion.prediction = 'v'
    config.train.num_steps = 300  # where guidance has something to mend
    config.train.sample_every = 300
    config.sampling.sampler = 'ddim'
    config.sampling.grid = 'nested'
    config.sampling.num_steps = STEPS
    config.eval.steps = ()
    if part == 'teacher':
        return config

    config.sampling.guidance = 'one_pass'
    if part == 'guidance_free':
        config.train.kind = part
        return config

    config.model.dropout = 0.0
    config.train.kind = 'student'
    config.train.learning_rate = 5e-4
    steps, _, stochastic = part.partition('_')
    config.train.teacher_workdir = f'{FOLDER}/{steps if stochastic else LADDER[LADDER.index(part) - 1]}'
    if part == 'guided':
        config.train.num_steps = 1100  # with 300 it draws at w = 0 what the teacher draws at 0.3
        return config

    config.train.teacher_guidance = 'one_pass'
    config.train.student_steps = config.sampling.num_steps = int(steps)
    if stochastic:
        config.train.student_sampler = config.sampling.sampler = 'forth_and_back'
    return config
