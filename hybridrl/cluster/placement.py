"""Placement of actors on nodes: a Ray placement group with one bundle for each node of the run."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hybridrl.errors import ResourceError

Placing = Callable[[int], dict[str, Any]]
"""Index of a node in the run -> Ray's options for an actor on this node."""


_PROBE_S = 60.0


def anywhere(node: int) -> dict[str, Any]:
    """Placing on a Ray of one machine."""
    return {"num_cpus": 1}


@contextlib.contextmanager
def reserved(
    slots: Sequence[int], gpus_per_node: int = 0, *, others: int = 0, timeout_s: float
) -> Iterator[Placing]:
    """Reserve slots for actors on different nodes inside the context, and release them afterwards.

    Args:
        slots: number of actors on each node; each takes one of Ray's CPUs.
        gpus_per_node: GPUs to reserve on each node; we assign them to actors, not Ray.
        others: further nodes, numbered after these, with one actor each and no GPUs.

    Raises:
        ResourceError: the cluster does not have these resources free.
    """
    gpus = {"GPU": gpus_per_node} if gpus_per_node else {}
    bundles = [dict[str, float](CPU=count, **gpus) for count in slots]
    bundles += [dict[str, float](CPU=1)] * others
    group = placement_group(bundles, "STRICT_SPREAD")
    try:
        _await(group, slots, gpus_per_node, others, timeout_s)
        yield lambda node: {
            "num_cpus": 1,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node),
        }
    finally:
        remove_placement_group(group)


def gpu_names(place: Placing, num_nodes: int, gpus_per_node: int) -> list[list[str]]:
    """Ids of the reserved GPUs on each node, as CUDA_VISIBLE_DEVICES takes them."""
    asked = ray.remote(max_retries=0)(_given)
    asked = [
        asked.options(**{**place(node), "num_cpus": 0, "num_gpus": gpus_per_node}).remote()
        for node in range(num_nodes)
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
