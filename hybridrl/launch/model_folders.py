"""Replaces models that a config names as the hub does by the folders that workers read.

The config of a run keeps the name, so that a job on another machine finds its own copy; only the code that
starts workers here sees folders. The nodes of a job share the cache of the hub.
"""

from collections.abc import Iterator
from dataclasses import replace

from hybridrl.config.load import LoadedConfig
from hybridrl.launch.preflight import Say
from hybridrl.models import hub
from hybridrl.observe.progress import progress


def absent(loaded: LoadedConfig) -> bool:
    """Whether a model of the config is a name on the hub of which this machine has no copy."""
    return any(True for _ in _absent(loaded))


def fetch_specs(loaded: LoadedConfig) -> None:
    """Get the config.json of every absent model, so that checks come before the long download.

    Raises:
        ModelError: the hub does not give it, or no table describes it.
    """
    for key, name in _absent(loaded):
        hub.fetch_spec(name, where=loaded.where(key))


def fetch(loaded: LoadedConfig, say: Say) -> None:
    """Download every absent model.

    Raises:
        ModelError: the hub does not give it, or it is not in safetensors.
    """
    for key, name in _absent(loaded):
        say("download", name)
        with progress("download", name, "bytes") as advance:
            folder = hub.fetch(name, where=loaded.where(key), advance=advance)
        say("download", f"{name} is in {folder}")


def in_folders(loaded: LoadedConfig) -> LoadedConfig:
    """The config with its models as folders, if this machine has them."""
    cfg = loaded.config
    found = {name: str(folder) for _, name in _named(loaded) if (folder := hub.find_folder(name))}
    model = cfg.model.model_copy(update={"path": found.get(cfg.model.path, cfg.model.path)})
    teacher = cfg.algorithm.teacher and found.get(cfg.algorithm.teacher, cfg.algorithm.teacher)
    algorithm = cfg.algorithm.model_copy(update={"teacher": teacher})
    scoring, judge, frozen = (
        own and own.model_copy(update={"path": found.get(own.path, own.path)})
        for own in (cfg.reward_model, cfg.judge, cfg.frozen)
    )
    changed = {"model": model, "algorithm": algorithm, "reward_model": scoring}
    changed |= {"judge": judge, "frozen": frozen}
    return replace(loaded, config=cfg.model_copy(update=changed))


def _absent(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    for key, name in _named(loaded):
        if hub.is_name(name) and hub.find_folder(name) is None:
            yield key, name


def _named(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    """Key and value of every model, except one that model.make writes."""
    cfg = loaded.config
    if cfg.model.make is None:
        yield "model.path", cfg.model.path
    if cfg.algorithm.teacher:
        yield "algorithm.teacher", cfg.algorithm.teacher
    if cfg.reward_model:
        yield "reward_model.path", cfg.reward_model.path
    if cfg.judge:
        yield "judge.path", cfg.judge.path
    if cfg.frozen:
        yield "frozen.path", cfg.frozen.path
