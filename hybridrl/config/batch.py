"""Keys about the groups of a step: how many, how old, and in which order."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hybridrl.config.section import Section


class BatchConfig(Section):
    """The sizes of a policy update: prompts, minibatches, epochs, and how old a trajectory may be."""

    prompts_per_step: PositiveInt = 64
    """Prompts answered for one policy update."""

    minibatch_prompts: PositiveInt | None = None
    """Prompts of one optimizer step; divides prompts_per_step. None: all, one optimizer step an epoch."""

    epochs: PositiveInt = 1
    """Passes over the trajectories of a step."""

    max_lag: NonNegativeInt = 0
    """How many policy updates old a trajectory may be. 0 is on-policy; 1 or more overlap rollout and
    training."""

    skip_zero_advantages: bool = True
    """Trajectories of advantage 0, as those of a group whose rewards are all equal, are not computed where
    they change neither loss nor gradient: without a KL term, an entropy bonus, or a loss over the batch. They
    count in all denominators; metrics of the policy are means over the computed tokens."""

    order: Literal["fifo", "finished"] = "fifo"
    """Which groups a step trains on. fifo: the next ones in the order of their prompts. finished: those that
    ended first, unless an older group could then not be trained within max_lag."""

    stale: Literal["wait", "mask", "drop"] = "wait"
    """What order: finished does about a group that would exceed max_lag. wait: the step waits for it. mask:
    tokens that are too old are not trained on, and the reward counts in the group's baseline. drop: the group
    is ended and counted."""

    oversample: float | None = Field(default=None, ge=1.0)
    """Groups that are open at once, for each one that a step trains on. None: max_lag + 1, as many as can
    be trained in time."""

    unfinished: Literal["carry", "abort"] | None = None
    """What becomes of open groups when a step has its groups. carry: they go on, with their tokens and
    versions. abort: they end, and their prompts start first in the next step, with the same seeds. None:
    carry if max_lag is above 0, else abort."""

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of one policy update."""
        return self.prompts_per_step // (self.minibatch_prompts or self.prompts_per_step) * self.epochs
