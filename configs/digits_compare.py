"""Compares guidance rules on the digits, where guidance has something to mend: an early checkpoint, few steps.

It is trained by the same config, as autoguidance needs a checkpoint that configs/digits.py does not keep. The
classifier is that of configs/digits_classifier.py. docs/digits.md has the commands and the result.

`configs/digits_compare.py:PART` sweeps a part, into one workdir: 'rules' (the default), 'steps' (half of the
steps, so that guided samples cost what unguided ones did), 'samplers' (DDIM, for which CFG++ was made), or 'twins'
(every rule at one w, with its twin; docs/guidance.md).
"""

from configs import digits

W = (0.2, 0.35, 0.5, 1.0)
CFG_PLUS_PLUS = 'cfg_plus_plus(w=(-0.5, -0.2, -0.1, 0.0))'  # its lambda is 1 + w, in [0, 1]

TWINNED = (
    *('cfg', 'cfg(interval=(-3, 3))', "cfg(schedule='cosine')", "cfg(against='random')"),
    *('cfg(anneal_label=(0.6, 0.9, 0.25, 1.0))', 'autoguidance(step=100)', "rescale(prediction='eps')", 'apg'),
    *('power(alpha=0.5)', 'cfg_zero', 'tcfg', 'fdg', 'adaptive', 'rectified_gradient', 'time_step'),
    *('perturbed_attention', 'blurred_attention', 'feedback', "classifier(workdir='runs/digits_classifier')"),
    'cfg_plus_plus(w=-0.2)',
)


def get_config(part='rules'):
    """Returns the digits of step 300, with every rule at the same few w. The values are ours; no rule was tuned."""
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
        CFG_PLUS_PLUS,
        "rescale(prediction='eps')",
        'apg',
        "classifier(workdir='runs/digits_classifier', w=(0.35, 0.5, 1.0, 1.7))",
        "classifier(workdir='runs/digits_classifier', model='unconditional', w=(1.0, 3.0, 6.0))",
        'scaled_score',
        'temperature',
    )
    if part == 'steps':
        config.eval.w = (0.35, 0.5)
        config.eval.guidance = ('cfg', 'cfg(interval=(-3, 3))', "cfg(schedule='cosine')")
        config.eval.num_steps = (8,)
    elif part == 'samplers':
        config.eval.guidance = (f'cfg(w={(0.0, *W)})', CFG_PLUS_PLUS)
        config.eval.sampler = ('ddim',)
    elif part == 'twins':
        config.eval.w = (0.5,)
        config.eval.guidance = TWINNED
        config.report.twin_samples = 200
    elif part != 'rules':
        raise ValueError(f"configs/digits_compare.py:{part} must be one of 'rules', 'steps', 'samplers', 'twins'.")

    return config
