"""LUSPO: GSPO without the division by length, so that long answers are not undervalued.

Source: Liu et al. 2026, "Length-Unbiased Sequence Policy Optimization", arXiv:2602.05261.
Formula: the GSPO loss of an answer times its length, mean over answers
Use: where GSPO makes answers shorter and shorter.
"""

from dataclasses import dataclass
from typing import ClassVar

from hybridrl.algorithms.base import register_policy_loss
from hybridrl.algorithms.policy_losses.gspo import GSPO


@register_policy_loss("luspo")
@dataclass(frozen=True, kw_only=True, slots=True)
class LUSPO(GSPO):
    """The token losses of GSPO; the aggregation mode makes the difference."""

    aggregates: ClassVar[frozenset[str]] = frozenset({"seq_mean_token_sum", "seq_mean_token_sum_norm"})
