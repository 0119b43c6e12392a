"""Replaces layers and arguments of engines in every process whose PYTHONPATH has this folder."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def backend(module: ModuleType) -> None:
    import without_te

    without_te.replace_layers()


def start(module: Any) -> None:
    import one_engine

    plain = module.engine_arguments
    module.engine_arguments = lambda setup: plain(setup) | one_engine.EAGER


def layout(module: ModuleType) -> None:
    import without_te

    without_te.replace_layout()


AFTER = {
    "hybridrl.layout.megatron": layout,
    "hybridrl.rollout.sglang.start": start,
    "hybridrl.trainer.megatron.backend": backend,
}
"""What is done when a module has been imported for the first time."""


class Finder:
    def __init__(self) -> None:
        self._done: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in AFTER or name in self._done:
            return None
        self._done.add(name)
        found = find_spec(name)
        assert found is not None and found.loader is not None
        execute = found.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            AFTER[name](module)

        found.loader.exec_module = executed  # type: ignore[method-assign]
        return found


sys.meta_path.insert(0, Finder())
