"""The rows of the certificate: each has a parallel layout and a partition of the batch into microbatches.

The reference is one rank with one sequence at a time. A row differs from it in few axes, so a row that fails
shows which axis breaks the equality.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hybridrl import registry
from hybridrl.config.training import TrainParallel
from hybridrl.data.packing import partition_rows
from hybridrl.errors import UserError
from hybridrl.layout.trainers import layout_of

TokenPartition = Literal["single", "pairs", "whole", "packed", "shuffled"]
"""How sequences are partitioned into microbatches: one, two or all at a time, packed up to a number of tokens
as in a run, or three at a time in another order."""

_PARTITION_AXES = {
    "single": frozenset[str](),
    "pairs": frozenset({"microbatches"}),
    "whole": frozenset({"microbatches"}),
    "packed": frozenset({"packing"}),
    "shuffled": frozenset({"microbatches", "order"}),
}
_TOGETHER = {"pairs": 2, "shuffled": 3}

_SIZES = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "shard")
_WORD = re.compile(rf"({'|'.join(_SIZES)})([1-9]\d*)|(sp|keys|heads)")


def default_layouts(backend: str) -> tuple[str, ...]:
    """Names of the layouts that are measured unless others are named: those of the backend with every axis,
    and two of every other backend of the project.

    Args:
        backend: value of actor.backend.
    """
    others = () if ":" in backend else (name for name in _backends() if name != backend)
    two = (f"{name}:{sizes}" for name in others for sizes in ("dp2", "tp2"))
    return (*layout_of(backend).CERTIFIED, *two)


def _backends() -> list[str]:
    return registry.folders("hybridrl.trainer", "backend")


@dataclass(frozen=True, slots=True)
class Row:
    """One way to compute the gradient."""

    name: str
    axes: frozenset[str]
    """Axes in which it differs from the reference."""

    parallel: TrainParallel = TrainParallel(dp=1)
    partition: TokenPartition = "single"
    recompute: Literal["none", "selective", "full"] = "none"
    backend: str | None = None
    """Trainer backend that computes it; None: the config's."""


REFERENCE = Row("one sequence at a time", frozenset())
ON_ONE_RANK = (
    Row("two at a time", _PARTITION_AXES["pairs"], partition="pairs"),
    Row("all together", _PARTITION_AXES["whole"], partition="whole"),
    Row("packed", _PARTITION_AXES["packed"], partition="packed"),
    Row("shuffled", _PARTITION_AXES["shuffled"], partition="shuffled"),
    Row("recompute selective", frozenset({"recompute"}), recompute="selective"),
    Row("recompute full", frozenset({"recompute"}), recompute="full"),
)


def rows(layouts: Sequence[str]) -> list[Row]:
    """All rows except the reference: those on one rank, then each layout with single sequences and packed.

    Args:
        layouts: names that `parse` reads, after the name of a backend and a colon if it is not the config's.

    Raises:
        UserError: `parse` refuses a name, or there is no such backend.
    """
    found = [*ON_ONE_RANK]
    for name in dict.fromkeys(layouts):
        found += _two(name)
    return found


def _two(name: str) -> tuple[Row, Row]:
    before, colon, sizes = name.rpartition(":")
    parallel, backend = parse(sizes), before if colon else None
    if colon and before not in _backends():
        raise UserError(
            f"no backend {before!r} in {name!r}",
            where="--layouts",
            fix=f"use one of {', '.join(_backends())}",
        )
    axes = _axes(parallel) | ({"backend"} if backend else set())
    packed = axes | _PARTITION_AXES["packed"]
    return (
        Row(name, axes, parallel, backend=backend),
        Row(f"{name}, packed", packed, parallel, partition="packed", backend=backend),
    )


def parse(name: str) -> TrainParallel:
    """The layout with a name such as tp2pp2vpp2, tp2sp or cp2keys. By default, dp is what expert parallelism
    needs.

    Raises:
        UserError: `name` is not the name of a layout.
    """
    words = _WORD.findall(name)
    sizes = {word: int(size) for word, size, _ in words if word}
    switches = {switch for _, _, switch in words if switch}
    exchange = switches - {"sp"}
    repeated = len(sizes) + len(switches) < len(words) or len(exchange) > 1
    if not words or repeated or "".join(map("".join, words)) != name:
        raise UserError(f"no layout {name!r}", where="--layouts", fix="write it as in tp2, tp2sp or pp2vpp2")
    experts, others = sizes.get("ep", 1) * sizes.get("etp", 1), sizes.get("tp", 1) * sizes.get("cp", 1)
    sizes.setdefault("dp", -(-experts // others))
    flags = {"sp": True if "sp" in switches else None, "cp_exchange": next(iter(exchange), None)}
    return TrainParallel.model_validate({**sizes, **flags})


def name_of(parallel: TrainParallel) -> str:
    """The name that `parse` reads; empty for one rank."""
    sizes = [(axis, getattr(parallel, axis)) for axis in _SIZES]
    found = "".join(f"{axis}{size}" for axis, size in sizes if (size or 1) > 1 or (axis == "shard" and size))
    if not found:
        return ""
    return found + ("sp" if parallel.sp else "") + (parallel.cp_exchange or "")


def _axes(parallel: TrainParallel) -> frozenset[str]:
    """The axes along which a layout shards."""
    sharding = {axis for axis in _SIZES if (getattr(parallel, axis) or 1) > 1}
    sharding |= {"shard"} if parallel.shard else set()
    return frozenset(sharding | {"sp"} if parallel.sp else sharding)


def partition(row: Row, members: np.ndarray, length_N: np.ndarray) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Minibatch.rows of a row: which rank computes which of `members`, in which microbatch."""
    ranks = row.parallel.dp or 1
    if row.partition == "packed":
        longest = int(length_N[members].max())
        return partition_rows(members, length_N[members], num_ranks=ranks, microbatch_tokens=2 * longest)
    order = members[::-1] if row.partition == "shuffled" else members
    together = {"single": 1, "whole": len(members)}.get(row.partition) or _TOGETHER[row.partition]
    owned = [order[rank::ranks].tolist() for rank in range(ranks)]
    count = -(-max(map(len, owned)) // together)
    return tuple(tuple(tuple(own[i * together :][:together]) for i in range(count)) for own in owned)
