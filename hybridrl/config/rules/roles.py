"""Rules about critic, reference and reward model on dedicated ranks, and about offload."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.run_shape import engines_sleep, is_separate
from hybridrl.config.schema import Config
from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigError
from hybridrl.wording import counted

_Role = tuple[str, TrainParallel | None, int | None]


def microbatch_limits(config: Config) -> Iterator[tuple[str, int]]:
    """(key, tokens) of every limit of a microbatch that is set."""
    yield "actor.microbatch_tokens", config.actor.microbatch_tokens
    for role, parallel, limit in _roles(config):
        if parallel is not None and limit is not None:
            yield f"{role}.microbatch_tokens", limit


def roles_fit_the_run(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    """Refuses keys without effect and ranks without work."""
    config = loaded.config
    for role, parallel, limit in _roles(config):
        if parallel is None and limit is not None:
            yield ConfigError(
                f"{role}.microbatch_tokens = {limit} has no effect on the actor's ranks, "
                f"{role}.parallel is not set",
                where=loaded.where(f"{role}.microbatch_tokens"),
                fix=f"set actor.microbatch_tokens, or {role}.parallel",
            )
        if parallel is not None:
            yield from _idle_ranks(loaded, role, parallel.dp or 1)
    if config.actor.offload != "none" and is_separate(config):
        yield ConfigError(
            f"actor.offload = {config.actor.offload} makes room for engines, but with cluster.placement = "
            "separate they have dedicated devices",
            where=loaded.where("actor.offload", "cluster.placement"),
            fix="actor.offload=none",
        )
    elif config.actor.offload != "none" and not engines_sleep(config):
        yield ConfigError(
            f"actor.offload = {config.actor.offload} makes room while engines generate, but with "
            f"batch.max_lag = {config.batch.max_lag} they generate while the trainer works",
            where=loaded.where("actor.offload", "batch.max_lag"),
            fix="actor.offload=none",
        )


def _roles(config: Config) -> Iterator[_Role]:
    yield "critic", config.critic.parallel, config.critic.microbatch_tokens
    yield "reference", config.reference.parallel, config.reference.microbatch_tokens
    if (own := config.reward_model) is not None:
        yield "reward_model", own.parallel, own.microbatch_tokens


def _idle_ranks(loaded: LoadedConfig, role: str, dp: int) -> Iterator[ConfigError]:
    batch, samples = loaded.config.batch, loaded.config.algorithm.samples_per_prompt
    of_step = role == "reward_model"  # it scores before there are minibatches
    size = None if of_step else batch.minibatch_prompts
    answers = (size or batch.prompts_per_step) * samples
    if answers < dp:
        whole = "step" if of_step else "minibatch"
        yield ConfigError(
            f"{role}.parallel.dp = {counted(dp, 'rank')} share "
            f"{counted(answers, 'trajectory', 'trajectories')} of a {whole}",
            where=loaded.where(f"{role}.parallel.dp"),
            fix=f"use at most {answers}",
        )
