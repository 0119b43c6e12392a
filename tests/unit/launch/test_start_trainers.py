"""The setups with which the ranks of a run are started."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.launch.shape import Placement, RunFiles
from hybridrl.launch.start_trainers import Trainers
from hybridrl.models import tiny


class Starts:
    """Records the arguments of the workers that would be started."""

    def __init__(self) -> None:
        self.arguments: dict[str, list[tuple]] = {}

    def __call__(self, name: str, worker: Any, arguments: list[tuple], nodes: Sequence[int]) -> WorkerGroup:
        assert len(arguments) == len(nodes)
        self.arguments[name] = arguments
        return WorkerGroup(name, list(nodes), Path("logs"), 1.0)


def started(folder: Path, **sections: Any) -> dict[str, list[tuple]]:
    tiny.qwen3_arithmetic(folder / "policy", 0)
    needed = {"model": str(folder / "policy"), "data": {"train": "d.jsonl"}, "reward": "exact_match"}
    cfg = Config.model_validate({**needed, "run": {"name": "test"}, **sections})
    shape, starts = RunShape.of(cfg), Starts()
    trainers = Trainers(cfg, shape, Placement.of(shape, 1), lambda name: f"file:///{name}")
    trainers.start(starts, RunFiles(folder), lambda kind, text: None)
    return starts.arguments


def test_columns_of_dedicated_ranks_are_remote_for_the_actors(tmp_path: Path) -> None:
    algorithm = {"estimator": "gae", "kl": {"coefficient": 0.1}}
    critic, reference = {"parallel": {"pp": 2}}, {"parallel": {"tp": 2}}
    found = started(tmp_path, algorithm=algorithm, critic=critic, reference=reference)
    assert {name: len(ranks) for name, ranks in found.items()} == {"trainer": 1, "critic": 2, "reference": 2}
    assert found["trainer"][0][0].remote_columns == {"value", "ref_logp"}
    assert found["reference"][1][1].rank == 1 and found["reference"][1][2:] == ("ref_logp",)


def test_nothing_is_remote_without_dedicated_ranks(tmp_path: Path) -> None:
    found = started(tmp_path, algorithm={"estimator": "gae"})
    assert list(found) == ["trainer"] and found["trainer"][0][0].remote_columns == frozenset()
