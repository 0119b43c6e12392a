"""What a config asks of the GPUs of this machine."""

from collections.abc import Iterator
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import World
from hybridrl.config.rules.parallel import all_cuts
from hybridrl.config.schema import Config
from hybridrl.errors import ResourceError


def gpus_are_there(loaded: LoadedConfig[Any], world: World) -> Iterator[ResourceError]:
    if not world.here:
        return
    cluster, has = loaded.config.cluster, world.num_gpus
    wanted = cluster.gpus_per_node
    if wanted is not None and wanted > has:
        yield ResourceError(
            f"cluster.gpus_per_node = {wanted}, this machine has {f'{has} GPUs' if has else 'no GPU'}",
            where=loaded.where("cluster.gpus_per_node"),
            fix=f"cluster.gpus_per_node={has}",
        )
    gpus = cluster.nodes * (has if wanted is None else min(wanted, has))
    for key, need in _needed(loaded.config):
        if gpus and need > gpus:
            place = loaded.where(*(f"{key}.{axis}" for axis in ("tp", "pp", "dp")), "rollout.num_engines")
            yield ResourceError(
                f"{key} needs {need} GPUs, there are {gpus}", where=place, fix="use smaller sizes"
            )


def _needed(config: Any) -> Iterator[tuple[str, int]]:
    """Key and GPUs of every group of ranks."""
    if not isinstance(config, Config):  # training on examples
        yield "actor.parallel", config.actor.parallel.num_ranks
        return
    yield from ((key, cut.num_ranks) for key, cut in all_cuts(config))
    yield "rollout.parallel", config.rollout.parallel.tp * (config.rollout.num_engines or 1)
