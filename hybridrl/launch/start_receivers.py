"""Starts the receivers of engines on dedicated devices."""

from dataclasses import replace

from hybridrl.cluster.network import Rendezvous
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.launch.shape import Placement, trainer_host, trainer_layout
from hybridrl.launch.start_trainers import Start
from hybridrl.models import spec
from hybridrl.reshard.topology import Topology
from hybridrl.workers.receivers import Receivers, ReceiverWorker
from hybridrl.workers.swap_rank import ReceiverSetup


def start_receivers(
    cfg: Config,
    shape: RunShape,
    placement: Placement,
    topology: Topology | None,
    rendezvous: Rendezvous,
    start: Start,
) -> Receivers | None:
    """Start a receiver beside each engine rank; None: engines share the trainer's devices.

    Args:
        topology: the devices of the run, with those of the receivers.
        rendezvous: gives the address where they meet the trainer ranks.
    """
    if topology is None or not topology.agents:
        return None
    cluster = cfg.cluster
    first = ReceiverSetup(
        device=0,
        source=trainer_layout(cfg, spec.read(cfg.model.path), shape.parallel),
        on_gpu=trainer_host(cfg) == "cuda",
        timeout_s=cluster.deadlines.collective_s or cluster.step_timeout_s,
    )
    given = [(replace(first, device=device),) for device in topology.agents]
    workers = start("engine receiver", ReceiverWorker, given, placement.receiver)
    return Receivers(workers, shape.engine.tp, rendezvous("receivers"), cluster.start_timeout_s)
