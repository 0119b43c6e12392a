"""The plain squared error of a value function.

Source: regression on returns.
Formula: (v - R)^2 / 2
Use: value pre-training, and wherever the clip slows the critic down.
"""

from torch import Tensor

from hybridrl.algorithms.base import TokenLoss, Tokens, register_value_loss


@register_value_loss("squared")
class Squared:
    """There is no clip."""

    def __call__(self, value_T: Tensor, return_T: Tensor, tokens: Tokens, old_value_T: Tensor) -> TokenLoss:
        return TokenLoss((value_T - return_T).square() / 2)
