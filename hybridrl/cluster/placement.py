"""Placement of actors on nodes: a Ray placement group with one bundle for each node that is there when a run
begins. Nodes that may come later have groups of their own (late_nodes.py)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hybridrl.errors import ResourceError

Placing = Callable[[int], dict[str, Any]]
"""Index of a node in the run -> Ray's options for an actor on this node."""


_PROBE_S = 60.0


def anywhere(node: int) -> dict[str, Any]:
    """Placing on a Ray of one machine."""
    return {"num_cpus": 1}


@dataclass(frozen=True, slots=True)
class Reserved:
    """Slots on nodes of a Ray: a Placing."""

    group: PlacementGroup

    def __call__(self, node: int) -> dict[str, Any]:
        return in_group(self.group, node)

    @property
    def node_ids(self) -> list[str]:
        """Ray's ids of the nodes."""
        return list(placement_group_table(self.group)["bundles_to_node_id"].values())


@contextlib.contextmanager
def reserved(
    slots: Sequence[int], gpus_per_node: int = 0, *, others: int = 0, timeout_s: float
) -> Iterator[Reserved]:
    """Reserve slots for actors on different nodes inside the context, and release them afterwards.

    Args:
        slots: number of actors on each node; each takes one of Ray's CPUs.
        gpus_per_node: GPUs to reserve on each node; we assign them to actors, not Ray.
        others: further nodes, numbered after these, with one actor each and no GPUs.

    Raises:
        ResourceError: the cluster does not have these resources free.
    """
    bundles = [bundle(count, gpus_per_node) for count in slots]
    bundles += [bundle(1)] * others
    group = placement_group(bundles, "STRICT_SPREAD")
    try:
        _await(group, slots, gpus_per_node, others, timeout_s)
        yield Reserved(group)
    finally:
        remove_placement_group(group)


def bundle(slots: int, gpus: int = 0) -> dict[str, float]:
    """What is reserved on a node: slots for actors, and GPUs."""
    return {"CPU": slots, "GPU": gpus} if gpus else {"CPU": slots}


def in_group(group: PlacementGroup, index: int) -> dict[str, Any]:
    """Ray's options for an actor in a bundle of a placement group."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return {"num_cpus": 1, "scheduling_strategy": strategy}


def gpu_names(place: Placing, nodes: Iterable[int], gpus_per_node: int) -> list[list[str]]:
    """Ids of the reserved GPUs on each of these nodes, as CUDA_VISIBLE_DEVICES takes them."""
    asked = ray.remote(max_retries=0)(_given)
    asked = [
        asked.options(**{**place(node), "num_cpus": 0, "num_gpus": gpus_per_node}).remote() for node in nodes
    ]
    return ray.get(asked, timeout=_PROBE_S)


def _given() -> list[str]:
    return [str(gpu) for gpu in ray.get_gpu_ids()]


def _await(
    group: PlacementGroup, slots: Sequence[int], gpus_per_node: int, others: int, timeout_s: float
) -> None:
    try:
        ray.get(group.ready(), timeout=timeout_s)
    except GetTimeoutError:
        free = ray.available_resources()
        gpus = f" and {gpus_per_node} GPUs each" if gpus_per_node else ""
        have = f" and {free.get('GPU', 0):g} GPUs" if gpus_per_node else ""
        nodes = f"{len(slots)} nodes{f', and one on each of {others} more' if others else ''}"
        raise ResourceError(
            f"the run needs {list(slots)} of Ray's CPUs, one per worker,{gpus} on {nodes}; "
            f"{free.get('CPU', 0):g}{have} are free in all",
            fix="start Ray with more --num-cpus: they are slots for workers, not cores",
        ) from None
