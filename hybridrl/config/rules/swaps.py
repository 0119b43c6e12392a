"""Rules about what a swap beside running requests must not be combined with."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.run_shape import is_separate
from hybridrl.errors import ConfigError


def swaps_keep_what_is_replayed(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    """Refuses router replay if a swap recomputes which experts were used."""
    cfg = loaded.config
    if cfg.rollout.swap == "in_flight" and cfg.actor.moe.router_replay == "rollout":
        yield ConfigError(
            "actor.moe.router_replay = rollout trains with the experts that sampled each token, but after "
            "a swap with rollout.swap = in_flight the engine names those of the new weights",
            where=loaded.where("rollout.swap", "actor.moe.router_replay"),
            fix="rollout.swap=drain, or actor.moe.router_replay=old_logp",
        )


def a_kept_cache_stays_in_memory(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    """Refuses to keep a key-value cache whose memory trainer ranks need."""
    cfg, asked = loaded.config, loaded.config.cluster.gpus_per_node
    if is_separate(cfg):
        return
    of_machine = context.num_gpus if context.here else 0
    if cfg.rollout.swap == "in_flight_keep_cache" and (of_machine if asked is None else asked):
        has = f"this machine has {of_machine}" if asked is None else f"cluster.gpus_per_node = {asked}"
        yield ConfigError(
            "rollout.swap = in_flight_keep_cache keeps the key-value cache during a swap, but engines share "
            f"GPUs with trainer ranks ({has}) and free it while these train",
            where=loaded.where("rollout.swap", "cluster.gpus_per_node"),
            fix="rollout.swap=in_flight",
        )
