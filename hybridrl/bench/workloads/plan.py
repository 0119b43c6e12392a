"""Plans: of weight swaps between real layouts, without a tensor, and the search of `hybridrl plan`."""

import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hybridrl.bench.base import Bench, Case, Metric
from hybridrl.bench.workloads.swap_plans import cold, planned
from hybridrl.bench.workloads.swap_shapes import PLANNED, WORKLOADS, Workload
from hybridrl.config.kinds import load_for
from hybridrl.hosts.machine import Machine
from hybridrl.plan.command import Request, plan

_RUN = """\
model: Qwen/Qwen2.5-72B-Instruct
data: {task: reasoning_gym, dataset: chain_sum, size: 4096}
reward: reasoning_gym
algorithm: {preset: grpo, samples_per_prompt: 16}
batch: {prompts_per_step: 256, minibatch_prompts: 64}
actor: {parallel: {tp: 8, pp: 2}, recompute: full}
rollout: {parallel: {tp: 8}, max_prompt_tokens: 1024, max_response_tokens: 8192}
cluster: {gpu: h100}
run: {name: planned}
"""

_METRICS = {
    "plan_s": Metric(
        "s",
        "a rank plans what it sends and receives, in a new process; the slowest of three",
        "lower",
        gated=True,
        headline="Planning a weight update of Kimi-K2 on one of 256 and of 1,024 trainer ranks",
    ),
    "plan_cpu_s": Metric("s", "processor time of the same", "lower"),
    "with_table_s": Metric("s", "plan_s and the table that the copies run from", "lower"),
    "metadata_bytes": Metric("B", "what a rank is sent to plan from", "lower"),
    "boxes": Metric("boxes", "rectangles that the rank with most of them sends and receives", "lower"),
    "memory_peak_mb": Metric("MB", "Python's allocations while a rank plans", "lower"),
    "network_over_bound": Metric("x", "bytes between devices over the least possible", "lower"),
    "imbalance": Metric("x", "bytes of the busiest sender over the mean", "lower"),
    "search_s": Metric("s", "`hybridrl plan --search --gpus 64` of a 72B model", "lower", gated=True),
}
_OF_A_RANK = ("plan_s", "plan_cpu_s", "with_table_s", "metadata_bytes", "boxes", "memory_peak_mb")


def measure(case: Case) -> Mapping[str, list[float]]:
    if "config" in case.config:
        spent = [_search_s(case) for _ in range(case.warm_up + case.repeats)]
        return {"search_s": spent[case.warm_up :]}
    workload = next(w for w in PLANNED if w.name == case.config["workload"])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hybridrl.bench.workloads.swap_plans"])
    found = [cold(workload, context) for _ in range(case.repeats)]
    whole = planned(workload)
    samples = {name: [float(one[name]) for one in found] for name in _OF_A_RANK}
    for name in ("network_over_bound", "imbalance"):
        if whole[name] is not None:
            samples[name] = [whole[name]]
    return samples


def _search_s(case: Case) -> float:
    with TemporaryDirectory() as folder:
        file = Path(folder, "run.yaml")
        file.write_text(case.config["config"])
        request = Request(search=True, gpus=case.config["gpus"], mean_response=None)
        start = time.perf_counter()
        plan(load_for("launch", file, []), Machine.here(), request)
        return time.perf_counter() - start


def _case(workload: Workload, repeats: int) -> Case:
    """Each repeat plans in processes of its own, so there is no warm-up."""
    config = {"workload": workload.name, "title": workload.title}
    readme = workload.name in ("W9", "W10")
    return Case(
        name=f"{workload.name} {workload.model}", config=config, warm_up=0, repeats=repeats, readme=readme
    )


BENCH = Bench(
    name="plan",
    about="Plans of weight swaps, and the search for a layout",
    metrics=_METRICS,
    cases=[
        *(_case(workload, 3) for workload in PLANNED),
        Case(name="search", config={"config": _RUN, "gpus": 64}, repeats=3),
    ],
    smoke=[replace(_case(WORKLOADS[1], 1), name="smoke")],
    measure=measure,
)
