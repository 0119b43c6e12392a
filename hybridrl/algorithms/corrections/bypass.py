"""Bypass: the engine's probabilities stand for the trainer's before the update.

Source: an option of verl, slime and prime-rl.
Formula: old_logp := rollout_logp
Use: to save a forward pass; ratios then hold drift and mismatch together, and the first ratio is not 1.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction


@register_correction("bypass")
class Bypass:
    """Changes no weight: the objective takes old_logp from the engine when this is among its corrections."""

    replaces_old_logp: ClassVar[bool] = True

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        return weight_T
