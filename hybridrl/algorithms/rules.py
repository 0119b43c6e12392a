"""Rules about an algorithm: its plug-ins, their options, their combination, and columns that nothing
computes.

The module imports no torch: its functions take plug-ins, or their stand-ins from `declared`. The code that
builds plug-ins calls the same functions, so that every command refuses a config in the same words.
"""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from hybridrl.algorithms.columns import TOKEN_COLUMNS, Column, on_ranks
from hybridrl.algorithms.declared import by_default, declared
from hybridrl.algorithms.needs import GROUP_COLUMNS, Needs
from hybridrl.columns import TURN_COLUMNS, given_by, not_computed
from hybridrl.config.load import LoadedConfig
from hybridrl.config.presets import PRESETS
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.schema import AlgorithmConfig, Config
from hybridrl.config.section import PluginConfig
from hybridrl.errors import ConfigError, HybridRLError, UserCodeError
from hybridrl.outside import is_outside

_Errors = Iterator[ConfigError]

_OVER_TOKENS = ("token_mean", "token_sum")

SEQUENCE_LOSSES = frozenset(
    {
        "a_star_po",
        "copg",
        "dro",
        "flash_reinforce",
        "gmpo",
        "gspo",
        "kimi_k15",
        "opsm",
        "product_clip",
        "sapo",
        "topr",
        "vespo",
    }
)
"""Policy losses that compute something over a whole sequence; others do if their option `level` says so."""


def algorithm_fits_the_run(loaded: LoadedConfig[Config], context: RuleContext) -> Iterator[HybridRLError]:
    """A rule like those of config.rules. It imports code from outside."""
    try:
        yield from map(loaded.locate, _errors(loaded.config))
    except UserCodeError as error:  # raised by a property of code from outside
        yield loaded.locate(error)


def _errors(cfg: Config) -> list[HybridRLError]:
    algorithm, chosen = cfg.algorithm, _Chosen()
    errors = list(chosen.choose(algorithm, cfg.rollout.max_response_tokens))
    if chosen.estimator is not None:
        errors += estimator_errors(algorithm, chosen.estimator)
    if chosen.loss is not None:
        errors += loss_errors(algorithm, chosen.loss)
    if not errors:
        needs = Needs.of(algorithm)
        shaped = frozenset().union(*(step.needs for step in chosen.shaping))
        errors += credit_errors(algorithm, needs.estimator, shaped)
        errors += objective_errors(needs.objective)
        errors += turn_errors(cfg, needs, shaped)
        errors += branch_errors(cfg, needs)
        errors += idle_group_errors(cfg)
        errors += teacher_head_errors(cfg, needs)
        errors += picture_errors(cfg, needs)
    return errors


def estimator_errors(algorithm: AlgorithmConfig, estimator: Any) -> _Errors:
    """Errors of the estimator that do not depend on its columns."""
    least, name = getattr(estimator, "min_group_size", 1), algorithm.estimator.name
    if algorithm.samples_per_prompt < least:
        yield ConfigError(
            f"{name} compares answers, but samples_per_prompt = {algorithm.samples_per_prompt}",
            where="algorithm.samples_per_prompt",
            fix=f"use {least} or more, or an estimator without a group baseline (reinforce_plus_plus)",
        )
    if algorithm.kl.in_reward and hasattr(estimator, "state_dict"):
        yield ConfigError(
            f"{name} keeps a state and knows no KL in the reward", where="algorithm.kl.in", fix="use in: loss"
        )
    if algorithm.teacher_coefficient and hasattr(estimator, "state_dict"):
        yield ConfigError(
            f"{name} keeps a state and knows no teacher", where="algorithm.teacher_coefficient", fix="use 0"
        )


def loss_errors(algorithm: AlgorithmConfig, loss: Any) -> _Errors:
    """Errors of the policy loss, besides columns that nothing computes."""
    allowed, name = getattr(loss, "aggregates", None), algorithm.aggregate
    if allowed is not None and name not in allowed:
        yield ConfigError(
            f"loss {algorithm.loss.name} has no meaning with aggregate = {name}",
            where="algorithm.aggregate",
            fix=f"use {' or '.join(sorted(allowed))}",
        )
    scalars = set(loss.needs) - TOKEN_COLUMNS - getattr(loss, "makes", frozenset())
    if scalars:
        yield ConfigError(
            f"a policy loss sees token columns only, not {sorted(scalars)}", where="algorithm.loss"
        )


def credit_errors(algorithm: AlgorithmConfig, needs: frozenset[Column], shaped: frozenset[Column]) -> _Errors:
    """Errors of the advantages: columns that nothing computes, the teacher, answers that are left out.

    Args:
        needs: columns that the estimator is called with.
        shaped: columns that the shaping is called with.
    """
    on_tokens = given_by("block", "ranks") if on_ranks(needs) else frozenset()
    yield from _missing(needs, given_by("controller") | on_tokens, "the estimator", "algorithm.estimator")
    yield from _missing(shaped, given_by("controller"), "the shaping", "algorithm.shaping")
    yield from _teacher_errors(algorithm, asked="teacher_logp" in Needs.of(algorithm).columns)
    if algorithm.drop_truncated and on_ranks(needs):
        yield ConfigError(
            f"drop_truncated leaves answers out, but {algorithm.estimator.name} needs the tokens of all",
            where="algorithm.drop_truncated",
            fix="use an estimator of outcome rewards (grpo), with algorithm.kl.in=loss",
        )


def objective_errors(columns: Set[Column]) -> _Errors:
    """
    Args:
        columns: columns that the objective is called with.
    """
    yield from _missing(columns, given_by("block", "ranks"), "the policy loss", "algorithm.loss")


def turn_errors(cfg: Config, needs: Needs, shaped: Set[Column]) -> _Errors:
    """Errors about columns that say something only if trajectories have several turns.

    Args:
        shaped: columns that the shaping is called with.
    """
    for columns, who, where in (
        (needs.estimator, "the estimator", "algorithm.estimator"),
        (shaped, "the shaping", "algorithm.shaping"),
        (needs.objective, "the policy loss", "algorithm.loss"),
    ):
        asked = sorted(columns & TURN_COLUMNS)
        if asked and not cfg.has_episodes:
            yield ConfigError(
                f"{who} needs {', '.join(asked)}, which only a run with an environment has",
                where=where,
                fix="name an environment, or choose one that needs less",
            )
    if needs.observed and cfg.environment is None:
        yield ConfigError(
            f"algorithm.observations.coefficient = {cfg.algorithm.observations.coefficient:g} trains on what "
            "an environment writes, and the run has none",
            where="algorithm.observations.coefficient",
            fix="name an environment, or use 0",
        )
    if "turn_reward" in needs.estimator and cfg.batch.stale == "mask":
        yield ConfigError(
            f"batch.stale = mask leaves old turns out, and estimator {cfg.algorithm.estimator.name} compares "
            "the rewards from each turn on",
            where="batch.stale",
            fix="batch.stale: wait or drop",
        )


def branch_errors(cfg: Config, needs: Needs) -> _Errors:
    """Errors about what compares whole answers, in a run whose episodes may have several branches: there each
    branch would count as an episode."""
    if cfg.program is None or cfg.program.branches == "refuse":
        return
    algorithm, loss = cfg.algorithm, cfg.algorithm.loss
    why = "and program.branches = train makes several sequences of an episode"
    otherwise = "program.branches: refuse if an episode is one conversation"
    if algorithm.aggregate not in _OVER_TOKENS:
        yield ConfigError(
            f"algorithm.aggregate = {algorithm.aggregate} is a mean over sequences, {why}",
            where="algorithm.aggregate",
            fix=f"algorithm.aggregate: token_mean; or {otherwise}",
        )
    if loss.name in SEQUENCE_LOSSES or loss.options.get("level") not in (None, "token"):
        yield ConfigError(
            f"loss {loss.name} has a value for a whole sequence, {why}",
            where="algorithm.loss",
            fix=f"loss ppo_clip with level token; or {otherwise}",
        )
    if on_ranks(needs.estimator):
        yield ConfigError(
            f"estimator {algorithm.estimator.name} compares tokens or turns, {why}",
            where="algorithm.estimator",
            fix=f"an estimator of outcome rewards, such as grpo; or {otherwise}",
        )


def idle_group_errors(cfg: Config) -> _Errors:
    """Errors about dedicated ranks whose columns the algorithm does not need."""
    needs, algorithm = Needs.of(cfg.algorithm).own_columns, cfg.algorithm
    for group, parallel in (("critic", cfg.critic.parallel), ("reference", cfg.reference.parallel)):
        if parallel is not None and not needs & set(GROUP_COLUMNS[group]):
            yield ConfigError(
                f"{group}.parallel is set, but estimator {algorithm.estimator.name} with "
                f"algorithm.kl.coefficient = {algorithm.kl.coefficient:g} needs no "
                f"{' and no '.join(GROUP_COLUMNS[group])}",
                where=f"{group}.parallel",
                fix=f"leave {group}.parallel out",
            )


def teacher_head_errors(cfg: Config, needs: Needs) -> _Errors:
    """Errors about a loss that needs the teacher's likeliest tokens, which dedicated ranks do not return."""
    if needs.teacher_head_tokens and cfg.reference.parallel is not None:
        yield ConfigError(
            f"algorithm.loss = {cfg.algorithm.loss.name} needs the teacher's likeliest tokens, and the "
            "ranks of reference.parallel return one number a token",
            where="reference.parallel",
            fix="leave reference.parallel out, so that the actor's ranks hold the teacher",
        )


def picture_errors(cfg: Config, needs: Needs) -> _Errors:
    """Errors about columns of models that do not know the pictures of a run yet."""
    asked = sorted(needs.columns & _TEXT_ONLY)
    if cfg.data.images is not None and asked:
        yield ConfigError(
            f"data.images is set, and the algorithm needs {', '.join(asked)}, which only runs on text have",
            where="algorithm",
            fix="use an algorithm without a critic, a teacher and a process model, as preset grpo",
        )


_TEXT_ONLY = frozenset({"value", "teacher_logp", "process_logp"})


def may_be_mute(algorithm: AlgorithmConfig) -> bool:
    """Whether mute.refuse_mute has to try the algorithm, which takes torch.

    Estimators and losses with their defaults, or with the options of a preset, are known to give a signal.
    """
    if algorithm.shaping or algorithm.correction or algorithm.entropy_top_share < 1:
        return True
    chosen = (("estimator", algorithm.estimator), ("policy_loss", algorithm.loss))
    return any(_is_untried(kind, plugin) for kind, plugin in chosen)


def _is_untried(kind: str, plugin: PluginConfig) -> bool:
    if is_outside(plugin.name):
        return True
    default, key = by_default(kind, plugin.name), "estimator" if kind == "estimator" else "loss"
    presets = [preset.algorithm.get(key) for preset in PRESETS.values()]
    changed = any(getattr(default, name, None) != value for name, value in plugin.options.items())
    return changed and {"name": plugin.name, **plugin.options} not in presets


@dataclass(slots=True)
class _Chosen:
    """Plug-ins of a config, as stand-ins from `declared`; None if one cannot be made."""

    estimator: Any = None
    loss: Any = None
    shaping: tuple[Any, ...] = ()

    def choose(self, algorithm: AlgorithmConfig, max_response_tokens: int) -> Iterator[HybridRLError]:
        """Make all plug-ins of the config, keep some of them, and yield the errors."""
        longest = {"max_response_tokens": max_response_tokens}
        divides = algorithm.aggregate == "seq_mean_token_sum_norm"
        aggregate = {"name": algorithm.aggregate, **(longest if divides else {})}
        wanted = [
            ("estimator", algorithm.estimator, "algorithm.estimator"),
            ("kl", algorithm.kl.estimator, "algorithm.kl.estimator"),
            *(("shaping", entry, "algorithm.shaping") for entry in algorithm.shaping),
            ("policy_loss", algorithm.loss, "algorithm.loss"),
            ("aggregate", aggregate, "algorithm.aggregate"),
            *(("correction", entry, "algorithm.correction") for entry in algorithm.correction),
        ]
        for kind, entry, where in wanted:
            plugin = PluginConfig.model_validate(entry)
            try:
                self._keep(kind, declared(kind, plugin.name, plugin.options, where=where))
            except HybridRLError as error:
                yield error

    def _keep(self, kind: str, plugin: Any) -> None:
        match kind:
            case "estimator":
                self.estimator = plugin
            case "policy_loss":
                self.loss = plugin
            case "shaping":
                self.shaping += (plugin,)


def _missing(needs: Set[Column], given: Set[Column], who: str, where: str) -> _Errors:
    if missing := sorted({*(needs - given), *not_computed(needs)}):
        yield ConfigError(
            f"{who} needs {', '.join(missing)}, which no part of a run computes yet",
            where=where,
            fix="choose one that needs less; `hybridrl algo list` shows what each needs",
        )


def _teacher_errors(algorithm: AlgorithmConfig, *, asked: bool) -> _Errors:
    teacher = algorithm.teacher
    names = f"estimator {algorithm.estimator.name}, loss {algorithm.loss.name}"
    if algorithm.hint is not None and not asked:
        yield ConfigError(
            f"algorithm.hint is for a teacher, and none is used ({names})",
            where="algorithm.hint",
            fix="use estimator distillation or algorithm.teacher_coefficient, or leave the hint out",
        )
    if asked and teacher is None and algorithm.hint is None:
        yield ConfigError(
            f"the algorithm learns from a teacher ({names}), but algorithm.teacher is not set",
            where="algorithm.teacher",
            fix="algorithm.teacher=FOLDER, a model of the policy's architecture and sizes; or "
            "algorithm.hint: the policy teaches itself",
        )
    if teacher is not None and not asked:
        yield ConfigError(
            f"algorithm.teacher = {teacher} is not used ({names})",
            where="algorithm.teacher",
            fix="use estimator distillation or algorithm.teacher_coefficient, or leave the teacher out",
        )
