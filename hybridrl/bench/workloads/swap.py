"""The weight swap against other ways to do it: real bytes between Megatron layouts on four gloo processes.

All contenders move the same tensors, in turn, in one run.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from hybridrl.bench.base import Bench, Case, Metric
from hybridrl.bench.ranks import on_ranks
from hybridrl.bench.workloads.swap_ours import InPlace, OverGloo
from hybridrl.bench.workloads.swap_peers import (
    Contender,
    FullGather,
    MegatronResharding,
    RankZeroBroadcast,
    Swap,
)
from hybridrl.bench.workloads.swap_shapes import shrunk
from hybridrl.errors import SwapError
from hybridrl.layout.megatron import MegatronLayout

CONTENDERS: dict[str, Callable[[Swap], Contender]] = {
    "megatron-core, point to point": lambda swap: MegatronResharding(swap, "nccl"),
    "megatron-core, gloo service": lambda swap: MegatronResharding(swap, "gloo"),
    "full gather (our implementation)": FullGather,
    "rank-0 broadcast (our implementation)": RankZeroBroadcast,
    "hybridrl over gloo": lambda swap: OverGloo(swap, "memory"),
    "hybridrl over gloo, as between hosts": lambda swap: OverGloo(swap, "messages"),
    "hybridrl in shared memory": InPlace,
}
OURS = ("hybridrl over gloo", "hybridrl over gloo, as between hosts", "hybridrl in shared memory")
"""The first sends signals over gloo and bytes through shared memory, the second sends all over gloo."""

SWAPS: tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...] = (
    ({"tp": 4}, {"tp": 2, "dp": 2}),
    ({"tp": 2, "pp": 2}, {"tp": 2, "dp": 2}),
)
"""Fields of MegatronLayout, from and to, on four ranks."""

NUM_RANKS = 4

_SHORT = {
    "memory": "hybridrl in shared memory",
    "gloo": "hybridrl over gloo",
    "hosts": "hybridrl over gloo, as between hosts",
    "megatron": "megatron-core, point to point",
    "megatron_service": "megatron-core, gloo service",
    "full_gather": "full gather (our implementation)",
    "broadcast": "rank-0 broadcast (our implementation)",
}
"""Beginning of a metric's name -> contender."""

_HEADLINES = {
    "memory_times_megatron": "Weight update into shared memory, times as fast as Megatron-core's resharding",
    "gloo_times_megatron": "Weight update over gloo on one host, times as fast as Megatron-core's resharding",
    "hosts_times_megatron": "The same with every byte through gloo, as between hosts",
    "memory_times_full_gather": "Weight update into shared memory, times as fast as a full gather",
}

_METRICS = {
    **{f"{short}_s": Metric("s", name, "lower") for short, name in _SHORT.items()},
    "memory_gb_s": Metric("GB/s", "bytes of all targets, by memory_s", "higher"),
    **{
        f"{ours}_times_{theirs}": Metric(
            "x",
            f"{_SHORT[ours]}: times as fast as {_SHORT[theirs]}, in the same round",
            "higher",
            gated=True,
            headline=_HEADLINES.get(f"{ours}_times_{theirs}", ""),
        )
        for ours in ("memory", "gloo", "hosts")
        for theirs in ("megatron", "megatron_service", "full_gather", "broadcast")
    },
}


def measure(case: Case) -> Mapping[str, list[float]]:
    """
    Raises:
        SwapError: contenders wrote other bits than Megatron-core's own resharding.
    """
    sizes: dict[str, Any] = dict(case.config) | {"rounds": case.warm_up + case.repeats}
    found = race(sizes["from"], sizes["to"], sizes)
    if different := [name for name, same in found["identical"].items() if not same]:
        raise SwapError(f"{', '.join(different)}: other bits than those of Megatron-core's resharding")
    return samples({name: times[case.warm_up :] for name, times in found["spent"].items()}, found["bytes"])


def samples(spent: Mapping[str, Sequence[float]], total: int) -> dict[str, list[float]]:
    """
    Args:
        spent: seconds of each contender's rounds; round i of all was run at about the same time.
        total: bytes that all targets have.
    """
    seconds = {short: list(spent[name]) for short, name in _SHORT.items()}
    pairs = {
        name: [t / o for t, o in zip(seconds[theirs], seconds[ours], strict=True)]
        for name in _METRICS
        if "_times_" in name
        for ours, _, theirs in [name.partition("_times_")]
    }
    speed = {"memory_gb_s": [total / s / 1e9 for s in seconds["memory"]]}
    return {**{f"{short}_s": times for short, times in seconds.items()}, **speed, **pairs}


def race(fields: Mapping[str, Any], to_fields: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """All contenders between two Megatron layouts."""
    with TemporaryDirectory() as folder:
        on_ranks(NUM_RANKS, _race_rank, folder, fields, to_fields, sizes)
        return json.loads((Path(folder) / "result.json").read_text())


def _race_rank(
    rank: int, folder: str, fields: Mapping[str, Any], to_fields: Mapping[str, Any], sizes: Mapping[str, Any]
) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=NUM_RANKS)
    model = shrunk("qwen2.5-7b", divide=sizes["divide"], layers=sizes["layers"], vocab=32768)
    swap = Swap.here(MegatronLayout(model, **fields), MegatronLayout(model, **to_fields), torch.bfloat16)
    contenders = {name: make(swap) for name, make in CONTENDERS.items()}
    prepare_s, identical = {}, {}
    reference: dict[str, torch.Tensor] = {}
    for name, contender in contenders.items():
        prepare_s[name] = round(_timed(contender.prepare), 4)
        for tensor in swap.wanted.values():
            tensor.zero_()
        _timed(contender.run)
        reference = reference or {name: tensor.clone() for name, tensor in swap.wanted.items()}
        identical[name] = _on_all_ranks(same_bits(reference, swap.wanted))
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(sizes["rounds"]):
        order = list(contenders)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            spent[name].append(_timed(contenders[name].run))
    if rank == 0:
        total = NUM_RANKS * sum(tensor.nbytes for tensor in swap.wanted.values())
        head = {"swap": f"{_words(fields)} -> {_words(to_fields)}", "ranks": NUM_RANKS, "bytes": total}
        result = head | {"spent": spent, "prepare_s": prepare_s, "identical": identical}
        (Path(folder) / "result.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def standings(
    spent: dict[str, list[float]], total: int, prepare_s: dict[str, float], identical: dict[str, bool]
) -> dict[str, Any]:
    """
    Args:
        spent: seconds of each contender's rounds; round i of all was run at about the same time.
        total: bytes that all targets have.
    """
    found: dict[str, Any] = {
        name: {
            "median_s": round(median(times), 4),
            "quartiles_s": [round(q, 4) for q in quantiles(times, n=4)[::2]],
            "gb_per_s": round(total / median(times) / 1e9, 3),
            "prepare_s": prepare_s[name],
            "identical_to_megatron": identical[name],
        }
        for name, times in spent.items()
    }
    ratios = {
        ours: {
            theirs: round(median(t / o for t, o in zip(spent[theirs], spent[ours], strict=True)), 2)
            for theirs in spent
            if theirs not in OURS
        }
        for ours in OURS
    }
    return {"rounds": len(next(iter(spent.values()))), "contenders": found, "times_faster": ratios}


def same_bits(a: dict[str, torch.Tensor], b: Any) -> bool:
    """Whether two sets of tensors with the same names have the same bits."""
    return all(torch.equal(tensor.view(torch.uint8), b[name].view(torch.uint8)) for name, tensor in a.items())


def _timed(call: Callable[[], object]) -> float:
    """Seconds until the last rank is done."""
    dist.barrier()
    start = time.perf_counter()
    call()
    dist.barrier()
    return time.perf_counter() - start


def _on_all_ranks(fact: bool) -> bool:
    told = torch.tensor([int(fact)])
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return bool(told.item())


def _words(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}{size}" for name, size in fields.items())


_SIZES = {"divide": 4, "layers": 8}

BENCH = Bench(
    name="swap",
    about="The weight update of trainer ranks into engine tensors",
    metrics=_METRICS,
    cases=[
        Case(name=f"{_words(start)} to {_words(end)}", config={"from": start, "to": end, **_SIZES}, repeats=7)
        for start, end in SWAPS
    ],
    smoke=[
        Case(
            name="smoke",
            config={"from": SWAPS[0][0], "to": SWAPS[0][1], "divide": 16, "layers": 2},
            warm_up=0,
            repeats=2,
        )
    ],
    measure=measure,
)
