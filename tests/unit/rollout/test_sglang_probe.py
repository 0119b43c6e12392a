"""The probe on SGLang's own models: their layout passes, a planted mistake is named, no trace is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sglang_models import DENSE, SIZES, cases, orders

ROOT = Path(__file__).parents[3]
MODELS = {
    "llama": "1,2",
    "qwen2": "1,2",
    "qwen3-tied": "1,2",
    "gemma2": "1,2",
    "gemma3": "1,2",
    "qwen3-moe": "1,2,2:2",
    "mixtral": "1,2:2",
    "deepseek-v3": "1,2,2:2",
}
"""TP[:EP] of each."""

CASES = cases(MODELS)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """(model, sizes) -> what the probe says of each rank."""
    root = tmp_path_factory.mktemp("models")
    program = ROOT / "tests" / "support" / "sglang_probe.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(program), str(root / "out.json"), *orders(root, MODELS)]
    subprocess.run(command, check=True, env=environment, timeout=500)
    found = json.loads((root / "out.json").read_text())
    return {(Path(key.split()[0]).name, key.split()[1]): ranks for key, ranks in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), CASES)
def test_the_loader_of_sglang_does_what_the_layout_says(verdicts, model, sizes):
    assert {rank["true"] for rank in verdicts[model, sizes]} == {""}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), [case for case in CASES if case[0] in DENSE])
def test_a_layout_with_gate_and_up_exchanged_is_refused(verdicts, model, sizes):
    part = SIZES["intermediate_size"] // int(sizes)
    for rank, found in enumerate(verdicts[model, sizes]):
        first, last = rank * part, (rank + 1) * part - 1
        assert found["false"] == (
            "model.layers.0.mlp.gate_up_proj.weight should hold "
            f"rows {first}-{last}, columns 0-63 of model.layers.0.mlp.up_proj.weight "
            f"at rows 0-{part - 1}, columns 0-63; the engine's loader puts "
            f"rows {first}-{last}, columns 0-63 of model.layers.0.mlp.gate_proj.weight there"
        )


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), CASES)
def test_every_tensor_is_restored_where_it_was_also_what_is_derived(verdicts, model, sizes):
    assert [rank["not_restored"] for rank in verdicts[model, sizes]] == [[]] * len(verdicts[model, sizes])
    assert all(bool(rank["derived"]) == (model == "deepseek-v3") for rank in verdicts[model, sizes])
