"""Refuses a launch that does not fit into the memory of this machine, as `plan` counts it."""

from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import model_name
from hybridrl.config.schema import Config
from hybridrl.errors import ResourceError
from hybridrl.estimate.gpus import only_memory
from hybridrl.estimate.memory import Phase, least
from hybridrl.estimate.setting import Setting
from hybridrl.hosts.machine import GIB, Machine
from hybridrl.launch.shape import with_gpus
from hybridrl.models.spec import ModelSpec


def refuse_too_little_memory(loaded: LoadedConfig[Any], model: ModelSpec, machine: Machine) -> None:
    """
    Args:
        loaded: a config that passed the rules.

    Raises:
        ResourceError: a GPU, or the machine if the run takes no GPU, has less free memory than the run needs
            at least.
    """
    cfg, gpus = with_gpus(loaded, machine).config, machine.gpus
    takes_gpus = bool(gpus and cfg.cluster.gpus_per_node)
    free = min(gpu.memory_bytes - gpu.used_bytes for gpu in gpus) if takes_gpus else machine.available_bytes
    known = only_memory(gpus[0].name, free) if takes_gpus else None
    setting = (
        Setting.of(cfg, model, known) if isinstance(cfg, Config) else Setting.of_examples(cfg, model, known)
    )
    need = least(setting)
    if need.peak <= free:
        return
    what, has = ("a GPU", "has free") if takes_gpus else ("the machine", "has available")
    smaller = "use a smaller model"
    raise ResourceError(
        f"{model_name(loaded)} needs at least {need.peak / GIB:.1f} GiB ({_shares(need)}), "
        f"{what} {has} {free / GIB:.1f} GiB",
        where=loaded.where("model.path"),
        fix=f"{smaller}, or raise actor.parallel.tp or pp" if takes_gpus else smaller,
    )


def _shares(need: Phase) -> str:
    training = need.weights + need.gradients + need.optimizer
    engines = need.engine + need.kv
    return f"training {training / GIB:.1f}{f', engines {engines / GIB:.1f}' if engines else ''}"
