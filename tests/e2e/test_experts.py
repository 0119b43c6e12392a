"""A run of a mixture of experts on the real stack: expert-parallel ranks, swapped into their engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "grpo_moe_arithmetic.yaml"

pytestmark = pytest.mark.slow


def test_experts_on_two_ranks_learn_what_their_engine_is_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hybridrl", "launch", str(CONFIG), "run.name=experts", "run.steps=30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "runs/experts/summary.json").read_text())
    assert summary["heldout_after"] > summary["heldout_before"] + 0.15
    assert summary["swaps"] >= 30
    assert summary["swap_checksums_ok"] is True
    assert 0.0 < summary["logprob_max_abs_diff"] <= 2e-5
