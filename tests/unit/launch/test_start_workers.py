"""In which order the workers of a run are built, at its start and when those that train start again."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from hybridrl.config.schema import ClusterConfig
from hybridrl.faults import parse
from hybridrl.launch.start_workers import Starts, Workers


class Group:
    """A WorkerGroup that tells what it is asked."""

    def __init__(self, name: str, told: list[str], size: int = 1) -> None:
        self.name, self._told, self._size = name, told, size
        self.pids: dict[int, int] = {}

    def __len__(self) -> int:
        return self._size

    @property
    def there(self) -> list[int]:
        return [*range(self._size)]

    async def learn_pids(self, *, timeout_s: float) -> None:
        self._told.append(f"{self.name}: pids")

    async def one(self, rank: int, method: str, argument: Any) -> None:
        self._told.append(f"{self.name} {rank}: {method} {', '.join(map(str, argument))}")

    async def all(self, method: str, *, timeout_s: float) -> None:
        self._told.append(f"{self.name}: {method}")


class Role:
    """An object of workers/ over one group, whose calls are noted."""

    def __init__(self, group: Group, told: list[str]) -> None:
        self.workers, self.groups, self._told = group, [group], told

    def __getattr__(self, method: str) -> Any:
        async def call(*arguments: Any) -> list[str]:
            self._told.append(f"{self.workers.name}: {method} {arguments or ''}".rstrip())
            return []

        return call


def workers(told: list[str]) -> Workers:
    named = {name: Role(Group(name, told), told) for name in ("engine", "trainer", "reward", "reward model")}
    named["reward model"].own_workers = [named["reward model"].workers]
    made: Any = Workers
    environments, frozen = Group("environment", told, 2), Group("frozen", told)
    return made(*named.values(), environments, frozen, None)


def starts(*, gpus: bool) -> Starts:
    found: dict[str, Any] = dict.fromkeys(Starts.__dataclass_fields__)
    visible = {"trainer": ["0"]} if gpus else {}
    cfg: Any = SimpleNamespace(cluster=ClusterConfig())
    shape, devices = SimpleNamespace(separate=False), SimpleNamespace(visible=visible)
    return Starts(**found | {"cfg": cfg, "shape": shape, "devices": devices})


def built(*, gpus: bool, again: bool) -> tuple[list[str], list[tuple[int, int]]]:
    """What happens, and what the user is shown of it."""
    told, shown = list[str](), list[tuple[int, int]]()
    faults = [parse(text) for text in ("kill:engine@step=2,phase=swap", "kill:trainer@step=3,phase=save")]
    saved: Any = SimpleNamespace(folder="step_2", step=2)

    def advance(done: int, total: int) -> None:
        shown.append((done, total))

    build = starts(gpus=gpus).build(workers(told), saved if again else None, faults, advance, again=again)
    asyncio.run(build)
    return told, shown


@pytest.mark.parametrize("gpus", [False, True])
def test_engines_and_environments_that_stay_are_neither_asked_nor_started(gpus: bool) -> None:
    told, shown = built(gpus=gpus, again=True)
    assert [call for call in told if call.endswith(": pids")] == [
        "trainer: pids",
        "reward: pids",
        "reward model: pids",
    ]
    assert not [call for call in told if call.startswith(("engine: start", "engine 0", "environment"))]
    assert "trainer 0: plant kill:trainer:0@step=3,phase=save" in told
    assert "trainer: build ('step_2', 2)" in told and "reward: start" in told
    assert "frozen: start" in told, "one that is up already starts nothing"
    assert shown[-1] == (3, 3)
    if gpus:
        assert told.index("engine: sleep") < told.index("trainer: build ('step_2', 2)")


def test_on_gpus_engines_start_before_the_trainer_and_sleep() -> None:
    told, shown = built(gpus=True, again=False)
    wanted = ["frozen: start", "engine: start", "engine: sleep", "trainer: build (None, 0)"]
    assert sorted(wanted, key=told.index) == wanted and shown[-1] == (7, 7)
    assert "engine 0: plant kill:engine:0@step=2,phase=swap" in told


def test_workers_that_train_are_all_but_engines_environments_and_players() -> None:
    names = [group.name for group in workers([]).training]
    assert names == ["trainer", "reward", "reward model"]
