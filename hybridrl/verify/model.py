"""The model of the certificate: a small one of the same family as the config's model, or the model itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridrl.config.load import LoadedConfig
from hybridrl.errors import ModelError
from hybridrl.models import hub
from hybridrl.models.make import make_model
from hybridrl.models.published import published_config
from hybridrl.models.shrink import shrink


@dataclass(frozen=True, slots=True)
class Chosen:
    folder: Path
    """Folder of the model."""

    teacher: str | None
    """Folder of the teacher, if the algorithm has one."""


def choose(loaded: LoadedConfig, folder: Path, *, full: bool) -> Chosen:
    """Choose the model, and make it if necessary.

    Args:
        folder: folder in which a model may be made.
        full: use the config's own model with its weights.

    Raises:
        ModelError: the model is not on this machine, or is not supported.
    """
    cfg = loaded.config
    source, teacher = _folder(loaded, folder / "made"), cfg.algorithm.teacher
    if full:
        return Chosen(source or _refuse(loaded), teacher)
    config = _config(source) if source else published_config(cfg.model.path) or _refuse(loaded)
    shrink(config, folder / "small", cfg.run.seed)
    if teacher is None:
        return Chosen(folder / "small", None)
    shrink(config, folder / "teacher", cfg.run.seed + 1)  # the teacher's family must be the policy's
    return Chosen(folder / "small", str(folder / "teacher"))


def _folder(loaded: LoadedConfig, made: Path) -> Path | None:
    """Folder of the config's model, made in `made` by model.make if necessary; None if there is none here."""
    model = loaded.config.model
    if (found := hub.find_folder(model.path)) or model.make is None:
        return found
    make_model(model.make, made, loaded.config.run.seed, where=loaded.where("model.make"))
    return made


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"no config.json in {folder}", where=str(folder), fix="give a model folder")
    return json.loads(path.read_text("utf-8"))


def _refuse(loaded: LoadedConfig) -> Any:
    path = loaded.config.model.path
    raise ModelError(
        f"model.path = {path} is not on this machine",
        where=loaded.where("model.path"),
        fix="give a folder; without --full its config.json is enough",
    )
