"""Models that a function writes: `model.make` in a config."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hybridrl import registry
from hybridrl.models.config_json import read_config
from hybridrl.models.spec import ModelSpec, from_config
from hybridrl.outside import called

KEY = "model.make"

Maker = TypeVar("Maker", bound=Callable)


def knows_config(config: Callable[[int], Mapping[str, Any]]) -> Callable[[Maker], Maker]:
    """Mark a maker of large weights: config(seed) returns its config.json without making the weights."""

    def mark(maker: Maker) -> Maker:
        setattr(maker, _CONFIG, config)
        return maker

    return mark


_CONFIG = "__hybridrl_config__"


def find_maker(name: str, *, where: str) -> Callable:
    """The function that `name` refers to.

    Raises:
        ConfigError, UserCodeError: there is no function of this name, or its import fails.
    """
    return registry.find("hybridrl.models", name, where=where, key=KEY)


def make_model(name: str, folder: Path, seed: int, *, where: str) -> None:
    """Let a maker write a model folder.

    Args:
        name: `module:function`, which is called as function(folder, seed).
        where: the place in the config, for errors.

    Raises:
        ConfigError, UserCodeError: as find_maker(), or the function raises.
    """
    called(find_maker(name, where=where), name, folder, seed, key=KEY, where=where)


def spec_of_made(name: str, seed: int, *, where: str) -> ModelSpec:
    """The spec of the model that a maker will write; arguments as for make_model().

    A maker that is not marked with knows_config writes the model into a temporary folder.

    Raises:
        ConfigError, UserCodeError: as make_model().
        ModelError: no model table describes what it writes.
    """
    return from_config(config_of_made(name, seed, where=where), where=name)


def config_of_made(name: str, seed: int, *, where: str) -> Mapping[str, Any]:
    """The config.json of the model that a maker will write; arguments and errors as for spec_of_made()."""
    if (config := getattr(find_maker(name, where=where), _CONFIG, None)) is not None:
        return called(config, name, seed, key=KEY, where=where)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "model")
        make_model(name, made, seed, where=where)
        return read_config(made)
