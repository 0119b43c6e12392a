"""What plans of the workloads move and cost, on real shapes and without a tensor."""

import pickle
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from typing import Any

from hybridrl.bench.workloads.bounds import Held, demand, held_by_rank, least_peak, missing, needed
from hybridrl.bench.workloads.swap_shapes import PLANNED, Workload, spec
from hybridrl.estimate.broadcast import broadcast_bound
from hybridrl.layout.base import Holding
from hybridrl.layout.blocks import FP8_BYTES
from hybridrl.reshard.placement import place
from hybridrl.reshard.plan import Job, Transfer, plan
from hybridrl.reshard.table import tabulate
from hybridrl.reshard.topology import Topology

ELEMENT_BYTES = 2
"""bfloat16, where engines have no FP8."""


def planned(workload: Workload) -> dict[str, Any]:
    """What the plan moves, all ranks together, with engine ranks placed inside their nodes."""
    start = time.perf_counter()
    topology = workload.topology
    if workload.colocated:
        topology = place(workload.source, workload.targets, workload.topology, "node")
    place_s = time.perf_counter() - start
    bound, total = least_bytes(workload, topology)
    traffic = Traffic(workload, topology)
    return {
        "workload": workload.name,
        "title": workload.title,
        "target_gb_per_device": round(total / len(workload.targets) / workload.engine.world_size / 1e9, 3),
        "bound_bytes": bound,
        "network_bytes": round(traffic.network_bytes),
        "network_over_bound": round(traffic.network_bytes / bound, 6) if bound else None,
        "covered_bytes": traffic.written_bytes / total,
        "covered_tensors": traffic.full_tensors / traffic.tensors,
        "tensors": traffic.tensors,
        "imbalance": round(traffic.imbalance, 4),
        **least_imbalances(workload, topology),
        "local_share": local_shares(workload, topology),
        "place_s": round(place_s, 4),
    }


def least_bytes(workload: Workload, topology: Topology) -> tuple[int, int]:
    """(bytes that devices, or with once_per_node nodes, must receive; bytes that engines hold)"""
    have = held_by_rank(workload.source)
    trained = {device: have[rank] for rank, device in enumerate(topology.source)}
    bound = total = 0.0
    for fp8 in (False, True):
        need = [_of_precision(held, fp8) for held in held_by_rank(workload.engine)]
        places = [
            (need[rank], trained.get(d, {})) for devices in topology.targets for rank, d in enumerate(devices)
        ]
        size = FP8_BYTES if fp8 else ELEMENT_BYTES
        total += sum(needed(wanted) for wanted, _ in places) * size
        if workload.once_per_node:
            bound += broadcast_bound(replace(workload.job, topology=topology), fp8=fp8) * size
        else:
            bound += sum(missing(wanted, held) for wanted, held in places) * size
    return round(bound), round(total)


def _of_precision(held: Held, fp8: bool) -> Held:
    return {param: kept for param, of in held.items() if (kept := [h for h in of if h.fp8 == fp8])}


def least_imbalances(workload: Workload, topology: Topology) -> dict[str, float]:
    """Bounds of the imbalance; none for what is passed on inside nodes."""
    if workload.once_per_node:
        return {}
    return {
        "least_imbalance": least_imbalance(workload, topology, nearest=True),
        "least_imbalance_any_node": least_imbalance(workload, topology, nearest=False),
    }


def least_imbalance(workload: Workload, topology: Topology, *, nearest: bool) -> float:
    """Most that a trainer rank must send, over the mean; `nearest`: and what a node has is not sent to it."""
    crossing: dict[frozenset[int], float] = {}
    for fp8, size in ((False, ELEMENT_BYTES), (True, FP8_BYTES)):
        found = demand(workload.source, workload.engine, topology, nearest=nearest, fp8=fp8)
        for senders, elements in found.items():
            crossing[senders] = crossing.get(senders, 0) + elements * size
    total = sum(crossing.values())
    return round(least_peak(crossing) * workload.source.world_size / total, 4) if total else 1.0


def local_shares(workload: Workload, in_nodes: Topology) -> dict[str, float]:
    """Share of the engines' bytes that their devices hold already, for each freedom to place engine ranks."""
    if workload.once_per_node:
        return {}
    topologies = {"as numbered": workload.topology, "inside nodes": in_nodes}
    if workload.colocated:
        topologies["anywhere"] = place(workload.source, workload.targets, workload.topology, "cluster")
    found = {}
    for name, topology in topologies.items():
        bound, total = least_bytes(workload, topology)
        found[name] = round(1 - bound / total, 4)
    return found


class Traffic:
    """The transfers into every engine rank, added up."""

    def __init__(self, workload: Workload, topology: Topology) -> None:
        self.network_bytes = self.written_bytes = 0.0
        self.tensors = self.full_tensors = 0
        self._sent = [0.0] * workload.source.world_size
        job = replace(workload.job, topology=topology)
        self._once_per_node = workload.once_per_node
        need = [[h for held in wanted.values() for h in held] for wanted in held_by_rank(workload.engine)]
        for target, devices in enumerate(topology.targets):
            for rank, device in enumerate(devices):
                transfers = plan(job, target=target, target_rank=rank)
                self._add(transfers, topology, device)
                self._count(need[rank], transfers)

    def _count(self, need: Sequence[Holding], transfers: Sequence[Transfer]) -> None:
        written: dict[tuple[str, str], int] = {}
        for t in transfers:
            place = (t.target_tensor, t.param)
            written[place] = written.get(place, 0) + t.elements
        for held in need:
            count = len(held.layers) * (1 if held.step else len(held.experts))
            is_full = written.get((held.tensor, held.param), 0) == needed({held.param: [held]})
            self.tensors += count
            self.full_tensors += count * is_full

    def _add(self, transfers: Sequence[Transfer], topology: Topology, device: int) -> None:
        for transfer in transfers:
            moved = transfer.num_bytes(ELEMENT_BYTES)
            self.written_bytes += moved
            if transfer.via is None and self._crosses(topology, transfer.source_rank, device):
                self.network_bytes += moved
                self._sent[transfer.source_rank] += moved

    def _crosses(self, topology: Topology, source_rank: int, device: int) -> bool:
        """Whether bytes go over what is counted: from device to device, with once_per_node between nodes."""
        start = topology.source[source_rank]
        if self._once_per_node:
            return topology.node(start) != topology.node(device)
        return start != device

    @property
    def imbalance(self) -> float:
        """Most that a trainer rank sends over the network, over the mean of all."""
        return max(self._sent) * len(self._sent) / self.network_bytes if self.network_bytes else 1.0


def cold(workload: Workload, context: ForkServerContext) -> dict[str, Any]:
    """What a rank spends to plan what it sends and receives, in a process that has planned nothing before."""
    size = workload.source.world_size
    found = [alone(context, cold_rank, workload.name, rank) for rank in sorted({0, size // 2, size - 1})]
    memory = alone(context, plan_memory, workload.name, size // 2)
    return {
        **{name: round(max(f[name] for f in found), 5) for name in ("plan_s", "plan_cpu_s", "with_table_s")},
        "boxes": max(f["boxes"] for f in found),
        "metadata_bytes": found[0]["metadata_bytes"],
        **memory,
    }


def cold_rank(name: str, rank: int) -> dict[str, Any]:
    """The plans of a trainer rank and the engine rank of the same number."""
    workload = _named(name)
    spec(workload.model)
    start, start_cpu = time.perf_counter(), time.process_time()
    job = workload.job
    metadata_bytes = len(pickle.dumps(job))
    transfers = _both_views(job, rank)
    plan_s, plan_cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    tables = [tabulate(found) for found in transfers]
    return {
        "plan_s": plan_s,
        "plan_cpu_s": plan_cpu_s,
        "with_table_s": time.perf_counter() - start,
        "boxes": sum(len(table.boxes) for table in tables),
        "metadata_bytes": metadata_bytes,
    }


def plan_memory(name: str, rank: int) -> dict[str, Any]:
    """Python's allocations for planning, caches and tables included."""
    workload = _named(name)
    spec(workload.model)
    tracemalloc.start()
    job = workload.job
    tables = [tabulate(found) for found in _both_views(job, rank)]
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "memory_kept_mb": round(kept / 1e6, 2),
        "memory_peak_mb": round(peak / 1e6, 2),
        "tables_mb": round(sum(table.boxes.nbytes for table in tables) / 1e6, 3),
    }


def _both_views(job: Job, rank: int) -> tuple[list[Transfer], list[Transfer]]:
    places = [(target, r) for target, layout in enumerate(job.targets) for r in range(layout.world_size)]
    target, target_rank = places[rank % len(places)]
    return plan(job, source_rank=rank), plan(job, target=target, target_rank=target_rank)


def alone(context: ForkServerContext, function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Call a function in a process of its own, with this module imported and nothing planned."""
    with context.Pool(1) as pool:
        return pool.apply(function, args)


def _named(name: str) -> Workload:
    return next(workload for workload in PLANNED if workload.name == name)
