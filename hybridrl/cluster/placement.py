"""Which node of a cluster an actor goes to: a placement group with one bundle for each node of the run."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hybridrl.errors import ResourceError

Placing = Callable[[int], dict[str, Any]]
"""Ray's options of an actor, by the index of its node in the run."""


def anywhere(node: int) -> dict[str, Any]:
    """On a Ray of one machine."""
    return {"num_cpus": 1}


@contextlib.contextmanager
def reserved(slots: Sequence[int], *, timeout_s: float) -> Iterator[Placing]:
    """Hold places on as many nodes as there are counts, and give them back in the end.

    Args:
        slots: actors on each node; each takes one of Ray's CPUs.

    Raises:
        ResourceError: the cluster does not have them free.
    """
    group = placement_group([{"CPU": count} for count in slots], "STRICT_SPREAD")
    try:
        _await(group, slots, timeout_s)
        yield lambda node: {
            "num_cpus": 1,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node),
        }
    finally:
        remove_placement_group(group)


def _await(group: PlacementGroup, slots: Sequence[int], timeout_s: float) -> None:
    try:
        ray.get(group.ready(), timeout=timeout_s)
    except GetTimeoutError:
        free = ray.available_resources().get("CPU", 0)
        raise ResourceError(
            f"the run needs {list(slots)} of Ray's CPUs, one a worker, on {len(slots)} nodes; "
            f"{free:g} are free in all",
            fix="start Ray with more --num-cpus: they are slots for workers, not cores",
        ) from None
