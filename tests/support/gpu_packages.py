"""Packages of GPUs on a machine without one: where Python files are, and stand-ins for what is compiled."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

TRANSFORMER_ENGINE = Path(sys.prefix) / "transformer-engine"
"""Transformer Engine's Python files, which no program has on its path. requirements/install puts them there
with Python 3.12, which has the Megatron-core of GPUs."""


class Nothing:
    """Function, class and value of an extension that is not there: all asked of it is itself again, or 0."""

    def __call__(self, *args: Any, **options: Any) -> "Nothing":
        return self

    def __getattr__(self, name: str) -> "Nothing":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __int__(self) -> int:
        return 0

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[()]:
        return ()  # a class may be derived from it


class Extension(ModuleType):
    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class Finder(MetaPathFinder, Loader):
    """Finds a package, and every module in it, as an extension that is not there."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        ours = name.split(".")[0] == self._package
        return ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Extension(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""
