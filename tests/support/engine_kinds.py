"""The kinds of engines that the same tests are run on."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_values
import pytest

from hybridrl.config.rollout import EngineParallel
from hybridrl.layout.base import Layout
from hybridrl.rollout.base import EngineSetup
from hybridrl.rollout.process import EngineProcess
from hybridrl.rollout.sglang import SGLang
from hybridrl.rollout.vllm import VLLM

VLLM_PYTHON = Path(__file__).parents[2] / ".venv-vllm/bin/python"


@dataclass(frozen=True)
class KindCase:
    kind: Any
    model_changes: Mapping[str, Any]
    python: str | None = None

    def model(self, seed: int, **changes: Any) -> Any:
        return engine_values.model(seed, **{**self.model_changes, **changes})

    def setup(self, folder: Path, tp: int = 1, **options: Any) -> EngineSetup:
        sizes: Callable[..., EngineParallel] = self.kind.parallel
        return engine_values.setup(folder, **{"parallel": sizes(tp=tp), "python": self.python, **options})

    def engine(self, folder: Path, tp: int = 1, **options: Any) -> EngineProcess:
        return self.kind.open(self.setup(folder, tp, **options))

    def layout(self, spec: Any, tp: int = 1) -> Layout:
        return self.kind.layout(spec, self.kind.parallel(tp=tp))


TESTED = {
    "sglang": KindCase(SGLang(), {}),
    "vllm": KindCase(VLLM(), {"head_dim": 32}, str(VLLM_PYTHON)),
}


def case_of(name: str) -> KindCase:
    """A kind by its name; skips the test if its environment is not here."""
    found = TESTED[name]
    if not Path(found.python or sys.executable).exists():
        pytest.skip(f"{name} is not installed: make setup-{name}")
    return found
