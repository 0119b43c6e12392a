"""A run over two nodes of Ray, on this machine: each has a trainer rank and an engine."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_nodes import RayNode
from recipe_runs import steps

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

pytestmark = pytest.mark.slow


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ray")
    head, where = RayNode.head(folder, "n1", num_cpus=4)
    member = RayNode.member(folder, "n2", 4, where)
    yield where
    member.end()
    head.end()


def launch(folder: Path, name: str, *arguments: str) -> Path:
    command = [sys.executable, "-m", "hybridrl", "launch", str(QUICKSTART), f"run.name={name}", *arguments]
    few = (
        "run.steps=2",
        "batch={prompts_per_step: 8, minibatch_prompts: 4}",
        "actor.optimizer={lr: 1.0e-3}",
        "rollout.num_engines=2",
        "cluster.start_timeout_s=200",
    )
    done = subprocess.run(
        [*command, *few], cwd=folder, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / name


def test_a_run_over_two_nodes_is_the_run_on_one(tmp_path: Path, address: str) -> None:
    separate = ("--on", "ray", f"cluster.ray.address={address}", "cluster.nodes=2")
    two, one = launch(tmp_path, "two", *separate), launch(tmp_path, "one")
    summary = json.loads((two / "summary.json").read_text())
    assert summary["swap_checksums_ok"] is True
    assert 0.0 < summary["logprob_max_abs_diff"] <= 2e-5
    for here, there in zip(steps(one), steps(two), strict=True):
        # Each engine has half of its weights from the trainer rank on the other node.
        assert here["sync/sent_bytes"] == 0 < there["sync/sent_bytes"]
        assert there["sync/sent_bytes"] == pytest.approx(there["sync/written_bytes"] / 2, rel=0.05)
        for name in ("actor/loss", "actor/grad_norm", "critic/score/mean"):
            assert here[name] == there[name]
