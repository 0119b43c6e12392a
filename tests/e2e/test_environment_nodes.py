"""A run whose environments are on a node of their own; both nodes of Ray are on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray_nodes import RayNode

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_environments_run_on_nodes_of_their_own(tmp_path: Path) -> None:
    head, address = RayNode.head(tmp_path, "n1", num_cpus=4)
    member = RayNode.member(tmp_path, "n2", 1, address)
    (tmp_path / "where").mkdir()
    played = f"{{name: 'odd_environments:SaysWhere', folder: '{tmp_path}/where', max_turns: 3, nodes: 1}}"
    arguments = ["--on", "ray", f"cluster.ray.address={address}", f"environment={played}", "run.steps=2"]
    short = ["data.heldout.size=10", "cluster.start_timeout_s=200", "rollout.num_engines=2"]
    command = [sys.executable, "-m", "hybridrl", "launch", str(ROOT / "configs/guess.yaml")]
    paths = f"PYTHONPATH={ROOT}:{ROOT / 'tests/support'}"
    try:
        done = subprocess.run(
            ["env", paths, *command, *arguments, *short],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=400,
        )
    finally:
        member.end()
        head.end()
    assert done.returncode == 0, done.stdout + done.stderr
    parents = {file.read_text() for file in (tmp_path / "where").iterdir()}
    # The config's check begins one episode beside the driver.
    assert len([parent for parent in parents if "EnvironmentHost" in parent]) == 1 and len(parents) == 2
    (file,) = tmp_path.glob("runs/*/metrics.jsonl")
    steps = [json.loads(line) for line in file.read_text().splitlines()]
    assert [step["episode/ended/failed"] for step in steps if step["kind"] == "step"] == [0, 0]
    assert max(step.get("num_turns/max", 0) for step in steps) == 3
