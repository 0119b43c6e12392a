"""Nodes that come after a run has begun: which of them are there, and what is known of them."""

import asyncio
from typing import Any

import pytest

from hybridrl.cluster.late_nodes import NONE, Arrived, LateNodes


class Group:
    """A placement group that is filled when it is told to."""

    def __init__(self) -> None:
        self.filled = asyncio.Event()

    async def _wait(self) -> None:
        await self.filled.wait()

    def ready(self) -> Any:
        """A new reference, which waits for the group to be filled from now on."""
        return _Again(self._wait)


class _Again:
    """Can be awaited more than once, as a reference of Ray."""

    def __init__(self, wait: Any) -> None:
        self._wait = wait

    def __await__(self) -> Any:
        return self._wait().__await__()


class Nodes(LateNodes):
    """Nodes 2 and 3 of a run; each is asked once."""

    def __init__(self) -> None:
        self.groups: dict[int, Any] = {2: Group(), 3: Group()}
        super().__init__(self.groups, 4, 1.0)
        self.asked = list[int]()

    def _is_filled(self, node: int) -> bool:
        return self.groups[node].filled.is_set()

    def _asked(self, node: int) -> Arrived:
        self.asked.append(node)
        return Arrived(f"eth{node}", ["GPU-a", "GPU-b", "GPU-c", "GPU-d"])


def test_a_node_is_absent_until_it_has_come_and_was_asked() -> None:
    async def scenario() -> tuple[list[int], list[int], Nodes]:
        nodes = Nodes()
        before = nodes.absent
        engines = [asyncio.create_task(nodes.come(3)) for _ in range(2)]
        nodes.groups[3].filled.set()
        await asyncio.wait_for(asyncio.gather(*engines), 60)
        return before, nodes.absent, nodes

    before, after, nodes = asyncio.run(scenario())
    assert (before, after) == ([2, 3], [2])
    assert nodes.asked == [3], "two engines of a node ask it once"
    assert nodes.interface(3) == "eth3"
    assert nodes.named(3, "2,0") == "GPU-c,GPU-a" and nodes.named(3, "") == ""


def test_nodes_after_late_ones_are_counted_without_them() -> None:
    nodes = Nodes()
    assert [nodes.before(node) for node in range(6)] == [0, 0, 0, 1, 2, 2]
    assert [node in nodes for node in range(5)] == [False, False, True, True, False]


def test_a_run_that_begins_with_all_of_its_nodes_waits_for_none() -> None:
    NONE.look()
    assert NONE.absent == [] and 0 not in NONE
    with pytest.raises(KeyError):
        NONE.interface(0)


def test_a_node_that_goes_is_absent_and_asked_again_when_it_is_back() -> None:
    async def scenario() -> tuple[list[bool], list[int]]:
        nodes, there = Nodes(), list[bool]()
        for _ in range(2):
            there.append(nodes.is_there(2))
            nodes.groups[2].filled.set()
            await asyncio.wait_for(nodes.come(2), 60)
            there.append(nodes.is_there(2))
            nodes.groups[2].filled.clear()
        return there, nodes.asked

    assert asyncio.run(scenario()) == ([False, True, False, True], [2, 2])
