"""Plans and proves the weight swap of a run, and compares its bytes per link with the least possible."""

import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace

from hybridrl.estimate.broadcast import broadcast_bound
from hybridrl.layout.base import instance
from hybridrl.layout.blocks import FP8_BYTES
from hybridrl.reshard.placement import held_there, needed, place
from hybridrl.reshard.plan import Job, Transfer, plan
from hybridrl.reshard.proof import prove
from hybridrl.reshard.topology import Topology
from hybridrl.wording import counted

_PROVED_RANKS = 32
"""Number of engine ranks whose plan is proved element by element. Larger clusters repeat the same layouts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapEstimate:
    """Bytes of one swap over all engines."""

    num_engine_ranks: int
    num_proved_ranks: int
    num_tensors: int
    """Tensors on the proved ranks: each element is written once, from a rank that holds it."""

    written_bytes: int
    fixed_bytes: int
    """Bytes of parameters that no optimizer step changes: the first swap alone writes them."""

    device_bytes: int
    """Bytes that are on the right device already."""

    node_bytes: int
    """Bytes from another device of the same node."""

    remote_bytes: int
    """Bytes from another node."""

    bound_bytes: int
    """The least bytes that must reach devices from other devices. For engines on dedicated devices: the least
    that must reach nodes from other nodes, each byte once per node."""

    imbalance: float
    """Most bytes that a trainer rank sends to other devices, over the mean; 1 if nothing is sent."""

    largest_table: int
    """Number of copies in the longest table of an engine rank."""

    plan_s: float
    """Seconds to plan for one trainer rank and one engine rank."""

    held: dict[str, float]
    """Placement -> share of the bytes that are on the right device already."""

    num_senders: int = 0
    """Trainer ranks that send to engines on dedicated devices; 0: trainer and engines share devices."""

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}


def estimate(job: Job, element_bytes: int, fixed: Set[str] = frozenset()) -> SwapEstimate:
    """Plan a swap and prove the plan.

    Args:
        job: has a topology.
        element_bytes: bytes per element of an engine parameter that is not FP8.
        fixed: canonical parameters that no optimizer step changes.

    Raises:
        LayoutError: the proof fails.
    """
    assert job.topology is not None
    separate = job.once_per_node
    placed = {"as numbered": job.topology, "inside nodes": job.topology}
    if not separate:
        placed["inside nodes"] = place(job.source, job.targets, job.topology, "node")
        placed["anywhere"] = place(job.source, job.targets, job.topology, "cluster")
    local = {name: _local(job, topology, element_bytes) for name, topology in placed.items()}
    need = _bytes(lambda fp8: sum(needed(layout, fp8=fp8).sum() for layout in job.targets), element_bytes)
    best = replace(job, topology=placed["inside nodes"])
    start = time.perf_counter()
    plan(best, source_rank=0)
    plan(best, target=0, target_rank=0)
    plan_s = time.perf_counter() - start
    places = [(t, r) for t, layout in enumerate(job.targets) for r in range(layout.world_size)]
    every = [transfer for t, r in places for transfer in plan(best, target=t, target_rank=r)]
    proved = places[:_PROVED_RANKS]
    mine = [t for t in every if (t.target, t.target_rank) in set(proved)]
    proof = prove(best, mine, proved)
    links = _by_link(best, every, element_bytes)
    bound = need - local["inside nodes"]
    if separate:
        bound = _bytes(lambda fp8: broadcast_bound(job, fp8=fp8), element_bytes)
    return SwapEstimate(
        num_engine_ranks=len(places),
        num_proved_ranks=len(proved),
        num_tensors=proof.num_tensors,
        written_bytes=round(need),
        fixed_bytes=round(sum(_fixed_bytes(transfer, fixed, element_bytes) for transfer in every)),
        device_bytes=round(links["device"]),
        node_bytes=round(links["node"]),
        remote_bytes=round(links["remote"]),
        bound_bytes=round(bound),
        imbalance=_imbalance(best, every, element_bytes),
        largest_table=max(_num_copies(t for t in mine if (t.target, t.target_rank) == at) for at in proved),
        plan_s=plan_s,
        held={name: found / need for name, found in local.items()},
        num_senders=job.source.world_size if separate else 0,
    )


def lines(swap: SwapEstimate) -> Iterator[tuple[str, str]]:
    """(heading, text) of the lines that `hybridrl plan` prints."""
    if swap.num_senders:
        yield from _separate_lines(swap)
    else:
        yield from _colocated_lines(swap)
    yield (
        "proof",
        f"{counted(swap.num_tensors, 'tensor', form=',')} on {swap.num_proved_ranks} of them: every element "
        "written once, from a rank that holds it; at most "
        f"{counted(swap.largest_table, 'copy', 'copies', form=',')} a rank, planned in "
        f"{swap.plan_s * 1e3:.0f} ms",
    )


def _separate_lines(swap: SwapEstimate) -> Iterator[tuple[str, str]]:
    ranks = counted(swap.num_engine_ranks, "engine rank")
    yield (
        "swap",
        f"{_gb(swap.written_bytes)} into {ranks} on devices of their own: {_gb(swap.remote_bytes)} come over "
        f"the network, {_gb(swap.node_bytes)} from devices of the same node",
    )
    yield from _fixed_line(swap)
    least = (
        f"{swap.remote_bytes / swap.bound_bytes:.3f} x the least possible, each byte once per node"
        if swap.bound_bytes
        else "all engines are on a node of the trainer"
    )
    sent = f"a trainer rank sends at most {swap.imbalance:.2f} x the mean"
    yield "network", f"{_gb(swap.remote_bytes)}, {least}; {sent}"


def _colocated_lines(swap: SwapEstimate) -> Iterator[tuple[str, str]]:
    network = swap.node_bytes + swap.remote_bytes
    ranks = counted(swap.num_engine_ranks, "engine rank")
    ratio = (
        f"{network / swap.bound_bytes:.3f} x the least possible" if swap.bound_bytes else "nothing must move"
    )
    yield (
        "swap",
        f"{_gb(swap.written_bytes)} into {ranks}: {_gb(swap.device_bytes)} are "
        f"on their device, {_gb(swap.node_bytes)} on its node, {_gb(swap.remote_bytes)} on other nodes",
    )
    yield from _fixed_line(swap)
    yield "network", f"{_gb(network)}, {ratio}; a trainer rank sends at most {swap.imbalance:.2f} x the mean"
    shares = ", ".join(f"{name} {share:.1%}" for name, share in swap.held.items())
    yield "placement", f"bytes on their device already: {shares}"


def _fixed_line(swap: SwapEstimate) -> Iterator[tuple[str, str]]:
    if swap.fixed_bytes:
        text = "of them are written by the first swap only: no optimizer step changes them"
        yield "", f"{_gb(swap.fixed_bytes)} {text}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"


def _bytes(elements: Callable[[bool], int], element_bytes: int) -> float:
    """
    Args:
        elements: number of those that are FP8 in engines, and of the others.
    """
    return int(elements(True)) * FP8_BYTES + int(elements(False)) * element_bytes


def _local(job: Job, topology: Topology, element_bytes: int) -> float:
    """Bytes that are on the right device already."""
    kinds = dict.fromkeys(job.targets)
    there = {(k, fp8): held_there(job.source, k, fp8=fp8) for k in kinds for fp8 in (False, True)}
    rank_on = {device: rank for rank, device in enumerate(topology.source)}
    places = [
        (layout, rank_on[device], rank)
        for layout, devices in zip(job.targets, topology.targets, strict=True)
        for rank, device in enumerate(devices)
        if device in rank_on
    ]
    return _bytes(
        lambda fp8: sum(int(there[layout, fp8][source, rank]) for layout, source, rank in places),
        element_bytes,
    )


def _fixed_bytes(transfer: Transfer, fixed: Set[str], element_bytes: int) -> float:
    """Bytes of a transfer that belong to fixed parameters."""
    count = sum(instance(transfer.param, layer) in fixed for layer in transfer.layers)
    return transfer.num_bytes(element_bytes) / len(transfer.layers) * count


def _by_link(job: Job, transfers: list[Transfer], element_bytes: int) -> dict[str, float]:
    found = {"device": 0.0, "node": 0.0, "remote": 0.0}
    for transfer in transfers:
        source, target = _devices(job, transfer)
        assert job.topology is not None
        same_node = job.topology.node(source) == job.topology.node(target)
        found["device" if source == target else "node" if same_node else "remote"] += transfer.num_bytes(
            element_bytes
        )
    return found


def _imbalance(job: Job, transfers: list[Transfer], element_bytes: int) -> float:
    sent = [0.0] * job.source.world_size
    for transfer in transfers:
        source, target = _devices(job, transfer)
        if source != target and transfer.via is None:
            sent[transfer.source_rank] += transfer.num_bytes(element_bytes)
    return max(sent) * len(sent) / sum(sent) if any(sent) else 1.0


def _devices(job: Job, transfer: Transfer) -> tuple[int, int]:
    assert job.topology is not None
    target = job.topology.targets[transfer.target][transfer.target_rank]
    if transfer.via is not None:
        return job.topology.targets[transfer.via[0]][transfer.via[1]], target
    return job.topology.source[transfer.source_rank], target


def _num_copies(transfers: Iterator[Transfer]) -> int:
    return sum(len(t.boxes) * len(t.layers) * len(t.experts) for t in transfers)
