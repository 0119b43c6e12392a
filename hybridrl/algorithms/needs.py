"""What an algorithm needs of a run: columns, and the models besides the policy that compute some of them.

The memory and time of a plan, the groups of ranks and the trainer's models are derived from it. The module
imports no torch: plug-ins of the project are read, not imported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hybridrl.algorithms.columns import TOKEN_COLUMNS, Column
from hybridrl.algorithms.declared import declared
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.section import PluginConfig

Model = Literal["critic", "process model", "reference", "teacher"]

MODELS: Mapping[Column, Model] = {
    "value": "critic",
    "process_logp": "process model",
    "ref_logp": "reference",
    "teacher_logp": "teacher",
}
"""Column -> the model that computes it, if that is not the policy."""

GROUP_COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "critic": ("value",),
    "reference": ("ref_logp", "teacher_logp"),
}
"""Config section that can have dedicated ranks -> the columns that those ranks compute."""

TEACHER_COLUMNS: frozenset[Column] = frozenset({"teacher_logp", "old_logp"})
"""Columns of the teacher's term in the advantage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    objective: frozenset[Column]
    """Token columns that the objective's `prepare` and call need."""

    estimator: frozenset[Column]
    """Columns that the advantage estimator is called with."""

    prepares: bool
    """Whether the objective makes columns from the whole batch before its first optimizer step."""

    follows_kl: bool
    """Whether the KL coefficient is adapted to the divergence of every batch."""

    bypasses: bool = False
    """Whether the engine's log-probabilities replace old_logp in the objective."""

    observed: bool = False
    """Whether the objective trains on what the environment writes."""

    head_tokens: int = 0
    """For how many of its likeliest tokens the engine reports log-probabilities, if the loss needs them."""

    teacher_head_tokens: int = 0
    """For how many of its likeliest tokens the teacher gives log-probabilities, if the loss needs them."""

    teaches_itself: bool = False
    """Whether the teacher is the policy itself, which reads a hint."""

    @classmethod
    def of(cls, algorithm: AlgorithmConfig) -> "Needs":
        """
        Raises:
            ConfigError: there is no plug-in of a name that the config gives.
            UserCodeError: code from outside raises.
        """
        loss = _declared("policy_loss", algorithm.loss, "algorithm.loss")
        estimator = _declared("estimator", algorithm.estimator, "algorithm.estimator")
        entries = [PluginConfig.model_validate(entry) for entry in algorithm.correction]
        corrections = [_declared("correction", entry, "algorithm.correction") for entry in entries]
        weight, share = algorithm.kl.coefficient, algorithm.entropy_top_share
        kl = declared("kl", algorithm.kl.estimator, {}, where="algorithm.kl.estimator") if weight else None
        in_loss, in_reward = (kl if algorithm.kl.place == place else None for place in ("loss", "reward"))
        return cls(
            objective=objective_columns(loss, in_loss, corrections, share),
            estimator=estimator_columns(estimator, in_reward)
            | (TEACHER_COLUMNS if algorithm.teacher_coefficient else frozenset()),
            prepares=bool(objective_makes(loss, corrections, share)),
            follows_kl=kl is not None and algorithm.kl.target is not None,
            bypasses=replaces_old_logp(corrections),
            observed=algorithm.observations.coefficient > 0,
            head_tokens=head_tokens_of(loss),
            teacher_head_tokens=loss.head_tokens if "teacher_head_logp" in loss.needs else 0,
            teaches_itself=algorithm.hint is not None and algorithm.teacher is None,
        )

    @property
    def columns(self) -> frozenset[Column]:
        return self.objective | self.estimator

    @property
    def models(self) -> tuple[Model, ...]:
        """Models besides the policy that the run holds, in the order of MODELS."""
        return tuple(model for column, model in MODELS.items() if column in self.own_columns)

    @property
    def own_columns(self) -> frozenset[Column]:
        """The columns without that of a policy which teaches itself: no other model computes it."""
        return self.columns - {"teacher_logp"} if self.teaches_itself else self.columns

    def scores_first(self, optimizer_steps: int, *, replays_experts: bool = False) -> bool:
        """Whether the policy computes log-probabilities before the optimizer steps of a batch.

        If a batch has a single step, or the engine's log-probabilities replace old_logp, the forward pass of
        the first step is enough, unless something needs them before.

        Args:
            replays_experts: the steps use the experts that were chosen when old_logp was computed.
        """
        moves = optimizer_steps > 1 and (not self.bypasses or replays_experts)
        per_token = bool(self.estimator & TOKEN_COLUMNS)
        prepares = self.prepares and not self.bypasses
        return moves or per_token or prepares or self.follows_kl or "old_entropy" in self.columns

    def policy_passes(self, optimizer_steps: int, *, replays_experts: bool = False) -> int:
        """Number of forward passes of the policy over a whole batch before its first optimizer step; the
        arguments are those of `scores_first`. old_collision takes one more pass, at half the temperature, and
        a policy that teaches itself one with the hints.
        """
        scores = self.scores_first(optimizer_steps, replays_experts=replays_experts)
        teaches = self.teaches_itself and "teacher_logp" in self.columns
        return int(scores) + int("old_collision" in self.columns) + int(teaches)


def objective_columns(
    loss: Any, kl: Any | None, corrections: Iterable[Any], top_share: float
) -> frozenset[Column]:
    """Token columns of an objective. old_logp is among them because the first ratio is checked to be 1,
    unless the engine's replaces it.

    Args:
        loss, kl, corrections: plug-ins, or their stand-ins from `declared`; kl None: there is no KL term.
        top_share: share of the tokens that the loss trains on, by entropy.
    """
    kl_columns = kl.needs | {"ref_logp"} if kl is not None else frozenset()
    rollout = {"rollout_logp"} if corrections else frozenset()
    own = frozenset().union(*(getattr(correction, "needs", ()) for correction in corrections))
    entropy = {"old_entropy"} if top_share < 1 else frozenset()
    wanted = loss.needs - _makes(loss) | kl_columns | rollout | own | entropy | {"old_logp"}
    return frozenset(wanted - {"old_logp"} if replaces_old_logp(corrections) else wanted)


def objective_makes(loss: Any, corrections: Iterable[Any], top_share: float) -> frozenset[Column]:
    """Columns that an objective makes from the whole batch; the arguments are those of
    `objective_columns`."""
    return _makes(loss) | ({"weight"} if corrections or top_share < 1 else frozenset())


def head_tokens_of(loss: Any) -> int:
    """Tokens that a loss asks the engine for at each place; of a loss, or its stand-in from `declared`."""
    return loss.head_tokens if "engine_head_logp" in loss.needs else 0


def replaces_old_logp(corrections: Iterable[Any]) -> bool:
    """Whether the engine's log-probabilities replace old_logp, so that the first ratio is not exactly 1."""
    return any(getattr(correction, "replaces_old_logp", False) for correction in corrections)


def estimator_columns(estimator: Any, kl: Any | None) -> frozenset[Column]:
    """Columns that an estimator is called with.

    Args:
        estimator, kl: plug-ins, or their stand-ins from `declared`; kl None: rewards contain no KL.
    """
    if takes_token_rewards(estimator, kl):
        return token_reward_columns(estimator, kl)
    return frozenset(estimator.needs)


def takes_token_rewards(estimator: Any, kl: Any | None) -> bool:
    """Whether rewards differ from token to token; the arguments are those of `estimator_columns`."""
    return kl is not None or getattr(estimator, "per_token", False) or "token_reward" in estimator.needs


def token_reward_columns(estimator: Any, kl: Any | None) -> frozenset[Column]:
    """Columns of an estimator with token rewards; the arguments are those of `estimator_columns`. old_logp is
    always among them: a token column makes an estimator run on the data-parallel ranks."""
    penalty = kl.needs | {"ref_logp"} if kl is not None else frozenset()
    return frozenset(inner_columns(estimator) | penalty | {"old_logp"})


def inner_columns(estimator: Any) -> frozenset[Column]:
    """Columns of an estimator with token rewards, without the token rewards."""
    return frozenset(getattr(estimator, "token_needs", estimator.needs) - {"token_reward"})


def _makes(loss: Any) -> frozenset[Column]:
    return getattr(loss, "makes", frozenset())


def _declared(kind: str, plugin: PluginConfig, where: str) -> Any:
    return declared(kind, plugin.name, plugin.options, where=where)
