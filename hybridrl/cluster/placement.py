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


_PROBE_S = 60.0


def anywhere(node: int) -> dict[str, Any]:
    """On a Ray of one machine."""
    return {"num_cpus": 1}


@contextlib.contextmanager
def reserved(slots: Sequence[int], gpus_per_node: int = 0, *, timeout_s: float) -> Iterator[Placing]:
    """Hold places on as many nodes as there are counts, and give them back in the end.

    Args:
        slots: actors on each node; each takes one of Ray's CPUs.
        gpus_per_node: held too; which actor has which of them is not Ray's business.

    Raises:
        ResourceError: the cluster does not have them free.
    """
    gpus = {"GPU": gpus_per_node} if gpus_per_node else {}
    group = placement_group([{"CPU": count, **gpus} for count in slots], "STRICT_SPREAD")
    try:
        _await(group, slots, gpus_per_node, timeout_s)
        yield lambda node: {
            "num_cpus": 1,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node),
        }
    finally:
        remove_placement_group(group)


def gpu_names(place: Placing, num_nodes: int, gpus_per_node: int) -> list[list[str]]:
    """Of the GPUs that are held on each node: what CUDA_VISIBLE_DEVICES takes there."""
    asked = ray.remote(max_retries=0)(_given)
    asked = [
        asked.options(**{**place(node), "num_cpus": 0, "num_gpus": gpus_per_node}).remote()
        for node in range(num_nodes)
    ]
    return ray.get(asked, timeout=_PROBE_S)


def _given() -> list[str]:
    return [str(gpu) for gpu in ray.get_gpu_ids()]


def _await(group: PlacementGroup, slots: Sequence[int], gpus_per_node: int, timeout_s: float) -> None:
    try:
        ray.get(group.ready(), timeout=timeout_s)
    except GetTimeoutError:
        free = ray.available_resources()
        gpus = f" and {gpus_per_node} GPUs each" if gpus_per_node else ""
        have = f" and {free.get('GPU', 0):g} GPUs" if gpus_per_node else ""
        raise ResourceError(
            f"the run needs {list(slots)} of Ray's CPUs, one a worker,{gpus} on {len(slots)} nodes; "
            f"{free.get('CPU', 0):g}{have} are free in all",
            fix="start Ray with more --num-cpus: they are slots for workers, not cores",
        ) from None
