"""The learning-rate schedule, which every backend's optimizer follows."""

import math

from hybridrl.config.training import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0, in a run of `num_steps`.

    The first of `warmup_steps` takes lr / warmup_steps and the last one the full lr, so no step has a rate
    of 0.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.min_lr + (config.lr - config.min_lr) * left
