"""Mean over trajectories of the sum over their tokens, divided by the longest length allowed.

Source: Dr. GRPO, arXiv:2503.20783
Formula: sum of L over trained tokens / (number of trajectories * max_response_tokens)
Use: with dr_grpo. The divisor is the limit in the config, never the longest answer of a batch: the step size
    is constant.
"""

from dataclasses import dataclass

from torch import Tensor

from hybridrl.algorithms.base import Tokens, Totals, register_aggregate
from hybridrl.algorithms.sequences import masked


@register_aggregate("seq_mean_token_sum_norm")
@dataclass(frozen=True, kw_only=True, slots=True)
class SeqMeanTokenSumNorm:
    """It has no length bias, and its magnitude is that of a token mean."""

    max_response_tokens: int
    """Filled in from rollout.max_response_tokens."""

    def __call__(self, value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
        return masked(value_T, tokens).sum() / (max(totals.num_sequences, 1) * self.max_response_tokens)
