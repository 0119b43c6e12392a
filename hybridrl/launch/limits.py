"""What no launch can do yet, refused before anything starts."""

from hybridrl.config.load import LoadedConfig
from hybridrl.errors import ResourceError
from hybridrl.hosts.machine import Machine


def refuse_gpus(loaded: LoadedConfig, machine: Machine | None) -> None:
    """
    Args:
        machine: whose GPUs are taken where cluster.gpus_per_node does not say; None: no machine that is here.

    Raises:
        ResourceError: the run would take GPUs.
    """
    asked = loaded.config.cluster.gpus_per_node
    gpus = (len(machine.gpus) if machine else 0) if asked is None else asked
    if gpus:
        raise ResourceError(
            f"this run would take {gpus} GPUs, but weights cannot be swapped through CUDA IPC yet",
            where=loaded.where("cluster.gpus_per_node"),
            fix="cluster.gpus_per_node=0 runs it on the CPU",
        )


def refuse_nodes(loaded: LoadedConfig, fix: str) -> None:
    """
    Args:
        fix: what starts several machines, or one.

    Raises:
        ResourceError: the run would take several machines.
    """
    nodes = loaded.config.cluster.nodes
    if nodes > 1:
        raise ResourceError(
            f"cluster.nodes = {nodes}, but what starts here has this machine only",
            where=loaded.where("cluster.nodes"),
            fix=fix,
        )
