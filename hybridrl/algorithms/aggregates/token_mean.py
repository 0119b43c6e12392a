"""Mean over all trained tokens of the minibatch.

Source: DAPO, arXiv:2503.14476
Formula: sum of L over trained tokens / number of trained tokens
Use: the default; long answers weigh as much as their tokens.
"""

from torch import Tensor

from hybridrl.algorithms.base import Tokens, Totals, register_aggregate
from hybridrl.algorithms.sequences import masked


@register_aggregate("token_mean")
class TokenMean:
    """Every trained token weighs the same."""

    def __call__(self, value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
        return masked(value_T, tokens).sum() / max(totals.num_tokens, 1)
