"""What a launch lacks, as far as it shows before models are downloaded and anything starts."""

from hybridrl.config.load import LoadedConfig
from hybridrl.config.problems import refuse
from hybridrl.config.rules import World
from hybridrl.config.rules.gpus import gpus_are_there
from hybridrl.errors import ResourceError
from hybridrl.hosts.machine import Machine


def refuse_missing_gpus(loaded: LoadedConfig, machine: Machine) -> None:
    """
    Raises:
        ConfigErrors: this machine has fewer GPUs than the config takes.
    """
    refuse(list(gpus_are_there(loaded, World(num_gpus=len(machine.gpus), spec=None))))


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
