"""CoPG: contrastive policy gradient, which regresses differences of answers to the same prompt.

Source: Flet-Berliac et al. 2024, "Contrastive Policy Gradient", arXiv:2406.19185
Formula: mean over the other answers j of 1/2 ((R_i - R_j) - beta (h_i - h_j))^2, h = sum of (logp - ref_logp)
Use: with estimator rloo; off-policy data without importance weights. h_j is taken before the update, so the
    loss is a sum over answers; its gradient is exact in the first optimizer step of a batch.
Shape letters: T packed tokens, S trajectories of a microbatch, N of the batch.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hybridrl.algorithms.base import Column, Known, Prepared, Reduce, TokenLoss, Tokens, register_policy_loss
from hybridrl.algorithms.groups import group_size, group_sum
from hybridrl.algorithms.sequences import sequence_mean, sequence_sum, spread


@register_policy_loss("copg")
@dataclass(frozen=True, kw_only=True, slots=True)
class CoPG:
    """1/2 (A - beta (h - mean of the others' h))^2 of each answer, A = reward minus the mean of the
    others."""

    beta: float = 0.05
    """Reward per nat of divergence from the reference."""

    needs: ClassVar[frozenset[Column]] = frozenset({"ref_logp", "others_log_ratio"})
    makes: ClassVar[frozenset[Column]] = frozenset({"others_log_ratio"})
    aggregates: ClassVar[frozenset[str]] = frozenset({"seq_mean_token_sum"})

    def prepare(self, known: Known, reduce: Reduce) -> Prepared:
        here_N = sequence_sum(known.columns["old_logp"] - known.columns["ref_logp"], known.tokens)
        log_ratio_N = reduce.sum(here_N)
        size_N = group_size(known.group_N, log_ratio_N.dtype)
        others_N = (group_sum(log_ratio_N, known.group_N) - log_ratio_N) / (size_N - 1).clamp(min=1)
        return Prepared({"others_log_ratio": others_N[known.tokens.seq_T]}, {})

    def __call__(
        self,
        logp_T: Tensor,
        advantage_T: Tensor,
        tokens: Tokens,
        ref_logp_T: Tensor,
        others_log_ratio_T: Tensor,
    ) -> TokenLoss:
        beyond_S = sequence_sum(logp_T - ref_logp_T, tokens) - sequence_mean(others_log_ratio_T, tokens)
        return TokenLoss(
            spread((sequence_mean(advantage_T, tokens) - self.beta * beyond_S).square() / 2, tokens)
        )
