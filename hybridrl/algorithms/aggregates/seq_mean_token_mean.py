"""Mean over trajectories of the mean over their tokens.

Source: GRPO, arXiv:2402.03300
Formula: sum over trajectories of (mean of L over its trained tokens) / number of trajectories
Use: the original GRPO, GSPO, SAPO; a token of a long answer weighs less.
"""

from torch import Tensor

from hybridrl.algorithms.base import Tokens, Totals, register_aggregate
from hybridrl.algorithms.sequences import sequence_mean


@register_aggregate("seq_mean_token_mean")
class SeqMeanTokenMean:
    """Every trajectory weighs the same; one without trained tokens adds 0 and still counts."""

    def __call__(self, value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
        return sequence_mean(value_T, tokens).sum() / max(totals.num_sequences, 1)
