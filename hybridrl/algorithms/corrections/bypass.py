"""Bypass: the engine's log-probabilities replace those of the trainer before the update.

Source: an option of verl, slime and prime-rl.
Formula: old_logp := rollout_logp
Use: to save a forward pass; ratios then contain both policy change and engine mismatch, and the first ratio
    is not 1.
"""

from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction


@register_correction("bypass")
class Bypass:
    """It changes no weight: the objective takes old_logp from the engine if this is among its corrections."""

    replaces_old_logp: ClassVar[bool] = True

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        return weight_T
