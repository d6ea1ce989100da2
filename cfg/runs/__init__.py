"""Shows a workdir as others see it: its checkpoints, a trained run, the networks beside it."""
