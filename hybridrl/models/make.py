"""Models that a program writes: `model.make` of a config."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hybridrl import registry
from hybridrl.models.spec import ModelSpec, from_config, read
from hybridrl.outside import called

KEY = "model.make"

Maker = TypeVar("Maker", bound=Callable)


def knows_config(config: Callable[[int], Mapping[str, Any]]) -> Callable[[Maker], Maker]:
    """Mark a maker of large weights: config(seed) is the config.json that it writes, known without them."""

    def mark(maker: Maker) -> Maker:
        setattr(maker, _CONFIG, config)
        return maker

    return mark


_CONFIG = "__hybridrl_config__"


def find_maker(name: str, *, where: str) -> Callable:
    """
    Raises:
        ConfigError, UserCodeError: there is none of this name, or it does not import.
    """
    return registry.find("hybridrl.models", name, where=where, key=KEY)


def make_model(name: str, folder: Path, seed: int, *, where: str) -> None:
    """Let a program write a model folder.

    Args:
        name: module:function, called as function(folder, seed).
        where: the config place, named in errors.

    Raises:
        ConfigError, UserCodeError: as find_maker(), or it raises.
    """
    called(find_maker(name, where=where), name, folder, seed, key=KEY, where=where)


def spec_of_made(name: str, seed: int, *, where: str) -> ModelSpec:
    """What the model will be, by what its maker knows; else it is written elsewhere, read and thrown away.
    Arguments as make_model().

    Raises:
        ConfigError, UserCodeError: as make_model().
        ModelError: what it writes is no model that a table describes.
    """
    if (config := getattr(find_maker(name, where=where), _CONFIG, None)) is not None:
        return from_config(called(config, name, seed, key=KEY, where=where), where=name)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "model")
        make_model(name, made, seed, where=where)
        return read(made)
