"""M2PO: the stalest tokens are left out until the second moment of the log ratio is small; there is no clip.

Source: Zheng et al. 2025, "Prosperity before Collapse", arXiv:2510.01161
Formula: L = -keep r A, r = pi / pi_engine; keep: drop the largest (old_logp - rollout_logp)^2 until the mean
    of the rest <= tau
Use: data many updates old. Staleness is measured before the update, over the whole batch.
Shape letters: T packed tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, Known, Prepared, Reduce, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.ratios import log_ratio
from hybridrl.algorithms.selection import smallest_with_mean


@register_policy_loss("m2po")
@dataclass(frozen=True, kw_only=True, slots=True)
class M2PO:
    """The unclipped surrogate on the tokens that are fresh enough."""

    tau: float = 0.04
    """Bound on the mean squared log ratio of the tokens that stay."""

    needs: ClassVar[frozenset[Column]] = frozenset({"rollout_logp", "kept"})
    makes: ClassVar[frozenset[Column]] = frozenset({"kept"})

    def __post_init__(self) -> None:
        if self.tau <= 0:
            raise ValueError(f"tau = {self.tau} is not positive")

    def prepare(self, known: Known, reduce: Reduce) -> Prepared:
        moved_T = log_ratio(known.columns["old_logp"], known.columns["rollout_logp"])
        kept_T = smallest_with_mean(moved_T.square(), self.tau, known.tokens, reduce)
        num_tokens = reduce.sum(known.tokens.mask_T.sum()).clamp(min=1)
        metrics = {"actor/m2po_masked": 1 - reduce.sum(kept_T.sum()) / num_tokens}
        return Prepared({"kept": kept_T.to(moved_T.dtype)}, metrics)

    def __call__(
        self,
        logp_T: Tensor,
        advantage_T: Tensor,
        tokens: Tokens,
        rollout_logp_T: Tensor,
        kept_T: Tensor,
    ) -> TokenLoss:
        return TokenLoss(-kept_T * log_ratio(logp_T, rollout_logp_T).exp() * advantage_T)
