"""The nouns of an algorithm: columns, packed tokens, global totals, and the shape of every kind of plug-in.

A plug-in is one file: `estimators/grpo.py` is `estimator: grpo`. Its options are the fields of its
dataclass. It declares the columns that it `needs` and is called with exactly those, each under its name and
shape letter (`old_logp_T`).
Shape letters: N trajectories of the batch, T packed tokens held here, G prompts (groups).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args, runtime_checkable

import torch
from torch import Tensor

from hybridrl import registry

ScalarColumn = Literal["length"]
"""One value per trajectory. length: trained tokens."""

TokenColumn = Literal["rollout_logp", "old_logp", "ref_logp", "value", "token_reward"]
"""One value per token, aligned with it, 0 where the loss mask is 0. token_reward: the outcome reward on the
last trained token, less the KL penalty of each token when KL is in the reward; `load_estimator` makes it and
does not ask for it."""

Column = ScalarColumn | TokenColumn

SCALAR_COLUMNS: frozenset[str] = frozenset(get_args(ScalarColumn))
TOKEN_COLUMNS: frozenset[str] = frozenset(get_args(TokenColumn))


def argument(column: str) -> str:
    """The parameter under which a plug-in receives a column: "length" -> "length_N", "old_logp" ->
    "old_logp_T"."""
    return f"{column}_N" if column in SCALAR_COLUMNS else f"{column}_T"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Where packed tokens belong. Tokens of a trajectory are neighbours, in their order."""

    seq_T: Tensor
    """int64: trajectory of each token, in [0, num_seqs). For an estimator it indexes the whole batch
    (num_seqs = N), so that per-trajectory sums of different ranks add up; in a microbatch any numbering will
    do, and numbers may be unused."""

    mask_T: Tensor
    """bool: True at tokens that are trained on; never at prompt, tool or observation tokens."""

    num_seqs: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Denominators of the whole minibatch, the same on every rank: nothing divides by a local count."""

    num_tokens: int
    """Trained tokens."""

    num_sequences: int


class Reduce(Protocol):
    """Elementwise reduction over the data-parallel ranks. *Collective*: all of them call it, in the same
    order."""

    def sum(self, value: Tensor) -> Tensor: ...

    def max(self, value: Tensor) -> Tensor: ...


class OneRank:
    """The reduction of a single rank."""

    def sum(self, value: Tensor) -> Tensor:
        return value

    def max(self, value: Tensor) -> Tensor:
        return value


@dataclass(slots=True)
class Metrics:
    """Named numbers of one microbatch on one rank, already divided by global totals, detached."""

    sum: dict[str, Tensor] = field(default_factory=dict)
    """Summing them over microbatches and ranks gives the global value."""

    max: dict[str, Tensor] = field(default_factory=dict)
    """The largest over microbatches and ranks is the global value."""

    def merge(self, other: "Metrics") -> "Metrics":
        """Metrics of both, as a new object; associative, with Metrics() as its neutral element."""
        sums, largest = dict(self.sum), dict(self.max)
        for name, value in other.sum.items():
            sums[name] = sums[name] + value if name in sums else value
        for name, value in other.max.items():
            largest[name] = torch.maximum(largest[name], value) if name in largest else value
        return Metrics(sums, largest)


class Advantage(NamedTuple):
    """What a token-level estimator returns."""

    advantage_T: Tensor
    """0 where the loss mask is 0."""

    return_T: Tensor | None = None
    """Target of the value function; None without one."""


class AdvantageEstimator(Protocol):
    """How good each trajectory, or each token, was. Pure: same inputs, same output.

    If `needs` names scalar columns only, it runs on the controller over the whole batch:

        estimator(reward_N=..., group_N=..., length_N=...) -> advantage_N

    If it names a token column, it runs on every data-parallel rank over the trajectories held there, with
    scalars in full:

        estimator(reward_N=..., group_N=..., tokens=..., reduce=..., value_T=...) -> Advantage

    A group-relative estimator has `min_group_size = 2`: one sample per prompt is then refused before the
    run. Groups that shrink to one trajectory during a run (dynamic sampling) get advantage 0 and are counted.
    """

    needs: frozenset[Column]

    def __call__(self, reward_N: Tensor, group_N: Tensor, **columns: Any) -> Tensor | Advantage: ...


@runtime_checkable
class TokenForm(Protocol):
    """An estimator on scalars that is a different formula once rewards differ from token to token."""

    per_token: bool
    """The options already ask for the token-level form (discounting); a KL penalty in the reward always
    does."""

    def over_tokens(self, token_reward_T: Tensor, tokens: Tokens, reduce: Reduce) -> Advantage: ...


class TokenLoss(NamedTuple):
    """What a policy loss returns: token columns, to be masked and aggregated by the objective."""

    loss_T: Tensor
    """To minimise; the gradient flows through it."""

    mean: Mapping[str, Tensor] = {}
    """Metric name -> column whose mean over trained tokens is reported."""


class PolicyLoss(Protocol):
    """Loss of every token. `needs` names token columns; called as loss(logp_T=, advantage_T=, tokens=,
    old_logp_T=, ...)."""

    needs: frozenset[Column]

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, **columns: Tensor
    ) -> TokenLoss: ...


class KL(Protocol):
    """Divergence of the policy from the reference at every token, from one sampled token each."""

    needs: frozenset[Column]
    """Beyond ref_logp."""

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor, **columns: Tensor) -> Tensor: ...


class Aggregate(Protocol):
    """This microbatch's share of one number over the minibatch: shares of microbatches and ranks add up to
    it."""

    def __call__(self, value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor: ...


Plugin = TypeVar("Plugin", bound=Callable)


def register_estimator(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("estimator", name)


def register_policy_loss(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("policy_loss", name)


def register_kl(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("kl", name)


def register_aggregate(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("aggregate", name)
