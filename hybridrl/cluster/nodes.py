"""Whether the machines that a run counts on have joined Ray, before any worker is asked of them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import ray

from hybridrl.errors import DeadlineError

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class ExpectedNodes:
    """What has to join."""

    count: int
    gpus: int
    """Of each node."""

    names: Sequence[str] = ()
    """Of the nodes, as `ray start --node-name` gave them; empty: any nodes will do."""


def await_nodes(expected: ExpectedNodes, *, timeout_s: float, address: str) -> None:
    """Wait until the nodes are there with their GPUs.

    Raises:
        DeadlineError: they are not; names those that are missing or lack GPUs.
    """
    deadline = time.monotonic() + timeout_s
    while faults := lacking(expected, joined(ray.nodes())):
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"after {timeout_s:g} s {'; '.join(faults)}",
                where=f"Ray at {address}",
                fix="look at what Ray said on these nodes, or raise cluster.start_timeout_s",
            )
        time.sleep(_POLL_S)


def joined(nodes: Iterable[Mapping]) -> dict[str, int]:
    """Name -> GPUs of the nodes that are alive, of what ray.nodes() lists."""
    alive = [node for node in nodes if node["Alive"]]
    return {node["NodeName"]: int(node["Resources"].get("GPU", 0)) for node in alive}


def lacking(expected: ExpectedNodes, found: Mapping[str, int]) -> list[str]:
    """What is not as expected, a phrase for each fault; [] when all is there.

    Args:
        found: name -> GPUs.
    """
    if expected.names:
        missing = [name for name in expected.names if name not in found]
        faults = [f"{', '.join(missing)} did not join Ray"] if missing else []
    else:
        short = len(found) < expected.count
        faults = [f"Ray has {len(found)} of {expected.count} nodes: {', '.join(found)}"] if short else []
    names = expected.names or found
    poor = [name for name in names if found.get(name, expected.gpus) < expected.gpus]
    return faults + [f"{name} has {found[name]} of {expected.gpus} GPUs" for name in poor]
