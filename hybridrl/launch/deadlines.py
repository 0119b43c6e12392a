"""Which deadline of the config holds for which call of a worker."""

from collections.abc import Mapping

from hybridrl.cluster.group import Deadline
from hybridrl.config.cluster import ClusterConfig

CALLS: Mapping[str, tuple[str, ...]] = {
    "dispatch_s": (
        *("submit", "cancel", "usage", "abort", "continue_", "plant", "connect", "plan_fields"),
        *(
            "fixed_parameters",
            "weight_dtypes",
            "open_buckets",
            "plan_buckets",
            "keep_groups",
            "export_parameters",
        ),
        "probe_loader",
    ),
    "generate_s": ("finished", "generate", "request", "pause", "release_cache", "begin_swap"),
    "reward_s": ("score", "scores"),
    "train_s": ("measure", "complete", "load", "step", "take", "column", "evaluate", "inspect"),
    "swap_s": ("write_weights", "write_bucket", "load_bucket", "checksums", "commit_swap"),
    "save_s": ("save", "finish_saving", "export", "save_state", "recorded"),
}
"""Key of cluster.deadlines -> methods of workers. Starts have cluster.start_timeout_s, and ends their own."""


def deadlines(cluster: ClusterConfig) -> dict[str, Deadline]:
    """Method -> its deadline, for those that the config sets."""
    seconds = {
        "dispatch_s": cluster.deadlines.dispatch_s,
        "generate_s": cluster.deadlines.generate_s,
        "reward_s": cluster.deadlines.reward_s,
        "train_s": cluster.deadlines.train_s,
        "swap_s": cluster.deadlines.swap_s,
        "save_s": cluster.deadlines.save_s,
    }
    found: dict[str, Deadline] = {}
    for key, methods in CALLS.items():
        if (limit := seconds[key]) is not None:
            found |= dict.fromkeys(methods, Deadline(limit, f"cluster.deadlines.{key}"))
    return found
