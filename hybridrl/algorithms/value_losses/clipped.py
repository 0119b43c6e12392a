"""PPO's value loss: the prediction may move only so far from the one before the update.

Source: Schulman et al. 2017, the reference implementation of PPO; arXiv:2005.12729
Formula: max((v - R)^2, (clip(v, v_old - clip, v_old + clip) - R)^2) / 2
Use: with estimator gae.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridrl.algorithms.base import TokenLoss, Tokens, register_value_loss


@register_value_loss("clipped")
@dataclass(frozen=True, kw_only=True, slots=True)
class Clipped:
    """The larger of the plain and the clipped squared error."""

    clip: float = 0.5
    """Largest change of the prediction, in units of the return; 0.5 in verl, 0.2 in slime, OpenRLHF and
    NeMo-RL."""

    def __call__(self, value_T: Tensor, return_T: Tensor, tokens: Tokens, old_value_T: Tensor) -> TokenLoss:
        free_T = (value_T - return_T).square()
        near_T = torch.minimum(torch.maximum(value_T, old_value_T - self.clip), old_value_T + self.clip)
        bounded_T = (near_T - return_T).square()
        clipped_T = (bounded_T > free_T).to(value_T.dtype)
        return TokenLoss(torch.maximum(free_T, bounded_T) / 2, {"critic/vf_clipfrac": clipped_T})
