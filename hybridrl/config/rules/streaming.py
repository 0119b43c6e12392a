"""Rules about which groups a step trains on, and about swaps beside running requests."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.errors import ConfigError


def groups_can_be_trained_in_time(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    """Refuses keys of batch.* without effect, and more open groups than steps can train."""
    batch = loaded.config.batch
    yield from _without_lag(loaded)
    if batch.max_lag and batch.unfinished == "abort":
        yield ConfigError(
            f"batch.unfinished = abort ends answers that batch.max_lag = {batch.max_lag} lets go on",
            where=loaded.where("batch.unfinished", "batch.max_lag"),
            fix="batch.unfinished=carry, or batch.max_lag=0",
        )
    if batch.order == "fifo" and batch.stale != "wait":
        yield ConfigError(
            f"batch.stale = {batch.stale} has no effect with batch.order = fifo, which trains every group "
            "within max_lag",
            where=loaded.where("batch.stale", "batch.order"),
            fix="batch.order=finished, or batch.stale=wait",
        )
    most = batch.max_lag + 1 if batch.max_lag else 2
    if batch.oversample is not None and batch.oversample > most:
        why = (
            f"with batch.max_lag = {batch.max_lag} a group could then not be trained in time"
            if batch.max_lag
            else f"at most {most} is useful: a prompt that was aborted is part of the next step"
        )
        yield ConfigError(
            f"batch.oversample = {batch.oversample:g} is too large, {why}",
            where=loaded.where("batch.oversample", "batch.max_lag"),
            fix=f"use at most {most}",
        )


def _without_lag(loaded: LoadedConfig) -> Iterator[ConfigError]:
    """What is refused at max_lag 0."""
    batch, swap = loaded.config.batch, loaded.config.rollout.swap
    more = (batch.oversample or 1.0) > 1.0
    if batch.max_lag:
        return
    if swap != "drain":
        yield ConfigError(
            f"rollout.swap = {swap} has no effect with batch.max_lag = 0, no request runs during a swap",
            where=loaded.where("rollout.swap", "batch.max_lag"),
            fix="rollout.swap=drain, or batch.max_lag=1",
        )
    if batch.unfinished == "carry":
        yield ConfigError(
            "batch.unfinished = carry trains on tokens of the version before, but batch.max_lag = 0 allows "
            "none",
            where=loaded.where("batch.unfinished", "batch.max_lag"),
            fix="batch.max_lag=1, or batch.unfinished=abort",
        )
    if more and batch.order == "fifo":
        yield ConfigError(
            f"batch.oversample = {batch.oversample:g} has no effect with batch.order = fifo and "
            "batch.max_lag = 0, a step waits for its first prompts",
            where=loaded.where("batch.oversample", "batch.order", "batch.max_lag"),
            fix="batch.order=finished, or batch.oversample=1",
        )
    if not more and batch.order == "finished":
        yield ConfigError(
            "batch.order = finished has no effect with batch.max_lag = 0, a step trains on all its groups",
            where=loaded.where("batch.order", "batch.max_lag"),
            fix="batch.max_lag=1, batch.oversample=1.2, or batch.order=fifo",
        )
