"""Rules about machines and GPUs: they are there, and every role gets its share of them.

Weights go from the trainer rank on a GPU to the engine on it, so colocated trainer and engines fill the same
GPUs. separate.py has the rules about engines with dedicated GPUs.
"""

from collections.abc import Iterator
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.rules.parallel import all_shardings
from hybridrl.config.run_shape import RunShape, is_separate, num_gpus
from hybridrl.config.schema import Config
from hybridrl.errors import ResourceError
from hybridrl.wording import counted


def machines_are_started(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[ResourceError]:
    nodes, examples = loaded.config.cluster.nodes, not isinstance(loaded.config, Config)
    if nodes > 1 and (context.alone or examples):
        fix = "" if examples else "launch --on slurm or --on ray; "
        yield ResourceError(
            f"cluster.nodes = {nodes}, but what starts here has this machine only",
            where=loaded.where("cluster.nodes"),
            fix=f"{fix}cluster.nodes=1{'' if examples else ' runs it here'}",
        )


def environments_have_nodes(loaded: LoadedConfig[Config], context: RuleContext) -> Iterator[ResourceError]:
    """Environments on nodes of their own need another machine than this one."""
    environment = loaded.config.environment
    if environment is not None and environment.nodes and context.alone:
        yield ResourceError(
            f"environment.nodes = {environment.nodes}, but what starts here has this machine only",
            where=loaded.where("environment.nodes"),
            fix="launch --on ray; environment.nodes=0 runs environments beside the engines",
        )


def gpus_are_there(loaded: LoadedConfig[Any], context: RuleContext) -> Iterator[ResourceError]:
    if not context.here:
        return
    cluster, has = loaded.config.cluster, context.num_gpus
    wanted = cluster.gpus_per_node
    if wanted is not None and wanted > has:
        yield ResourceError(
            f"cluster.gpus_per_node = {wanted}, this machine has {counted(has, 'GPU') if has else 'no GPU'}",
            where=loaded.where("cluster.gpus_per_node"),
            fix=f"cluster.gpus_per_node={has}",
        )
    gpus = cluster.nodes * (has if wanted is None else min(wanted, has))
    for key, need in _needed(loaded.config):
        if gpus and need > gpus:
            place = loaded.where(*(f"{key}.{axis}" for axis in ("tp", "pp", "dp")), "rollout.num_engines")
            yield ResourceError(
                f"{key} needs {counted(need, 'GPU')}, there are {gpus}", where=place, fix="use smaller sizes"
            )


def nodes_have_ranks(loaded: LoadedConfig[Config], context: RuleContext) -> Iterator[ResourceError]:
    """Every node needs a trainer rank: a rank writes the weights of the engines on its own node."""
    nodes, ranks = loaded.config.cluster.nodes, RunShape.of(loaded.config).trainer_ranks
    if context.fills_gpus and nodes > ranks and not is_separate(loaded.config):
        yield ResourceError(
            f"cluster.nodes = {nodes}, and the trainer has {counted(ranks, 'rank')}: every node needs one, "
            "which writes the weights of the engines on it",
            where=loaded.where("actor.parallel", "cluster.nodes"),
            fix=f"give it {counted(nodes, 'rank')}, as with a larger actor.parallel.dp; or "
            f"cluster.nodes={ranks}",
        )


def roles_share_the_gpus(loaded: LoadedConfig[Config], context: RuleContext) -> Iterator[ResourceError]:
    """Every GPU has a trainer rank, and none has two engines. If the run uses this machine, gpus_are_there
    reports more ranks than GPUs."""
    cluster = loaded.config.cluster
    if cluster.gpus_per_node and context.fills_gpus and not is_separate(loaded.config):
        shape, gpus = RunShape.of(loaded.config), num_gpus(cluster)
        if not context.here or shape.trainer_ranks <= gpus:
            yield from _idle(loaded, shape, cluster.gpus_per_node)
        if not context.here or shape.num_engines * shape.engine.tp <= gpus:
            yield from _crowded(loaded, shape, cluster.gpus_per_node)


def _needed(config: Any) -> Iterator[tuple[str, int]]:
    """Config key of every group of ranks, and the number of GPUs that it needs."""
    yield from ((key, sharding.num_ranks) for key, sharding in all_shardings(config))
    if isinstance(config, Config):
        yield "rollout.parallel", config.rollout.parallel.tp * (config.rollout.num_engines or 1)


def _idle(loaded: LoadedConfig[Config], shape: RunShape, per_node: int) -> Iterator[ResourceError]:
    gpus, replica = loaded.config.cluster.nodes * per_node, shape.parallel.model_ranks
    if shape.trainer_ranks == gpus:
        return
    fix = f"choose tp, cp and pp so that their product divides {gpus}"
    if gpus % replica == 0:
        fix = f"actor.parallel.dp={gpus // replica}"
    elif replica % per_node == 0:
        fix = f"{fix}; or cluster.nodes={replica // per_node}"
    yield ResourceError(
        f"the trainer has {counted(shape.trainer_ranks, 'rank')}, {replica} a replica, and the cluster "
        f"{counted(gpus, 'GPU')}: every GPU needs one rank",
        where=loaded.where("actor.parallel", "cluster.gpus_per_node"),
        fix=fix,
    )


def _crowded(loaded: LoadedConfig[Config], shape: RunShape, per_node: int) -> Iterator[ResourceError]:
    nodes, tp = loaded.config.cluster.nodes, shape.engine.tp
    most = -(-shape.num_engines // nodes)
    where = loaded.where("rollout.parallel.tp", "rollout.num_engines", "cluster.gpus_per_node")
    parts = shape.engine_parts
    if parts > 1 and (tp % parts or shape.num_engines * parts > nodes):
        yield ResourceError(
            f"rollout.parallel.tp = {tp}, num_engines = {shape.num_engines}, on {nodes} x "
            f"{counted(per_node, 'GPU')}: an engine that is larger than a node fills whole nodes, "
            "evenly",
            where=where,
            fix=f"rollout.parallel.tp={per_node}",
        )
    elif parts == 1 and most * tp > per_node:
        yield ResourceError(
            f"{counted(most, 'engine')} of {counted(tp, 'rank')} on a node of {counted(per_node, 'GPU')}: "
            "no two share a GPU",
            where=where,
            fix=f"rollout.num_engines={nodes * (per_node // tp)}",
        )
