"""What a command line names: a config, the folder of a run, or a model; and the folder of its weights."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from hybridrl.config.load import LoadedConfig, load, parse_as
from hybridrl.config.run_shape import num_gpus
from hybridrl.config.schema import Config
from hybridrl.config.strict_yaml import parse_value
from hybridrl.errors import ConfigError, UserError
from hybridrl.export import command as exporting
from hybridrl.launch.shape import RunFiles
from hybridrl.models import hub
from hybridrl.models.make import make_model
from hybridrl.observe.progress import progress

Say = Callable[[str, str], None]

_OF_CONFIGS = (".yaml", ".yml")
_NO_CONFIG = "the command line"
"""File of a config that is made of options alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What is served."""

    kind: Literal["config", "run", "model"]
    text: str
    """As it was given."""

    file: str
    """The config."""

    overrides: tuple[str, ...]
    run: Path | None = None
    """The run folder, whose newest weights, or those of `step`, are served."""

    step: int | None = None
    document: str | None = None
    """Text of the config, if it is in no file."""

    def load(self, *more: str) -> LoadedConfig[Config]:
        """The config with further overrides.

        Raises:
            ConfigError, ConfigErrors: as load().
        """
        given = [*self.overrides, *more]
        if self.document is not None:
            return parse_as(Config, self.document, self.file, given)
        return load(self.file, given)


def named(
    text: str, overrides: Sequence[str] = (), *, config: Path | None = None, step: int | None = None
) -> Named:
    """Tell what the first argument of a command is.

    Args:
        config: the config whose data, reward and engine are used for a model.
        step: the checkpoint of a run; None: the newest.

    Raises:
        ConfigError, UserError: it is nothing of the three, or an option does not go with it.
    """
    path, given = Path(text), tuple(overrides)
    is_run = (path / "resolved.yaml").is_file()
    if step is not None and not is_run:
        raise ConfigError(f"--step is of a run, and {text} is none", fix="leave out --step, or name a run")
    if is_run:
        if config is not None:
            raise ConfigError(f"{text} is a run, which has its config", fix="leave out --config; set keys")
        return Named(
            kind="run", text=text, file=str(path / "resolved.yaml"), overrides=given, run=path, step=step
        )
    is_on_hub = hub.is_name(text) and not path.parent.is_dir() and path.suffix not in _OF_CONFIGS
    if (path / "config.json").is_file() or is_on_hub:
        return _model(text, given, config)
    if path.is_dir():
        raise UserError(
            f"{text} holds neither a run (resolved.yaml) nor a model (config.json)",
            fix=_near(path) or "name a config, the folder of a run, or a model",
        )
    if config is not None:
        raise ConfigError(
            f"--config goes with a model, and {text} is none", fix="name a model folder, or one on the hub"
        )
    if not path.exists() and path.suffix not in _OF_CONFIGS:
        raise UserError(
            f"there is no config, run or model {text}",
            fix=_near(path) or "name a config, the folder of a run, or a model",
        )
    return Named(kind="config", text=text, file=text, overrides=given)


@contextlib.contextmanager
def weights(of: Named, loaded: LoadedConfig[Config], say: Say) -> Iterator[tuple[LoadedConfig[Config], int]]:
    """The config with the folder of the weights as its model, and the number of policy updates they had.

    The weights of a run are written next to its checkpoints, and removed in the end.

    Raises:
        RunFolderError: it is a run of training on examples.
        CheckpointError: the run has no such checkpoint, or none is undamaged.
    """
    if of.run is None:
        yield loaded, 0
        return
    files = RunFiles(of.run)
    if not files.checkpoints.is_dir() and (files.export / "config.json").is_file() and of.step is None:
        say("model", f"{files.export}: the run keeps no checkpoint")
        yield of_folder(loaded, files.export), loaded.config.run.steps
        return
    with tempfile.TemporaryDirectory(prefix=".weights-", dir=of.run) as folder:
        dtype = torch.float32 if _computes_in_fp32(loaded.config) else None
        exported = exporting.export_run(of.run, step=of.step, to=Path(folder, "model"), dtype=dtype)
        for text in exported.passed_over:
            say("warning", text)
        say("model", f"{of.run} at step {exported.step}")
        yield of_folder(loaded, exported.folder), exported.step


def write_made(loaded: LoadedConfig[Config], say: Say) -> None:
    """Write the model that model.make makes, if it is not there."""
    own = loaded.config.model
    if own.make is None or Path(own.path).is_dir():
        return
    with progress("model", f"{own.make} writes {own.path}"):
        make_model(own.make, Path(own.path), loaded.config.run.seed, where=loaded.where("model.make"))
    say("model", f"{own.path}, written by {own.make}: it is not trained")


def _model(text: str, overrides: tuple[str, ...], config: Path | None) -> Named:
    own = (f"model.path={json.dumps(text)}", "model.make=null")
    if config is not None:
        return Named(kind="model", text=text, file=str(config), overrides=(*own, *overrides))
    given = {override.partition("=")[0] for override in overrides}
    has_reward = any(key.partition(".")[0] == "reward" for key in given)
    tree: dict[str, Any] = {"model": text, "reward": "none", "run": {"name": "serve"}}
    if has_reward:
        del tree["reward"]
    tree["data"] = {"train": _source_of(overrides) or "no-data.jsonl"}
    return Named(kind="model", text=text, file=_NO_CONFIG, overrides=overrides, document=json.dumps(tree))


def _source_of(overrides: Sequence[str]) -> Any:
    """The held-out data among the overrides: a config needs training data too, which nobody reads here."""
    found = [value for key, _, value in (one.partition("=") for one in overrides) if key == "data.heldout"]
    return parse_value(found[-1], _NO_CONFIG) if found else None


def of_folder(loaded: LoadedConfig[Config], folder: Path) -> LoadedConfig[Config]:
    """The config with a folder as its model."""
    cfg = loaded.config
    model = cfg.model.model_copy(update={"path": str(folder), "make": None})
    return replace(loaded, config=cfg.model_copy(update={"model": model}))


def _computes_in_fp32(cfg: Config) -> bool:
    """Whether the trainer's parameters are fp32, so that the engines of the run had all their bits."""
    return cfg.actor.precision == "fp32" or (cfg.actor.precision is None and not num_gpus(cfg.cluster))


def _near(path: Path) -> str:
    """Runs in the folder that was meant, newest first."""
    for folder in (path, path.parent, Path("runs")):
        found = sorted(folder.glob("*/resolved.yaml"), key=lambda one: -one.stat().st_mtime)[:3]
        if found:
            return f"there is {', '.join(str(one.parent) for one in found)}"
    return ""
