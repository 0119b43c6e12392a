"""Waits until the nodes that a run expects have joined Ray, before any worker is started on them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from hybridrl.errors import DeadlineError

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class ExpectedNodes:
    """The nodes that have to join Ray."""

    count: int
    """Number of nodes."""

    gpus: int
    """GPUs of each node."""

    names: Sequence[str] = ()
    """Names given with `ray start --node-name`; if empty, any nodes will do."""

    others: int = 0
    """Further nodes, which need no GPUs."""


def await_nodes(expected: ExpectedNodes, *, timeout_s: float, address: str) -> None:
    """Wait until all nodes have joined with their GPUs.

    Raises:
        DeadlineError: they have not joined in time; the message names nodes that are missing or lack GPUs.
    """
    deadline = time.monotonic() + timeout_s
    while faults := lacking(expected, joined(ray.nodes())):
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"after {timeout_s:g} s {'; '.join(faults)}",
                where=f"Ray at {address}",
                fix="read Ray's output on these nodes, or raise cluster.start_timeout_s",
            )
        time.sleep(_POLL_S)


def joined(nodes: Iterable[Mapping]) -> dict[str, int]:
    """Name -> number of GPUs, for the nodes of ray.nodes() that are alive."""
    alive = [node for node in nodes if node["Alive"]]
    return {node["NodeName"]: int(node["Resources"].get("GPU", 0)) for node in alive}


def lacking(expected: ExpectedNodes, found: Mapping[str, int]) -> list[str]:
    """A phrase for each expected node or GPU that is missing; [] if there is none.

    Args:
        found: name -> number of GPUs of the nodes that have joined.
    """
    if expected.names:
        missing = [name for name in expected.names if name not in found]
        faults = [f"{', '.join(missing)} did not join Ray"] if missing else []
    else:
        count = expected.count + expected.others
        short = len(found) < count
        faults = [f"Ray has {len(found)} of {count} nodes: {', '.join(found)}"] if short else []
    names = expected.names or found
    poor = [name for name in names if found.get(name, expected.gpus) < expected.gpus]
    spare = 0 if expected.names else expected.others
    return faults + [f"{name} has {found[name]} of {expected.gpus} GPUs" for name in poor[spare:]]
