"""A run in which a frozen model plays one seat of a game, and loses its engine on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from recipe_runs import ROOT

from hybridrl.models.make import make_model

STEPS = 12


def steps(folder: Path) -> list[dict[str, Any]]:
    found = list(folder.glob("runs/*/metrics.jsonl"))
    lines = [json.loads(line) for line in found[0].read_text().splitlines()] if found else []
    return [line for line in lines if line["kind"] == "step"]


def host_of(log: str) -> list[int]:
    """Processes whose standard error is a log."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.readlink(f"/proc/{process.pid}/fd/2").endswith(log):
                found.append(process.pid)
        except OSError:
            pass
    return found


@pytest.mark.slow
def test_the_policy_is_trained_on_its_own_seat_and_a_lost_opponent_comes_back(tmp_path: Path) -> None:
    make_model("hybridrl.models.tiny:qwen3_kuhn_poker", tmp_path / "opponent", 7, where="frozen.path")
    overrides = ["frozen={path: opponent, agents: [1]}", f"run.steps={STEPS}", "run.evaluate_every=0"]
    command = [
        sys.executable,
        "-m",
        "hybridrl",
        "launch",
        str(ROOT / "configs" / "kuhn_poker.yaml"),
        *overrides,
    ]
    with (tmp_path / "said.txt").open("w") as said:
        run = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT)
        try:
            give_up = time.monotonic() + 600
            while len(steps(tmp_path)) < 3 and run.poll() is None and time.monotonic() < give_up:
                time.sleep(0.2)
            killed = host_of(str(tmp_path / "runs/kuhn-poker/logs/frozen0.log"))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            code = run.wait(600)
        finally:
            run.kill()
    found, text = steps(tmp_path), (tmp_path / "said.txt").read_text()
    assert code == 0 and killed and len(found) == STEPS, text
    for step in found:
        assert step["training/rollout_logp_diff_max"] < 2e-5
        trained = step["rollout/tokens/with_gradient"] + step["rollout/tokens/no_gradient"]
        assert step["rollout/tokens/sampled"] == trained + step["rollout/tokens/aborted"]
        assert step["num_turns/max"] <= 2  # seat 0 moves twice at most; seat 1 is not counted
        assert step["episode/ended/failed"] == 0
    assert sum(step.get("environment/kuhn_poker/king_facing_bet_1", 0) for step in found) > 0
