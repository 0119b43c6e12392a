"""Sum over all trained tokens of the minibatch.

Source: the policy gradient theorem, without a normaliser.
Formula: sum of L over trained tokens
Use: to reproduce work that sums; the learning rate then depends on batch size and length.
"""

from torch import Tensor

from hybridrl.algorithms.base import Tokens, Totals, register_aggregate
from hybridrl.algorithms.sequences import masked


@register_aggregate("token_sum")
class TokenSum:
    """There is no denominator."""

    def __call__(self, value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor:
        return masked(value_T, tokens).sum()
