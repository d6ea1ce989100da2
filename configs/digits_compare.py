"""Guidance rules compared on the digits, where guidance has something to mend: an early checkpoint, few steps.

It is trained by the same config, as autoguidance needs a checkpoint that configs/digits.py does not keep. The
classifier is that of configs/digits_classifier.py. docs/digits.md has the commands and the result.
"""

from configs import digits

W = (0.3, 1.0, 3.0)


def get_config():
    """The digits of step 300, with every rule at a few w. Values: ours; no rule was tuned."""
    config = digits.get_config()

    config.train.num_steps = 300
    config.train.keep_every = 100

    config.sampling.sampler = 'dpm_solver_2m(stochastic=True)'
    config.sampling.grid = 'uniform'
    config.sampling.num_steps = 16
    config.eval.steps = (300,)
    config.eval.w = W
    config.eval.guidance = (
        f'cfg(w={(0.0, *W)})',
        'cfg(interval=(-3, 3))',
        "cfg(schedule='cosine')",
        "cfg(against='random')",
        'autoguidance(step=100)',
        'cfg_plus_plus(w=(-0.9, -0.8, -0.5))',
        "rescale(prediction='eps')",
        'apg',
        "classifier(workdir='runs/digits_classifier')",
        "classifier(workdir='runs/digits_classifier', model='unconditional')",
        'scaled_score',
        'temperature',
    )

    return config
