"""Runs whose engines have processes, or nodes, of their own, beside the run that shares all."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine_faults import missing, two_networks
from ray_nodes import RayNode
from recipe_runs import steps

CONFIGS = Path(__file__).parents[2] / "configs"
FEW_STEPS = (
    "run.steps=2",
    "batch={prompts_per_step: 8, minibatch_prompts: 4}",
    "actor.optimizer={lr: 1.0e-3}",
)

pytestmark = pytest.mark.slow


def launch(folder: Path, name: str, *arguments: str, config: str = "quickstart") -> Path:
    file = str(CONFIGS / f"{config}.yaml")
    command = [sys.executable, "-m", "hybridrl", "launch", file, f"run.name={name}", *arguments]
    command.append("cluster.start_timeout_s=200")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / name


def same_training(one: Path, other: Path) -> None:
    for here, there in zip(steps(one), steps(other), strict=True):
        for name in ("actor/loss", "actor/grad_norm", "actor/entropy", "critic/score/mean"):
            assert here[name] == there[name]
    samples = [(run / "samples.txt").read_text() for run in (one, other)]
    assert samples[0] == samples[1]


def test_an_engine_of_its_own_gets_every_byte_once_and_answers_as_a_colocated_one(tmp_path: Path) -> None:
    separate = launch(tmp_path, "separate", *FEW_STEPS, "cluster.placement=separate")
    colocated = launch(tmp_path, "colocated", *FEW_STEPS)
    summary = json.loads((separate / "summary.json").read_text())
    assert summary["swap_checksums_ok"] is True
    assert 0.0 < summary["logprob_max_abs_diff"] <= 2e-5
    for step in steps(separate):
        assert step["sync/sent_bytes"] == step["sync/written_bytes"]
    assert all(step["sync/sent_bytes"] == 0 for step in steps(colocated))
    same_training(separate, colocated)


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ray")
    head, where = RayNode.head(folder, "n1", num_cpus=4)
    member = RayNode.member(folder, "n2", 4, where)
    yield where
    member.end()
    head.end()


def test_two_engines_on_a_node_of_their_own_get_every_byte_once(tmp_path: Path, address: str) -> None:
    """The trainer is on the first node. Each of the engines on the second gets half from it, and the other
    half from its neighbour."""
    two = (*FEW_STEPS, "rollout.num_engines=2")
    ray = ("--on", "ray", f"cluster.ray.address={address}", "cluster.nodes=2", "cluster.placement=separate")
    separate, colocated = launch(tmp_path, "separate", *ray, *two), launch(tmp_path, "colocated", *two)
    for step in steps(separate):
        assert step["sync/sent_bytes"] == pytest.approx(step["sync/written_bytes"] / 2, rel=0.01)
    same_training(separate, colocated)


def test_a_stream_with_swaps_in_flight_learns_although_an_engine_is_killed(tmp_path: Path) -> None:
    """If another engine takes its place before the run ends, it gets its weights from its receiver."""
    run = launch(
        tmp_path,
        "stream",
        *("cluster.placement=separate", "rollout.num_engines=2", "run.steps=40"),
        *("--inject", "kill:engine:1@step=8,phase=generate"),
        config="quickstart_async",
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["swap_checksums_ok"] is True
    assert summary["heldout_after"] > summary["heldout_before"] + 0.3
    assert "kill:engine:1" in (run / "faults.jsonl").read_text()


class OneNetwork:
    """Nodes of one Ray on loopback, where no other networks can be made."""

    on_first: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self._folder, self._nodes, self.address = folder, list[RayNode](), ""

    def start_node(self, network: int, name: str, num_cpus: int) -> None:
        if self._nodes:
            self._nodes.append(RayNode.member(self._folder, name, num_cpus, self.address))
        else:
            head, self.address = RayNode.head(self._folder, name, num_cpus)
            self._nodes.append(head)

    def end(self) -> None:
        for node in reversed(self._nodes):
            node.end()


@contextlib.contextmanager
def networks(folder: Path) -> Iterator[Any]:
    """Two networks if this machine allows it, else one."""
    if missing():
        nodes = OneNetwork(folder)
        try:
            yield nodes
        finally:
            nodes.end()
    else:
        with two_networks(folder) as cluster:
            yield cluster


def await_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a run has done a step."""
    deadline = time.monotonic() + 400
    while not (run / "metrics.jsonl").exists() or len(steps(run)) < step:
        assert process.poll() is None and time.monotonic() < deadline, f"the run came to no step {step}"
        time.sleep(0.2)


def test_an_engine_joins_a_stream_when_its_node_comes_and_another_one_is_killed(tmp_path: Path) -> None:
    """The trainer has a network of its own; the engines' nodes are in the other one, and one of them comes
    after step 5. At the end the engine of that node serves, and the one in place of the killed one. That the
    late engine answers is shown by a fault of its own, a moment's wait after its first answer for a step."""
    with networks(tmp_path) as cluster:
        cluster.start_node(0, "trainer", 3)
        time.sleep(15)
        cluster.start_node(1, "engines", 2)
        command = [
            *(*cluster.on_first, sys.executable, "-m", "hybridrl", "launch"),
            *(str(CONFIGS / "quickstart_async.yaml"), "--on", "ray", "run.name=late", "run.steps=60"),
            "cluster={nodes: 3, min_nodes: 2, placement: separate, start_timeout_s: 300}",
            *(f"cluster.ray.address={cluster.address}", "rollout.num_engines=2"),
            *("--inject", "kill:engine:0@step=8,phase=generate"),
            *("--inject", "slow:engine:1@step=50,phase=generate,seconds=0.1"),
        ]
        run, out = tmp_path / "runs" / "late", tmp_path / "run.out"
        with (
            out.open("w") as said,
            subprocess.Popen(
                command, cwd=tmp_path, text=True, stdout=said, stderr=subprocess.STDOUT
            ) as process,
        ):
            await_step(run, 5, process)
            cluster.start_node(1, "late", 2)
            process.wait(800)
    told = out.read_text()
    assert process.returncode == 0, told
    assert "without 1 node that may come later" in told and "engine 1 joins: " in told
    summary, faults = json.loads((run / "summary.json").read_text()), (run / "faults.jsonl").read_text()
    assert summary["swap_checksums_ok"] is True
    assert summary["heldout_after"] > summary["heldout_before"] + 0.3
    serving = [step["rollout/engines/serving"] for step in steps(run)]
    assert serving[:5] == [1.0] * 5 and serving[-1] == 2.0
    assert "kill:engine:0@step=8" in faults and "slow:engine:1@step=50" in faults
