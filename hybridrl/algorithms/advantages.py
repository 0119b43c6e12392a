"""Loads the advantage estimator of a config, subtracts the KL penalty from its rewards and adds the term of
the teacher, if the config says so.

Shape letters: N trajectories of the batch, T packed tokens held here.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hybridrl.algorithms.base import Advantage, AdvantageEstimator, Reduce, Tokens
from hybridrl.algorithms.columns import Column, argument, on_ranks
from hybridrl.algorithms.groups import check_rewards
from hybridrl.algorithms.needs import (
    TEACHER_COLUMNS,
    inner_columns,
    takes_token_rewards,
    token_reward_columns,
)
from hybridrl.algorithms.plugins import build
from hybridrl.algorithms.rules import estimator_errors
from hybridrl.algorithms.sequences import at_last_token, masked, sequence_sum
from hybridrl.config.schema import AlgorithmConfig


def load_estimator(config: AlgorithmConfig) -> AdvantageEstimator:
    """The estimator that a config names, to be called as base.AdvantageEstimator describes.

    Raises:
        ConfigError: an unknown plug-in or option, or fewer samples per prompt than the estimator needs.
    """
    inner = build("estimator", config.estimator.name, config.estimator.options, where="algorithm.estimator")
    for error in estimator_errors(config, inner):
        raise error
    kl = build("kl", config.kl.estimator, {}, where="algorithm.kl.estimator")
    if takes_token_rewards(inner, kl if config.kl.in_reward else None):
        inner = WithTokenRewards(inner, kl, config.kl.coefficient if config.kl.in_reward else 0.0)
    return WithTeacher(inner, config.teacher_coefficient) if config.teacher_coefficient else inner


@dataclass(frozen=True, slots=True)
class WithTokenRewards:
    """Calls an estimator with token rewards: the outcome at the last token, minus a KL penalty at each token.

    An estimator that takes scalars only gets the sum over each trajectory.
    """

    inner: Any
    kl: Any
    kl_coefficient: float

    @property
    def needs(self) -> frozenset[Column]:
        return token_reward_columns(self.inner, self.kl if self.kl_coefficient else None)

    def check_parts(self, count: int) -> None:
        """Calls check_parts() of the inner estimator, if it has one."""
        if hasattr(self.inner, "check_parts"):
            self.inner.check_parts(count)

    @property
    def _columns(self) -> frozenset[Column]:
        """Columns of the inner estimator, without the token reward that is made here."""
        return inner_columns(self.inner)

    def __call__(
        self, reward_N: Tensor, group_N: Tensor, tokens: Tokens, reduce: Reduce, **columns: Tensor
    ) -> Advantage:
        """*Collective*.

        Args:
            reward_N, group_N: columns of the whole batch, the same on every rank.
            tokens: the tokens held here; seq_T indexes the whole batch.
        """
        check_rewards(reward_N, group_N)
        penalty_T = self._penalty(tokens, columns)
        token_reward_T = self._token_rewards(reward_N, group_N, penalty_T, tokens)
        own = {argument(c): columns[argument(c)] for c in self._columns}
        if hasattr(self.inner, "over_tokens"):
            return self.inner.over_tokens(token_reward_T, tokens, reduce, **own)
        if "token_reward" in self.inner.needs:
            return self.inner(
                reward_N, group_N, tokens=tokens, reduce=reduce, token_reward_T=token_reward_T, **own
            )
        net_reward_N = reward_N - reduce.sum(sequence_sum(penalty_T, tokens))
        if on_ranks(self._columns):
            return self.inner(net_reward_N, group_N, tokens=tokens, reduce=reduce, **own)
        advantage_N = self.inner(net_reward_N, group_N, **own)
        return Advantage(masked(advantage_N[tokens.seq_T], tokens))

    def _token_rewards(self, reward_N: Tensor, group_N: Tensor, penalty_T: Tensor, tokens: Tokens) -> Tensor:
        if hasattr(self.inner, "token_rewards"):
            return self.inner.token_rewards(reward_N, group_N, penalty_T, tokens)
        return at_last_token(reward_N, tokens) - penalty_T

    def _penalty(self, tokens: Tokens, columns: dict[str, Tensor]) -> Tensor:
        """The KL penalty of each token, [T], for the policy at the start of the step."""
        old_logp_T = columns["old_logp_T"]
        if not self.kl_coefficient:
            return old_logp_T.new_zeros(len(old_logp_T))
        own = {argument(c): columns[argument(c)] for c in self.kl.needs}
        kl_T = self.kl(logp_T=old_logp_T, ref_logp_T=columns["ref_logp_T"], **own)
        return self.kl_coefficient * masked(kl_T, tokens)


@dataclass(frozen=True, slots=True)
class WithTeacher:
    """Adds coefficient (teacher_logp - old_logp) to the advantage of every token: the sampled reverse KL
    divergence to the teacher, beside whatever the estimator computes from rewards."""

    inner: Any
    coefficient: float

    @property
    def needs(self) -> frozenset[Column]:
        return frozenset(self.inner.needs) | TEACHER_COLUMNS

    def check_parts(self, count: int) -> None:
        """Calls check_parts() of the inner estimator, if it has one."""
        if hasattr(self.inner, "check_parts"):
            self.inner.check_parts(count)

    def __call__(
        self, reward_N: Tensor, group_N: Tensor, tokens: Tokens, reduce: Reduce, **columns: Any
    ) -> Advantage:
        """*Collective*. The arguments are those of WithTokenRewards."""
        own = {argument(c): columns[argument(c)] for c in self.inner.needs}
        if on_ranks(self.inner.needs):
            found = self.inner(reward_N, group_N, tokens=tokens, reduce=reduce, **own)
        else:
            found = Advantage(self.inner(reward_N, group_N, **own)[tokens.seq_T])
        term_T = self.coefficient * (columns["teacher_logp_T"] - columns["old_logp_T"])
        return found._replace(advantage_T=masked(found.advantage_T + term_T, tokens))
