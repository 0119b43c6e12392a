"""The weight swap of a config as a job: layouts of trainer and engines, and the devices of their ranks."""

from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.launch.shape import Placement, trainer_layout
from hybridrl.models import spec as models
from hybridrl.reshard.plan import Job
from hybridrl.reshard.topology import Topology
from hybridrl.rollout.base import kind_of, layout_in


def swap_job(cfg: Config, model: models.ModelSpec) -> Job:
    """The job of a config. Engines use the trainer's devices in order, unless they have dedicated ones.
    Without GPUs a rank is a device."""
    shape = RunShape.of(cfg)
    source = trainer_layout(cfg, model, shape.parallel)
    engines = (
        layout_in(kind_of(cfg.rollout.engine), model, shape.engine, cfg.rollout.precision),
    ) * shape.num_engines
    if shape.separate:
        per_node = cfg.cluster.gpus_per_node or 0
        topology = Placement.of_config(cfg).topology(shape.engine.tp, per_node, parts=shape.engine_parts)
        return Job(source, engines, topology, once_per_node=True)
    ranks = max(source.world_size, shape.num_engines * shape.engine.tp)
    node_size = cfg.cluster.gpus_per_node or -(-ranks // cfg.cluster.nodes)
    sizes = [layout.world_size for layout in engines]
    return Job(source, engines, Topology.colocated(source.world_size, sizes, node_size))
