"""Mean over trajectories of the sum over their tokens.

Source: REINFORCE over whole answers, as in RLOO, arXiv:2402.14740.
Formula: sum of L over trained tokens / number of trajectories
Use: an answer is one action.
"""

from torch import Tensor

from hybridrl.algorithms.base import Tokens, Totals, register_aggregate
from hybridrl.algorithms.sequences import masked


@register_aggregate("seq_mean_token_sum")
class SeqMeanTokenSum:
    """A trajectory without trained tokens adds 0 and still counts."""

    def __call__(self, value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
        return masked(value_T, tokens).sum() / max(totals.num_sequences, 1)
