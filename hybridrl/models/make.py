"""Models that a program writes: `model.make` of a config."""

from collections.abc import Callable
from pathlib import Path

from hybridrl import registry
from hybridrl.outside import called

KEY = "model.make"


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
