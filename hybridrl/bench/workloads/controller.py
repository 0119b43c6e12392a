"""The controller's own work in one step: packing a batch, credit, guards, partition over ranks, observation.

Groups of random lengths and rewards are given to the real code, in one process, with nothing beside it. What
remote workers do, and waiting for them, is not part of it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import psutil

from hybridrl.batch import Batch
from hybridrl.bench.base import Bench, Case, Metric
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.controller.advantage import load_credit
from hybridrl.controller.verbs import refuse_stale
from hybridrl.data.packing import pack_minibatches
from hybridrl.observe.metrics import Limits, balance_metrics, step_metrics
from hybridrl.observe.samples import Columns, samples_of
from hybridrl.types import Group, Prompt, StepReport, SwapReport, Trajectory

_PARTS = {
    "pack": "lining up the scalars of a batch",
    "refuse_stale": "refusing answers that are too old",
    "credit": "advantages and the guards around them",
    "partition": "optimizer steps, ranks and microbatches",
    "columns": "what each rank is sent",
    "metrics": "metrics and the samples that are shown",
}
_METRICS = {
    "all_s": Metric(
        "s",
        "the controller's own work of one step",
        "lower",
        gated=True,
        headline="The controller's own work in a step of 65,536 answers on 128 ranks",
    ),
    **{f"{name}_s": Metric("s", meaning, "lower") for name, meaning in _PARTS.items()},
    "memory_mb": Metric("MB", "growth of this process from the first repeat to the last"),
}


def measure(case: Case) -> Mapping[str, list[float]]:
    sizes = case.config
    found, resident = [], []
    for seed in range(case.warm_up + case.repeats):
        groups = make_groups(sizes["trajectories"] // sizes["samples"], sizes["samples"], seed)
        found.append(step_s(groups, sizes["ranks"]))
        resident.append(psutil.Process().memory_info().rss / 1e6)
    counted = found[case.warm_up :]
    spent = {f"{name}_s": [one[name] for one in counted] for name in found[0]}
    return spent | {"memory_mb": [resident[-1] - resident[case.warm_up]]}


def step_s(groups: list[Group], ranks: int) -> dict[str, float]:
    """Seconds of each part of one step."""
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = work()
        spent[name] = time.perf_counter() - began
        return found

    credit = load_credit(AlgorithmConfig(samples_per_prompt=len(groups[0].trajectories)))
    batch = timed("pack", lambda: Batch.pack(1, groups))
    timed("refuse_stale", lambda: refuse_stale(batch, 0))
    timed("credit", lambda: credit(batch))
    minibatches = timed("partition", lambda: _partition(batch, ranks))
    timed("columns", lambda: batch.for_ranks(minibatches))
    timed("metrics", lambda: _observe(batch, minibatches))
    return {**spent, "all": sum(spent.values())}


def make_groups(prompts: int, samples: int, seed: int) -> list[Group]:
    draw = np.random.default_rng(seed)
    length = np.clip(draw.lognormal(6.5, 1.0, (prompts, samples)), 1, 8192).astype(int).tolist()
    reward = draw.integers(0, 2, (prompts, samples)).astype(float).tolist()
    return [
        Group(
            Prompt(f"train/{g}", tuple(range(64)), {"prompt": "", "answer": ""}),
            [
                Trajectory(
                    row=i,
                    prompt_tokens=64,
                    response_tokens=n,
                    trained_tokens=n,
                    finish="stop" if n < 8192 else "length",
                    version=0,
                    reward=r,
                    reward_parts={"format": 1.0 - r, "answer": r},
                )
                for i, (n, r) in enumerate(zip(length[g], reward[g], strict=True))
            ],
            block=object(),
        )
        for g in range(prompts)
    ]


def _partition(batch: Batch, ranks: int) -> Any:
    return pack_minibatches(
        batch,
        minibatch_prompts=len(batch.groups),
        epochs=1,
        num_ranks=ranks,
        microbatch_tokens=16_384,
        seed=1,
    )


def _observe(batch: Batch, minibatches: Any) -> None:
    reports = [StepReport(version=1, loss=0.1, grad_norm=1.0, lr=1e-6, metrics={"actor/entropy": 1.0})]
    swap = SwapReport(
        version=1, time_s=1.0, num_tensors=1, written_bytes=1, staging_bytes=1, checksums_equal=True
    )
    step_metrics(
        batch, reports, swap, {"step": 1.0}, Limits(max_prompt_tokens=64, num_devices=ranks_of(minibatches))
    )
    balance_metrics(batch, minibatches)
    samples_of(batch, Columns("prompt", "answer"))


def ranks_of(minibatches: Any) -> int:
    return len(minibatches[0].rows)


BENCH = Bench(
    name="controller",
    about="The controller's own work in one step",
    metrics=_METRICS,
    cases=[
        Case(
            name="65,536 answers",
            config={"trajectories": 65_536, "samples": 16, "ranks": 128},
            repeats=7,
        )
    ],
    smoke=[Case(name="smoke", config={"trajectories": 256, "samples": 16, "ranks": 8}, repeats=2)],
    measure=measure,
)
