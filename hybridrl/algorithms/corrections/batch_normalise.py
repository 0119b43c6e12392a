"""Divides the weights so far by their mean in the batch.

Source: self-normalised importance sampling; an option of verl.
Formula: w <- w / mean of w over the trained tokens of the batch
Use: after a truncation or a mask, to keep the size of the step.
"""

import torch
from torch import Tensor

from hybridrl.algorithms.base import Reduce, Tokens, register_correction
from hybridrl.algorithms.sequences import masked


@register_correction("batch_normalise")
class BatchNormalise:
    """Keeps the mean weight at 1."""

    def __call__(self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce) -> Tensor:
        sums = torch.stack([masked(weight_T, tokens).double().sum(), tokens.mask_T.sum().double()])
        total, count = reduce.sum(sums)
        # If all weights are 0, there is no mean to divide by.
        return weight_T if total == 0 else weight_T * (count / total).to(weight_T.dtype)
