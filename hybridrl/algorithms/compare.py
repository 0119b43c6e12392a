"""Compares an algorithm as two frameworks compute it, on one batch: which choices differ, and how much it
matters.

Shape letters: N trajectories of the sample batch.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.base import Advantage, Known, OneRank
from hybridrl.algorithms.catalog import entries, flat
from hybridrl.algorithms.columns import argument, on_ranks
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.samples import RaggedBatch, ragged_batch
from hybridrl.config.compatibility import COMPATIBILITY
from hybridrl.config.frameworks.row import Row
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError

OURS = "hybridrl"

REASONS: Mapping[str, str] = {
    "estimator": "another formula for the advantage",
    "estimator.eps": "added to the std of the group: matters where rewards of a group hardly differ",
    "estimator.mean": "others: leave one out, so advantages are larger by n / (n - 1)",
    "estimator.std": "what the centred reward is divided by",
    "estimator.singleton": "what the only answer to a prompt trains on",
    "estimator.whiten": "a second normalisation, over the batch",
    "estimator.baseline": "what is subtracted from the outcome reward before whitening",
    "estimator.count": "which answers the advantages are scaled up to",
    "estimator.policy_lambda": "below 1 the advantage relies on the value function",
    "estimator.whiten_eps": "added to the variance of the batch",
    "estimator.penalty": "return: the KL of a token also lowers the advantage of all tokens before it",
    "estimator.bessel": "variance with n-1 or n: a factor sqrt(n / (n - 1)) over all tokens",
    "loss": "another formula for the policy loss",
    "loss.dual_clip": "bounds the loss of tokens with negative advantage",
    "loss.clip_high": "how far a good token may rise in one batch",
    "loss.clip_low": "how far a bad token may fall in one batch",
    "loss.level": "one ratio for each token, or for the whole answer",
    "loss.delta_low": "how far a probability, or its divergence, may fall",
    "loss.delta_high": "how far a probability, or its divergence, may rise",
    "loss.max_ratio": "bound on the importance weight",
    "loss.drift": "penalty on any move away from the old policy",
    "loss.outside": "weight of tokens whose ratio is out of bounds",
    "loss.since": "policy that the importance weight starts from",
    "loss.share": "how many tokens are chosen",
    "loss.coefficient": "weight of the penalty on the chosen tokens",
    "dynamic_sampling": "whether groups without a signal are replaced",
    "aggregate": "token means let long answers weigh more than means of answers do",
    "correction": "what old_logp is, and how tokens are weighed; bypass: the engine's log-probabilities",
    "hint.field": "what the teacher reads in addition to the prompt",
    "observations.coefficient": "weight of learning to predict what the environment writes",
    "observations.over": "whether an episode with few of the environment's tokens counts as much as another",
    "kl.estimator": "gradient and clamp of the divergence",
    "kl.in": "in the reward it reaches the advantage, in the loss it does not",
    "kl.coefficient": "weight of the divergence",
}
"""Why a choice matters, by its key."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A key in which the two frameworks differ."""

    key: str
    a: str
    b: str
    why: str


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One trajectory of the sample batch, and its mean advantage over trained tokens in each framework."""

    group: int
    reward: float
    length: int
    advantage_a: float
    advantage_b: float


@dataclass(frozen=True, slots=True)
class Difference:
    a: str
    b: str
    choices: tuple[Choice, ...]
    trajectories: tuple[Trajectory, ...]
    loss_a: float
    loss_b: float
    notes: tuple[str, ...]
    """What the rows of the frameworks leave out."""

    @property
    def max_abs_advantage(self) -> float:
        return max(abs(t.advantage_a - t.advantage_b) for t in self.trajectories)

    def lines(self) -> Iterator[tuple[str, str]]:
        """The difference as (heading, text); a line of the table has no heading."""
        for choice in self.choices:
            yield choice.key, f"{choice.a} | {choice.b}   {choice.why}"
        yield "", f"\n{'group':>5} {'reward':>7} {'length':>7} {self.a:>10} {self.b:>10}"
        for t in self.trajectories:
            numbers = f"{t.advantage_a:>10.6f} {t.advantage_b:>10.6f}"
            yield "", f"{t.group:>5} {t.reward:>7.3f} {t.length:>7} {numbers}"
        yield "", f"largest difference of an advantage {self.max_abs_advantage:.2e}"
        yield "", f"loss {self.loss_a:.8f} | {self.loss_b:.8f}"
        yield from (("", note) for note in self.notes)


def frameworks(algorithm: str) -> list[str]:
    """Names of frameworks that `diff` takes for an algorithm."""
    return [OURS, *COMPATIBILITY.get(algorithm, {})]


def diff(algorithm: str, a: str, b: str) -> Difference:
    """
    Raises:
        ConfigError: there is no such algorithm, or no row of a framework for it.
    """
    batch = ragged_batch(0, sizes=(4, 3, 4, 1))
    alone_N = torch.bincount(batch.group_N)[batch.group_N] == 1
    batch.reward_N = ((batch.reward_N > 0) | alone_N).double()
    rows = [_row(algorithm, name) for name in (a, b)]
    advantages_N, losses = zip(*(_numbers(row.algorithm, batch) for row in rows), strict=True)
    order = sorted(range(len(batch.reward_N)), key=lambda i: batch.groups[i])
    length = batch.columns["length"].tolist()
    trajectories = tuple(
        Trajectory(
            batch.groups[i], batch.rewards[i], length[i], float(advantages_N[0][i]), float(advantages_N[1][i])
        )
        for i in order
    )
    notes = tuple(f"{name}: {row.not_kept}" for name, row in zip((a, b), rows, strict=True) if row.not_kept)
    return Difference(a, b, _choices(*rows), trajectories, losses[0], losses[1], notes)


def _row(algorithm: str, framework: str) -> Row:
    rows = COMPATIBILITY.get(algorithm, {})
    if framework == OURS and algorithm in PRESETS:
        return Row(PRESETS[algorithm].about, PRESETS[algorithm].algorithm)
    if framework not in rows:
        known = frameworks(algorithm) if algorithm in PRESETS else sorted(COMPATIBILITY)
        raise ConfigError(f"there is no row of {framework} for {algorithm}", fix=f"use {', '.join(known)}")
    return rows[framework]


def _choices(a: Row, b: Row) -> tuple[Choice, ...]:
    left, right = _resolved(a.algorithm), _resolved(b.algorithm)
    # An option that only one of them has belongs to a plug-in whose name differs, which is listed anyway.
    keys = [key for key in left if key in right and left[key] != right[key]]
    return tuple(Choice(key, left[key], right[key], REASONS.get(key, "")) for key in keys)


def _resolved(row: Mapping[str, Any]) -> dict[str, str]:
    """Every key of a row, with the defaults of keys that it does not set."""
    defaults = AlgorithmConfig()
    found = {
        "kl.estimator": defaults.kl.estimator,
        "kl.in": defaults.kl.place,
        "kl.coefficient": str(defaults.kl.coefficient),
        "correction": "[]",
        "dynamic_sampling": str(defaults.dynamic_sampling),
    }
    for kind, key in (("estimator", "estimator"), ("policy_loss", "loss")):
        (entry,) = [e for e in entries(kind) if e.name == row[key]["name"]]
        known = {o.name: o.default for o in entry.options if o.default is not None}
        found.update({f"{key}.{name}": str(ast.literal_eval(text)) for name, text in known.items()})
    return found | dict(flat(row))


def _numbers(row: Mapping[str, Any], batch: RaggedBatch) -> tuple[Tensor, float]:
    """Mean advantage of each trajectory, [N], and the loss of a minibatch after the first."""
    config = AlgorithmConfig.model_validate(row)
    estimator = load_estimator(config)
    arguments = {argument(c): batch.columns[c] for c in estimator.needs}
    if on_ranks(estimator.needs):
        arguments = {**arguments, "tokens": batch.tokens, "reduce": OneRank()}
    out = estimator(reward_N=batch.reward_N, group_N=batch.group_N, **arguments)
    advantage_T = out.advantage_T if isinstance(out, Advantage) else out[batch.seq_T]
    objective = Objective(config, max_response_tokens=16)
    columns = {n: batch.columns[n] for n in objective.columns}
    if objective.prepares:
        known = Known(1, batch.reward_N, batch.group_N, advantage_T, batch.tokens, columns)
        columns |= objective.prepare(known, OneRank()).columns
    loss, _ = objective(
        batch.columns["logp"], batch.columns["entropy"], columns, advantage_T, batch.tokens, batch.totals
    )
    rows = [torch.tensor(row, dtype=torch.float64).mean() for row in batch.trained(advantage_T)]
    return torch.stack(rows), float(loss)
