"""The weight swap against its lower bounds and against other ways to do it, with the planner of awex.

Planning: the workloads of `hybridrl bench plan`, with their lower bounds. Swaps: those of `hybridrl bench
swap`. A record is printed as soon as it is known.
"""

import json
import multiprocessing
import sys
from typing import Any

from benchmarks._report import arguments, publish
from benchmarks._reshard_awex import measure as measure_awex
from hybridrl.bench.workloads.swap import SWAPS, race, standings
from hybridrl.bench.workloads.swap_plans import alone, cold, planned
from hybridrl.bench.workloads.swap_shapes import PLANNED, WORKLOADS

RESULT = {
    "planning": "by workload: what a plan moves and costs, beside its lower bounds",
    "swaps": "by pair of layouts: seconds and bytes per second of every contender, ours against theirs",
    "awex_planner": "by workload: seconds of awex's planner, or why it was not measured",
}


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
    every = PLANNED
    names = options.workloads.split(",") if options.workloads else [w.name for w in every]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hybridrl.bench.workloads.swap_plans"])
    planning = [_tell(planned(w) | cold(w, context)) for w in every if w.name in names]
    swaps = [_tell(_raced(*swap, vars(options))) for swap in SWAPS[: options.swaps]]
    awex = [
        _tell({"workload": w.name} | alone(context, measure_awex, options.awex, w.name))
        for w in WORKLOADS
        if w.name in names and w.name in options.awex_workloads.split(",")
    ]
    publish({"planning": planning, "swaps": swaps, "awex_planner": awex}, options.json)


def _raced(start: Any, end: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    found = race(start, end, sizes)
    facts = {name: found[name] for name in ("swap", "ranks", "bytes")}
    return facts | standings(found["spent"], found["bytes"], found["prepare_s"], found["identical"])


def _tell(record: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(record), file=sys.stderr, flush=True)
    return record


if __name__ == "__main__":
    main()
