"""PRIME: process rewards from a model that is trained on outcomes only, added to the outcome itself.

Source: Cui et al. 2025, "Process Reinforcement through Implicit Rewards", arXiv:2502.01456
Formula: p_t = beta (process_logp - ref_logp); A_t = sum_{u>=t} discount^{u-t} (p_u - mean over others of
    their mean p) + s_i - mean over others of s; then whitened over all trained tokens
Use: dense credit on long answers without step labels; train the process model with `implicit_reward_loss`
    every step.
Shape letters: T packed tokens held here, N trajectories of the batch.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from hybridrl.algorithms.base import Advantage, Column, Reduce, Tokens, register_estimator
from hybridrl.algorithms.groups import check_rewards, group_size, group_sum
from hybridrl.algorithms.sequences import discounted_sum, masked, sequence_length, sequence_sum, whiten


@register_estimator("prime")
@dataclass(frozen=True, kw_only=True, slots=True)
class PRIME:
    """Leave-one-out returns of implicit process rewards and of the outcome, whitened."""

    beta: float = 0.05
    """Reward per nat by which the process model's log-probability exceeds the reference's."""

    discount: float = 1.0
    """Discount of process rewards per trained token, in (0, 1]."""

    eps: float = 1e-8
    """Added to the variance of whitening, under the root."""

    needs: ClassVar[frozenset[Column]] = frozenset({"process_logp", "ref_logp"})
    min_group_size: ClassVar[int] = 2

    def __call__(
        self,
        reward_N: Tensor,
        group_N: Tensor,
        tokens: Tokens,
        reduce: Reduce,
        process_logp_T: Tensor,
        ref_logp_T: Tensor,
    ) -> Advantage:
        """*Collective*. The advantages, [T]."""
        check_rewards(reward_N, group_N)
        process_T = masked(self.beta * (process_logp_T - ref_logp_T), tokens)
        length_N = reduce.sum(sequence_length(tokens, process_T.dtype)).clamp(min=1)
        mean_N = reduce.sum(sequence_sum(process_T, tokens)) / length_N
        others_N = _others_mean(mean_N, group_N)
        return_T = discounted_sum(process_T - others_N[tokens.seq_T], self.discount, tokens)
        outcome_N = reward_N - _others_mean(reward_N, group_N)
        advantage_T = return_T + outcome_N[tokens.seq_T]
        return Advantage(masked(whiten(advantage_T, tokens.mask_T, reduce, eps=self.eps), tokens))


def _others_mean(value_N: Tensor, group_N: Tensor) -> Tensor:
    """Mean over the other answers to the prompt, [N]; the value itself if there are none, so that the
    difference is 0."""
    size_N = group_size(group_N, value_N.dtype)
    others_N = (group_sum(value_N, group_N) - value_N) / (size_N - 1).clamp(min=1)
    return others_N.where(size_N > 1, value_N)


def implicit_reward_loss(
    process_logp_T: Tensor,
    ref_logp_T: Tensor,
    solved_N: Tensor,
    tokens: Tokens,
    *,
    beta: float,
    num_sequences: int,
) -> Tensor:
    """This microbatch's share of the cross entropy that trains the process model on outcomes.

    Args:
        process_logp_T: log-probabilities with a gradient.
        solved_N: 0 or 1 per trajectory of `tokens`.
        num_sequences: trajectories of the whole minibatch.
    """
    logit_N = sequence_sum(beta * (process_logp_T - ref_logp_T), tokens)
    present_N = sequence_length(tokens, logit_N.dtype) > 0
    losses_N = binary_cross_entropy_with_logits(logit_N, solved_N.to(logit_N.dtype), reduction="none")
    return losses_N[present_N].sum() / num_sequences
