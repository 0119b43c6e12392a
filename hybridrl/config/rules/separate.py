"""Rules about engines on dedicated devices: how many they have, and what is left for the trainer.

Trainer ranks fill the first GPUs of the cluster, engines the last ones. Without GPUs, engines have the last
nodes. Nodes that may come after the run has begun (cluster.min_nodes) have engines only.
"""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.run_shape import RunShape, engine_gpus, is_separate, num_gpus, trainer_gpus
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError, HybridRLError, ResourceError
from hybridrl.wording import counted


def engines_have_their_own_devices(
    loaded: LoadedConfig[Config], context: RuleContext
) -> Iterator[ResourceError]:
    """Trainer ranks and engines fill all devices, and no engine spans a node of the trainer."""
    cfg = loaded.config
    if not is_separate(cfg) or not context.fills_gpus:
        return
    gpus = num_gpus(cfg.cluster)
    if not gpus:
        yield from _idle_nodes(loaded)
    elif cfg.rollout.num_engines is None:
        yield ResourceError(
            f"cluster.placement = separate divides {counted(gpus, 'GPU')} between trainer and "
            "engines, and rollout.num_engines is not set",
            where=loaded.where("cluster.placement", "rollout"),
            fix="set rollout.num_engines: engines get that many x rollout.parallel.tp GPUs, the trainer the "
            "others",
        )
    else:
        unfit = [*_unfit_engines(loaded, cfg.rollout.num_engines)]
        yield from unfit or _idle_gpus(loaded)
        yield from _served_beside(loaded)


def nodes_that_come_late_have_engines_only(
    loaded: LoadedConfig[Config], context: RuleContext
) -> Iterator[HybridRLError]:
    """A run that begins without some nodes has its trainer and an engine on the others."""
    cfg, cluster = loaded.config, loaded.config.cluster
    if cluster.nodes_at_start == cluster.nodes:
        return
    key, what = "cluster.min_nodes", f"cluster.min_nodes = {cluster.min_nodes} of {cluster.nodes}"
    if not is_separate(cfg):
        yield ConfigError(
            f"{what}, and cluster.placement = {cluster.placement}: every node has trainer ranks, and the run "
            "cannot begin without them",
            where=loaded.where(key, "cluster.placement"),
            fix="cluster.placement=separate, or leave out cluster.min_nodes",
        )
        return
    if not cfg.rollout.max_restarts:
        yield ConfigError(
            f"{what}, and rollout.max_restarts = 0: no engine is started while the run goes on",
            where=loaded.where("rollout.max_restarts", key),
            fix="rollout.max_restarts=3",
        )
    shape = RunShape.of(cfg)
    if shape.engine_parts > 1:
        yield ConfigError(
            f"{what}, and an engine of rollout.parallel.tp = {shape.engine.tp} is on "
            f"{counted(shape.engine_parts, 'node')}: it cannot be started while the run goes on",
            where=loaded.where(key, "rollout.parallel.tp"),
            fix=f"rollout.parallel.tp={cluster.gpus_per_node}, or leave out cluster.min_nodes",
        )
    elif cluster.nodes_at_start < (least := _fewest_nodes(cfg, shape)) <= cluster.nodes:
        yield ConfigError(
            f"{what}: the trainer and one engine take {counted(least, 'node')}",
            where=loaded.where(key, "rollout.num_engines"),
            fix=f"cluster.min_nodes={least}, or more engines on more nodes",
        )


def _fewest_nodes(cfg: Config, shape: RunShape) -> int:
    """Nodes that have all trainer ranks and one engine."""
    cluster = cfg.cluster
    if not cluster.gpus_per_node:
        return cluster.nodes - min(shape.num_engines, cluster.nodes - 1) + 1
    return -(-(trainer_gpus(cfg) + shape.engine.tp) // cluster.gpus_per_node)


def _idle_nodes(loaded: LoadedConfig[Config]) -> Iterator[ResourceError]:
    """Without GPUs, every node has an engine or a trainer rank."""
    shape, nodes = RunShape.of(loaded.config), loaded.config.cluster.nodes
    most = shape.trainer_ranks + shape.num_engines * shape.engine_parts
    if nodes > most:
        yield ResourceError(
            f"cluster.nodes = {nodes}, with {counted(shape.trainer_ranks, 'trainer rank')} and "
            f"{counted(shape.num_engines, 'engine')}: every node has one or the other",
            where=loaded.where("cluster.nodes", "actor.parallel", "rollout.num_engines"),
            fix=f"cluster.nodes={most}, or more ranks or engines",
        )


def _unfit_engines(loaded: LoadedConfig[Config], engines: int) -> Iterator[ResourceError]:
    """Engines take whole nodes, or fit several to a node, or are all on the last node."""
    cluster, tp = loaded.config.cluster, loaded.config.rollout.parallel.tp
    per_node, gpus, taken = cluster.gpus_per_node or 0, num_gpus(cluster), engines * tp
    where = loaded.where("rollout.num_engines", "rollout.parallel.tp", "cluster.placement")
    what = f"{counted(engines, 'engine')} of {counted(tp, 'GPU')}"
    if taken >= gpus:
        yield ResourceError(
            f"cluster.placement = separate: {what} leave the trainer none of {counted(gpus, 'GPU')}",
            where=where,
            fix=f"rollout.num_engines={(gpus - 1) // tp}, or fewer"
            if tp < gpus
            else "use a smaller rollout.parallel.tp, or more nodes",
        )
    elif taken > per_node and (tp % per_node if tp > per_node else per_node % tp):
        sizes = [size for size in range(1, per_node + 1) if per_node % size == 0]
        yield ResourceError(
            f"cluster.placement = separate: {what} do not fill nodes of {counted(per_node, 'GPU')}, and no "
            "engine may share a node unevenly with another",
            where=where,
            fix=f"rollout.parallel.tp={max(size for size in sizes if size <= tp)}",
        )


def _idle_gpus(loaded: LoadedConfig[Config]) -> Iterator[ResourceError]:
    """The trainer has a rank on every GPU that engines leave."""
    cfg, shape = loaded.config, RunShape.of(loaded.config)
    gpus, taken, replica = num_gpus(cfg.cluster), engine_gpus(cfg), shape.parallel.model_ranks
    left = gpus - taken
    if shape.trainer_ranks == left:
        return
    fix = f"choose tp, cp and pp so that their product divides {left}, or another rollout.num_engines"
    if left % replica == 0:
        fix = f"actor.parallel.dp={left // replica}"
    yield ResourceError(
        f"the trainer has {counted(shape.trainer_ranks, 'rank')}, {replica} a replica, and engines leave it "
        f"{left} of {counted(gpus, 'GPU')} (rollout.num_engines = {shape.num_engines}, rollout.parallel.tp = "
        f"{shape.engine.tp}): every GPU needs one rank",
        where=loaded.where("actor.parallel", "rollout.num_engines", "cluster.placement"),
        fix=fix,
    )


def _served_beside(loaded: LoadedConfig[Config]) -> Iterator[ResourceError]:
    """Models that are served and not trained take the last GPUs of the trainer's nodes."""
    cfg = loaded.config
    shared = engine_gpus(cfg) % (cfg.cluster.gpus_per_node or 1)
    for section, model in (("judge", cfg.judge), ("frozen", cfg.frozen)):
        if model is not None and shared:
            yield ResourceError(
                f"{section}: its engines take the last GPUs of the trainer's nodes, and cluster.placement = "
                f"separate gives {counted(shared, 'GPU')} of such a node to the policy's engines",
                where=loaded.where(section, "cluster.placement", "rollout.num_engines"),
                fix="let the policy's engines fill whole nodes, with another rollout.num_engines",
            )
