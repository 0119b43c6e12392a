"""The work of `hybridrl plan`: it estimates memory, time and weight swap of a config, or refuses it.

It needs no GPU, and imports torch only if the check of an algorithm does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hybridrl.config.judge import ServedModelConfig
from hybridrl.config.load import LoadedConfig
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError, LayoutError, ResourceError, refuse
from hybridrl.estimate import memory, swap
from hybridrl.estimate.fit import cheapest_change, fits, fullest, too_small_cache
from hybridrl.estimate.fixed import fixed
from hybridrl.estimate.gpus import GPUS, GPUModel, recognise
from hybridrl.estimate.search import Proposal, overlapped, search
from hybridrl.estimate.served import served_models, weights_too_large
from hybridrl.estimate.setting import Setting
from hybridrl.hosts.machine import Machine
from hybridrl.launch.verdict import SCOPES, verdict
from hybridrl.plan.swap_job import swap_job


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of `hybridrl plan`."""

    search: bool
    gpus: int | None
    """Number of GPUs to plan for; None: as in the config."""

    mean_response: float | None
    """Mean response length in tokens; None: half of the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    setting: Setting
    machine: Machine
    refusal: ResourceError | None
    """Why the config does not fit; only a search goes on in that case."""

    swap: swap.SwapEstimate | None
    """None: there are no engines, they take weights through their own loader, or the config does not fit."""

    proposals: tuple[Proposal, ...]
    overlapped: Proposal | None = None
    """The fastest with engines on GPUs of their own, if answers could be one update old; None: no search."""

    served: tuple[tuple[str, ServedModelConfig], ...] = ()
    """Models that have engines and are never trained, by their section."""


def plan(loaded: LoadedConfig, machine: Machine, request: Request) -> Plan:
    """
    Raises:
        ConfigErrors, ConfigError, ModelError: the config is wrong on any hardware.
        ResourceError: the run does not fit its GPUs, and no search was requested.
    """
    scope = SCOPES["plan --search" if request.search or request.gpus else "plan"]
    found = verdict(loaded, scope, machine)
    model, loaded = found.known(), found.loaded
    gpu = gpu_of(loaded, machine)
    setting = Setting.of(loaded.config, model, gpu, mean_response=request.mean_response)
    if gpu and request.gpus:
        setting = _on_gpus(setting, request.gpus, loaded)
    refusal = _refusal(loaded, setting, machine)
    if gpu is not None:
        refuse(list(_too_small_shares(loaded, gpu)))
    if refusal is not None and not (gpu and request.search):
        raise refusal
    moved = None
    if refusal is None and model.has_table:
        job = swap_job(_on_nodes_of(setting, loaded.config) if request.gpus else loaded.config, model)
        moved = swap.estimate(job, setting.engine_bytes, fixed(setting))
    proposals = tuple(search(setting)) if gpu and request.search else ()
    return Plan(
        setting=setting,
        machine=machine,
        refusal=refusal,
        swap=moved,
        proposals=proposals,
        overlapped=overlapped(setting) if proposals else None,
        served=tuple(served_models(loaded.config)),
    )


def _too_small_shares(loaded: LoadedConfig, gpu: GPUModel) -> Iterator[ResourceError]:
    """Refuses models that are not trained and whose weights do not fit their share of a GPU."""
    for section, weights, share in weights_too_large(loaded.config, gpu):
        key = f"{section}.memory_fraction"
        yield ResourceError(
            f"{section}: a GPU would hold {weights / 1e9:.1f} GB of its weights, and {key} gives it "
            f"{share / 1e9:.1f} GB of {gpu.name}",
            where=loaded.where(key, section),
            fix=f"raise {key}, or {section}.tp",
        )


def _on_nodes_of(setting: Setting, config: Config) -> Config:
    cluster = config.cluster.model_copy(update={"nodes": setting.nodes})
    rollout = config.rollout.model_copy(update={"num_engines": setting.num_engines})
    actor = config.actor.model_copy(update={"parallel": setting.train})
    return config.model_copy(update={"cluster": cluster, "rollout": rollout, "actor": actor})


def plan_examples(loaded: LoadedConfig[Any], machine: Machine, request: Request) -> Plan:
    """The plan of a `hybridrl sft` or `hybridrl rm` config.

    Raises:
        ConfigErrors, ConfigError, ModelError, ResourceError: as `plan`, or a search was requested.
    """
    if request.search or request.gpus:
        raise ConfigError("--search and --gpus are for RL configs; an sft or rm run has no engines")
    found = verdict(loaded, SCOPES["plan"], machine)
    model, loaded = found.known(), found.loaded
    gpu = gpu_of(loaded, machine)
    setting = Setting.of_examples(loaded.config, model, gpu, mean_length=request.mean_response)
    if (refusal := _refusal(loaded, setting, machine)) is not None:
        raise refusal
    return Plan(setting=setting, machine=machine, refusal=None, swap=None, proposals=())


def gpu_of(loaded: LoadedConfig[Any], machine: Machine) -> GPUModel | None:
    """The GPU model that a config names, or this machine's; None: the run uses no GPUs.

    Raises:
        ConfigError: the run uses GPUs, and their model is unknown.
    """
    cluster = loaded.config.cluster
    if cluster.gpu is not None:
        return GPUS[cluster.gpu]
    if cluster.gpus_per_node == 0 or not (machine.gpus or cluster.gpus_per_node):
        return None
    if not machine.gpus:
        raise ConfigError(
            f"cluster.gpus_per_node = {cluster.gpus_per_node}, but the GPU model is unknown",
            where=loaded.where("cluster.gpus_per_node"),
            fix=f"set cluster.gpu=h100, or another of {', '.join(GPUS)}",
        )
    return recognise(machine.gpus[0].name, machine.gpus[0].memory_bytes)


def _on_gpus(setting: Setting, gpus: int, loaded: LoadedConfig) -> Setting:
    nodes, rest = divmod(gpus, setting.gpus_per_node)
    if rest or not nodes:
        raise ConfigError(
            f"--gpus {gpus} is not a multiple of cluster.gpus_per_node = {setting.gpus_per_node}",
            where=loaded.where("cluster.gpus_per_node"),
            fix=f"use a multiple of {setting.gpus_per_node}",
        )
    engines = max(1, setting.num_engines * nodes // setting.nodes)  # dedicated GPUs keep their share
    return replace(setting, nodes=nodes, num_engines=engines).filled()


def _refusal(loaded: LoadedConfig, setting: Setting, machine: Machine) -> ResourceError | None:
    """The error if the config does not fit, with the cheapest change that makes it fit."""
    if setting.gpu is None:
        return _too_large_here(loaded, setting, machine)
    if not setting.missing_gpus():
        try:
            setting.layout()
            if setting.num_engines:
                setting.engine_layout()
        except LayoutError as error:
            where = loaded.where("actor.parallel", "rollout.parallel")
            raise ConfigError(error.what, where=where, fix=error.fix) from error
    if fits(setting):
        return None
    what, place = _shortage(loaded, setting)
    change = cheapest_change(setting)
    found = f"cheapest change that fits: {change.text}" if change else "no change of one key makes it fit"
    others = " (hybridrl plan --search finds others)" if setting.num_engines else ""
    return ResourceError(what, where=place, fix=f"{found}{others}")


def _shortage(loaded: LoadedConfig, setting: Setting) -> tuple[str, str]:
    """(what does not fit, with both numbers; the keys to change)"""
    assert setting.gpu is not None
    gpu, sharding = setting.gpu, setting.train
    if missing := setting.missing_gpus():
        key = missing.partition(" ")[0]
        least = memory.least_training(setting) / setting.num_gpus / 1e9
        what = (
            f"does not fit: {missing}, the cluster has {setting.num_gpus}; training alone needs "
            f"{least:.1f} GB on each of these, {gpu.name} has {gpu.memory_bytes / 1e9:.1f} GB"
        )
        return what, loaded.where(key, "cluster.nodes")
    if cache := too_small_cache(setting):
        return f"does not fit: {cache}", loaded.where("rollout.parallel", "rollout.memory_fraction")
    phase = fullest(setting)
    parts = {
        "weights": phase.weights,
        "gradients and optimizer": phase.gradients + phase.optimizer,
        "activations": phase.activations,
        "engine": phase.engine + phase.kv,
    }
    shares = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items() if size)
    what = (
        f"does not fit: {phase.name} needs {phase.peak / 1e9:.1f} GB per GPU ({shares}), "
        f"{gpu.name} has {gpu.memory_bytes / 1e9:.1f} GB"
    )
    keys = (
        ("actor.microbatch_tokens", "actor.parallel") if phase.activations else ("rollout.memory_fraction",)
    )
    shardings = " ".join(f"{axis}{getattr(sharding, axis)}" for axis in ("tp", "cp", "pp", "dp"))
    return f"{what} with {shardings}", loaded.where(*keys, "actor.parallel")


def _too_large_here(loaded: LoadedConfig, setting: Setting, machine: Machine) -> ResourceError | None:
    """The error if this machine's memory cannot hold all ranks and engines at the same time."""
    need = memory.on_cpu(setting).peak
    if need <= machine.available_bytes:
        return None
    return ResourceError(
        f"does not fit: all ranks need {need / 1e9:.1f} GB, this machine has "
        f"{machine.available_bytes / 1e9:.1f} GB free",
        where=loaded.where("model.path"),
        fix="use a smaller model, or smaller actor.microbatch_tokens",
    )
