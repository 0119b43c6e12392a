"""vLLM's loader where it is not what the layout says: it is named, with the change."""

import asyncio
import os
from functools import partial
from pathlib import Path

import pytest
from engine_kinds import case_of
from engine_values import saved_mixture

from hybridrl.errors import EngineError
from hybridrl.models import spec
from hybridrl.rollout.vllm import start

SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = pytest.mark.slow


def test_a_release_whose_loader_differs_is_named_with_the_change(tmp_path, monkeypatch) -> None:
    kind = case_of("vllm")
    kind.model(1).save_pretrained(tmp_path)
    program = partial(start.HostProgram, module="vllm_host_other_loader")
    monkeypatch.setattr(start, "HostProgram", lambda module, **given: program(**given))
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
    engine = kind.engine(tmp_path)
    try:
        found = asyncio.run(engine.probe_loader(kind.layout(spec.read(tmp_path))))
    finally:
        engine.shutdown()
    assert found is not None and "model.layers.0.mlp.gate_up_proj.weight" in found.what
    assert "the engine's loader puts" in found.what and "up_proj.weight there" in found.what
    assert found.fix == "rollout.weight_path=engine_api sends weights through the engine's loader"


@pytest.mark.parametrize("tp", [1, 2])
def test_experts_that_vllm_repacks_are_named(tmp_path: Path, tp: int) -> None:
    kind = case_of("vllm")
    saved_mixture(tmp_path, 1)
    engine = kind.engine(tmp_path, tp=tp)
    try:
        found = asyncio.run(engine.probe_loader(kind.layout(spec.read(tmp_path), tp=tp)))
        assert found is not None and found.what.startswith("vLLM has repacked model.layers.0.mlp.experts")
        with pytest.raises(EngineError, match="cannot be written in place"):
            engine.export_parameters()
    finally:
        engine.shutdown()
