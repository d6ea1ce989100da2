"""Training: the state, the step, checkpoints and the loop around them."""
