"""The weight swap against its lower bounds and against other ways to do it.

Planning: the workloads of _workloads.py on real shapes, without a tensor. Swaps: real bytes between Megatron
layouts on four gloo processes, all contenders on the same tensors, in turns, in one run. A record is printed
as soon as it is known.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from benchmarks._ranks import on_ranks
from benchmarks._report import arguments, publish
from benchmarks._reshard_awex import measure as measure_awex
from benchmarks._reshard_ours import InPlace, OverGloo
from benchmarks._reshard_peers import Contender, FullGather, MegatronResharding, RankZeroBroadcast, Swap
from benchmarks._reshard_planning import alone, cold, planned
from benchmarks._workloads import VLLM_WORKLOADS, WORKLOADS, shrunk
from hybridrl.layout.megatron import MegatronLayout

RESULT = {
    "planning": "by workload: what a plan moves and costs, beside its lower bounds",
    "swaps": "by pair of layouts: seconds and bytes per second of every contender, ours against theirs",
    "awex_planner": "by workload: seconds of awex's planner, or why it was not measured",
}

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


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"workloads": "W2", "rounds": 2, "divide": 16, "layers": 2, "swaps": 1},
        workloads="",
        rounds=7,
        divide=4,
        layers=8,
        swaps=len(SWAPS),
        awex="",
        awex_workloads="W2,W7,W10",
    )
    every = (*WORKLOADS, *VLLM_WORKLOADS)
    names = options.workloads.split(",") if options.workloads else [w.name for w in every]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks._reshard_planning"])
    planning = [_tell(planned(w) | cold(w, context)) for w in every if w.name in names]
    swaps = [_tell(race(*swap, options)) for swap in SWAPS[: options.swaps]]
    awex = [
        _tell({"workload": w.name} | alone(context, measure_awex, options.awex, w.name))
        for w in WORKLOADS
        if w.name in names and w.name in options.awex_workloads.split(",")
    ]
    publish({"planning": planning, "swaps": swaps, "awex_planner": awex}, options.json)


def race(fields: Mapping[str, Any], to_fields: Mapping[str, Any], options: Any) -> dict[str, Any]:
    """All contenders between two Megatron layouts."""
    with TemporaryDirectory() as folder:
        on_ranks(NUM_RANKS, _race_rank, folder, fields, to_fields, options)
        return json.loads((Path(folder) / "result.json").read_text())


def _race_rank(
    rank: int, folder: str, fields: Mapping[str, Any], to_fields: Mapping[str, Any], options: Any
) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=NUM_RANKS)
    model = shrunk("qwen2.5-7b", divide=options.divide, layers=options.layers, vocab=32768)
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
    for turn in range(options.rounds):
        order = list(contenders)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            spent[name].append(_timed(contenders[name].run))
    if rank == 0:
        total = NUM_RANKS * sum(tensor.nbytes for tensor in swap.wanted.values())
        head = {"swap": f"{_words(fields)} -> {_words(to_fields)}", "ranks": NUM_RANKS, "bytes": total}
        result = head | standings(spent, total, prepare_s, identical)
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
    """Of two sets of tensors with the same names."""
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


def _tell(record: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(record), file=sys.stderr, flush=True)
    return record


if __name__ == "__main__":
    main()
