"""The rows of the certificate: how the model is cut over ranks, and how the batch is dealt to microbatches.

A row changes few axes against the reference, which is one rank with one sequence at a time: a row that fails
then tells which axis breaks the equality.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hybridrl.config.training import TrainParallel
from hybridrl.data.packing import partition_rows
from hybridrl.errors import UserError

TokenPartition = Literal["single", "pairs", "whole", "packed", "shuffled"]
"""How sequences become microbatches: one, two or all at a time, packed to a budget as in a run, three at a
time in another order."""

_PARTITION_AXES = {
    "single": frozenset[str](),
    "pairs": frozenset({"microbatches"}),
    "whole": frozenset({"microbatches"}),
    "packed": frozenset({"packing"}),
    "shuffled": frozenset({"microbatches", "order"}),
}
_TOGETHER = {"pairs": 2, "shuffled": 3}

_SIZES = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp")
_WORD = re.compile(r"(tp|cp|pp|vpp|ep|etp|dp)([1-9]\d*)|(sp)")

DEFAULT_LAYOUTS = tuple(
    "tp2 tp2sp pp2 pp2vpp2 cp2 ep2 dp2 tp2pp2 tp2cp2 pp2cp2 pp2dp2 cp2dp2 tp2ep2 pp2ep2 ep2etp2".split()
)


@dataclass(frozen=True, slots=True)
class Row:
    """One way to compute the gradient."""

    name: str
    axes: frozenset[str]
    """What differs from the reference."""

    parallel: TrainParallel = TrainParallel(dp=1)
    partition: TokenPartition = "single"
    recompute: Literal["none", "selective", "full"] = "none"


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
    """All rows but the reference: those of one rank, then each layout twice, one at a time and packed.

    Raises:
        UserError: a name that `parse` refuses.
    """
    found = [*ON_ONE_RANK]
    for name in dict.fromkeys(layouts):
        parallel = parse(name)
        axes = _axes(parallel)
        found.append(Row(name, axes, parallel))
        found.append(Row(f"{name}, packed", axes | _PARTITION_AXES["packed"], parallel, partition="packed"))
    return found


def parse(name: str) -> TrainParallel:
    """A layout from its name, as in tp2pp2vpp2 or tp2sp; dp is what the experts need, if it is not named.

    Raises:
        UserError: it is no such name.
    """
    words = _WORD.findall(name)
    sizes = {word: int(size) for word, size, _ in words if word}
    repeated = len({word or sp for word, _, sp in words}) < len(words)
    if not words or repeated or "".join(map("".join, words)) != name:
        raise UserError(f"no layout {name!r}", where="--layouts", fix="write it as in tp2, tp2sp or pp2vpp2")
    experts, others = sizes.get("ep", 1) * sizes.get("etp", 1), sizes.get("tp", 1) * sizes.get("cp", 1)
    sizes.setdefault("dp", -(-experts // others))
    return TrainParallel.model_validate({**sizes, "sp": True if "sp" in name else None})


def name_of(parallel: TrainParallel) -> str:
    """The name that `parse` reads; empty on one rank."""
    sizes = [(axis, getattr(parallel, axis)) for axis in _SIZES]
    return "".join(f"{axis}{size}" for axis, size in sizes if (size or 1) > 1) + ("sp" if parallel.sp else "")


def _axes(parallel: TrainParallel) -> frozenset[str]:
    """What a layout cuts."""
    sharding = {axis for axis in _SIZES if (getattr(parallel, axis) or 1) > 1}
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
