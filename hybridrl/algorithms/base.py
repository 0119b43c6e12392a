"""The types of an algorithm: columns, packed tokens, global totals, and the interface of every kind of
plug-in.

A plug-in is one file: `estimators/grpo.py` is `estimator: grpo`. Its options are the fields of its
dataclass. It declares the columns that it `needs` and is called with exactly those, each under its name and
shape letter (`old_logp_T`).
Shape letters: N trajectories of the batch, T packed tokens held here, G prompts (groups).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from hybridrl import registry
from hybridrl.algorithms.columns import Column


@dataclass(frozen=True, slots=True)
class Tokens:
    """The trajectory of each packed token. The tokens of a trajectory are consecutive and in order."""

    seq_T: Tensor
    """int64: trajectory of each token, in [0, num_seqs). For an estimator it indexes the whole batch
    (num_seqs = N), so that per-trajectory sums of different ranks add up; in a microbatch any
    numbering is valid, and numbers may be unused."""

    mask_T: Tensor
    """bool: True at tokens that are trained on; never at prompt, tool or observation tokens."""

    num_seqs: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Denominators over the whole minibatch, the same on every rank: nothing divides by a local count."""

    num_tokens: int
    """Number of trained tokens."""

    num_sequences: int

    measured_tokens: int | None = None
    """Number of trained tokens that are computed, the denominator of metrics. None: all."""


class Reduce(Protocol):
    """Elementwise reduction over the data-parallel ranks. *Collective*: all call it, in the same order."""

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
    """Metrics of one microbatch on one rank, detached and already divided by global totals."""

    sum: dict[str, Tensor] = field(default_factory=dict)
    """Metrics whose sum over microbatches and ranks is the global value."""

    max: dict[str, Tensor] = field(default_factory=dict)
    """Metrics whose maximum over microbatches and ranks is the global value."""

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
    """Target of the value function; None if there is none."""


class AdvantageEstimator(Protocol):
    """Computes how good each trajectory, or each token, was. It is pure: the same inputs give the same
    output.

    If `needs` names scalar columns only, it runs on the controller over the whole batch:

        estimator(reward_N=..., group_N=..., length_N=...) -> advantage_N

    If it names any other column, it runs on every data-parallel rank over the trajectories held there, with
    the scalars of the whole batch:

        estimator(reward_N=..., group_N=..., tokens=..., reduce=..., value_T=...) -> Advantage

    An estimator whose advantages sum to 0 in each group sets `centred = "group"`, and every step is checked
    for it.
    A group-relative estimator has `min_group_size = 2`: one sample per prompt is then refused before the
    run. Groups that shrink to one trajectory during a run (dynamic sampling) get advantage 0 and are counted.
    """

    @property
    def needs(self) -> frozenset[Column]: ...

    def __call__(self, reward_N: Tensor, group_N: Tensor, **columns: Any) -> Tensor | Advantage: ...


class TokenForm(Protocol):
    """More attributes of a scalar estimator that has another formula for token rewards.

    It may also define token_rewards(reward_N, group_N, penalty_T, tokens) -> token_reward_T, where those are
    not the outcome at the last trained token minus the KL penalty at each.
    """

    @property
    def per_token(self) -> bool:
        """Whether the options demand the token-level form (by discounting); KL in the reward always demands
        it."""
        ...

    @property
    def token_needs(self) -> frozenset[Column]:
        """Columns that `over_tokens` is called with, besides the token rewards."""
        ...

    def over_tokens(
        self, token_reward_T: Tensor, tokens: Tokens, reduce: Reduce, **columns: Tensor
    ) -> Advantage: ...


@dataclass(frozen=True, slots=True)
class Known:
    """The data of a whole batch before its first optimizer step, on one data-parallel rank."""

    step: int
    reward_N: Tensor
    """Rewards of the whole batch, the same on every rank, as is group_N."""

    group_N: Tensor
    advantage_T: Tensor
    tokens: Tokens
    """The tokens held here; seq_T indexes the whole batch."""

    columns: Mapping[Column, Tensor]


class Prepared(NamedTuple):
    """What `Prepares.prepare` returns."""

    columns: dict[Column, Tensor]
    """Columns [T] that the loss is called with, in addition to its other columns."""

    metrics: dict[str, Tensor]
    """Global values, the same on every rank."""


class Prepares(Protocol):
    """More attributes of a policy loss that needs the whole batch before its first optimizer step.

    What depends on the whole batch (a quantile, a random choice, a mean) cannot be computed from a
    microbatch: it would change with the split. It is computed once, from the columns before the update, and
    handed to the loss as a column.
    """

    makes: frozenset[Column]
    """Columns that `prepare` makes: they are among `needs`, but no other part of a run provides them."""

    def prepare(self, known: Known, reduce: Reduce) -> Prepared:
        """*Collective*. `known.columns` holds old_logp and the other columns that the loss needs."""
        ...


class TokenLoss(NamedTuple):
    """What a policy loss returns: token columns, which the objective masks and aggregates."""

    loss_T: Tensor
    """Loss to minimise; the gradient flows through it."""

    mean: Mapping[str, Tensor] = {}
    """Metric name -> column whose mean over trained tokens is reported."""


class PolicyLoss(Protocol):
    """Loss of every token, called as loss(logp_T=, advantage_T=, tokens=, old_logp_T=, ...).

    `needs` names token columns. A loss that is defined for some aggregation modes only names them in
    `aggregates`.
    """

    @property
    def needs(self) -> frozenset[Column]: ...

    def __call__(
        self, logp_T: Tensor, advantage_T: Tensor, tokens: Tokens, **columns: Tensor
    ) -> TokenLoss: ...


class Shaping(Protocol):
    """Turns outcome rewards into new ones, on the controller; `needs` names scalar columns."""

    @property
    def needs(self) -> frozenset[Column]: ...

    def __call__(self, reward_N: Tensor, group_N: Tensor, **columns: Tensor) -> Tensor: ...


class Correction(Protocol):
    """Weighs every token to correct for the gap between the engine's probabilities and the trainer's.

    One that depends on more than their ratio names old_logp or rollout_logp in `needs`, and is called with
    them.
    """

    def __call__(
        self, weight_T: Tensor, log_ratio_T: Tensor, tokens: Tokens, reduce: Reduce, **columns: Tensor
    ) -> Tensor:
        """The new weights, [T]. *Collective*.

        Args:
            weight_T: weights from the corrections before this one, 1 at first.
            log_ratio_T: old_logp - rollout_logp, within +-20, 0 outside the loss mask.
            tokens: all tokens of the batch that are held here.
        """
        ...


class ValueLoss(Protocol):
    """Loss of a value function at every token."""

    def __call__(
        self, value_T: Tensor, return_T: Tensor, tokens: Tokens, old_value_T: Tensor
    ) -> TokenLoss: ...


class KL(Protocol):
    """Estimates the divergence of the policy from the reference at every token, from the sampled token."""

    @property
    def needs(self) -> frozenset[Column]:
        """Columns besides ref_logp."""
        ...

    def __call__(self, logp_T: Tensor, ref_logp_T: Tensor, **columns: Tensor) -> Tensor: ...


class Aggregate(Protocol):
    """Computes a microbatch's share of one number over the minibatch: the shares add up to it."""

    def __call__(self, value_T: Tensor, tokens: Tokens, totals: Totals) -> Tensor: ...


Plugin = TypeVar("Plugin", bound=Callable)


def register_estimator(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("estimator", name)


def register_policy_loss(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("policy_loss", name)


def register_kl(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("kl", name)


def register_shaping(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("shaping", name)


def register_correction(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("correction", name)


def register_value_loss(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("value_loss", name)


def register_aggregate(name: str) -> Callable[[Plugin], Plugin]:
    return registry.register("aggregate", name)
