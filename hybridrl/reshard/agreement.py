"""What all ranks of a weight swap must agree on: the plan before the first write, checksums after each."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from hybridrl.errors import SwapError
from hybridrl.reshard.checksum import MODULUS
from hybridrl.reshard.plan import Job
from hybridrl.reshard.table import Target

Checksums = dict[Target, int]
"""Checksums of engine tensors, or of the parts of them that one rank wrote."""


def expected(shares: Iterable[Checksums], base: Checksums | None = None) -> Checksums:
    """Checksums that the engines must have after a write.

    Args:
        shares: the checksums of what each trainer rank wrote.
        base: for a delta, the checksums after the swap to its base version; tensors that it skips keep them.
    """
    total: Checksums = {}
    for share in shares:
        for key, value in share.items():
            total[key] = (total.get(key, 0) + value) % MODULUS
    return {**(base or {}), **total}


def difference(expected: Checksums, held: Checksums) -> SwapError | None:
    """The error if a tensor was not written or differs from what was sent; None: engines may commit."""
    if expected.keys() != held.keys():
        return SwapError(
            f"the swap left out {sorted(held.keys() - expected.keys())[:4]} "
            f"and wrote {sorted(expected.keys() - held.keys())[:4]}, which no engine has"
        )
    wrong = sorted(key for key, value in held.items() if value != expected[key])
    if not wrong:
        return None
    return SwapError(
        f"{len(wrong)} of {len(held)} tensors differ after the swap",
        where=f"first: engine {wrong[0][0]}, rank {wrong[0][1]}, {wrong[0][2]}",
    )


def plan_fields(job: Job) -> dict[str, str]:
    """The inputs of a plan by name, such as "source.tp" and "targets.0.spec.num_layers"."""
    return {name: str(value) for name, value in _leaves("", asdict(job))}


def disagreement(plans: Mapping[int, str], fields: Mapping[int, Mapping[str, str]]) -> SwapError:
    """The error that names the inputs in which the plans of trainer ranks differ.

    Args:
        plans: trainer rank -> hash of its plan; not all are equal.
        fields: trainer rank -> inputs of its plan, as plan_fields returns them.
    """
    told = []
    for name in sorted({name for found in fields.values() for name in found}):
        groups = _ranks_by_value({rank: found.get(name, "nothing") for rank, found in fields.items()})
        if len(groups) > 1:
            told.append(f"{name} is " + ", ".join(f"{value} on {ranks}" for value, ranks in groups.items()))
    return SwapError(
        f"trainer ranks {' and '.join(map(str, _ranks_by_value(plans).values()))} planned different swaps",
        where="; ".join(told) or "from equal layouts",
        fix="start all of them with one config and one version of hybridrl",
    )


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, Mapping) else ()
    if isinstance(value, tuple) and any(isinstance(item, Mapping) for item in value):
        inner = enumerate(value)
    for key, item in inner:
        yield from _leaves(f"{name}.{key}" if name else str(key), item)
    if not inner:
        yield name, value


def _ranks_by_value(values: Mapping[int, str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for rank, value in values.items():
        groups.setdefault(value, []).append(rank)
    return groups
