"""Makes the optimizer: clipping, AdamW, and the learning rate over the steps."""

import optax


def optimizer(
    *,
    learning_rate: float,
    warmup_steps: int,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_clip: float,
    decay_steps: int = 0,
) -> optax.GradientTransformation:
    """Returns global-norm clipping and then AdamW; weight decay applies to every parameter, as in ADM.

    Args:
      warmup_steps, decay_steps: see `learning_rate_schedule`; 0 for none.
      grad_clip: the largest global norm that passes unchanged; 0 for no clipping.
    """
    rate = learning_rate
    if warmup_steps > 1 or decay_steps:
        rate = learning_rate_schedule(learning_rate, warmup_steps=warmup_steps, decay_steps=decay_steps)
    # Without clipping the chain keeps its structure, so that a run may go on with or without it.
    clip = optax.clip_by_global_norm(grad_clip) if grad_clip else optax.identity()
    return optax.chain(clip, optax.adamw(rate, b1=beta1, b2=beta2, weight_decay=weight_decay))


def learning_rate_schedule(learning_rate: float, *, warmup_steps: int, decay_steps: int = 0) -> optax.Schedule:
    """Returns the rate after i updates: (i + 1) / warmup_steps of `learning_rate` at first, then all of it.

    With `decay_steps` that is multiplied by 1 - i / decay_steps, and 0 afterwards (ADM's `anneal_lr`).
    """
    warm = optax.constant_schedule(learning_rate)
    if warmup_steps > 1:
        warm = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    if not decay_steps:
        return warm
    left = optax.linear_schedule(1.0, 0.0, decay_steps)
    return lambda count: warm(count) * left(count)
