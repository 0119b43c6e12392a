"""A run of a mixture of experts on the real stack: expert-parallel ranks, swapped into their engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl.observe.names import LOGP_GAP

CONFIG = Path(__file__).parents[2] / "configs" / "grpo_moe_arithmetic.yaml"

pytestmark = pytest.mark.slow


def launch(folder: Path, *arguments: str) -> Path:
    command = [sys.executable, "-m", "hybridrl", "launch", str(CONFIG), "run.name=experts", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "experts"


def test_experts_on_two_ranks_learn_what_their_engine_is_asked(tmp_path: Path) -> None:
    summary = json.loads((launch(tmp_path, "run.steps=30") / "summary.json").read_text())
    assert summary["heldout_after"] > summary["heldout_before"] + 0.15
    assert summary["swaps"] >= 30
    assert summary["swap_checksums_ok"] is True
    assert 0.0 < summary["logprob_max_abs_diff"] <= 2e-5


def test_trainer_ranks_use_the_experts_that_the_engine_chose(tmp_path: Path) -> None:
    few = ("run.steps=3", "actor.optimizer={lr: 1.0e-3}")
    run = launch(tmp_path, "actor.moe.router_replay=rollout", *few)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["kind"] == "step"]
    assert len(steps) == 3
    for step in steps:
        assert step[LOGP_GAP] <= 2e-5
        assert step["moe/engine_differs"] < 0.01, "both in fp32: they differ at ties only"
