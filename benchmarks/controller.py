"""The controller's own work in one step: packing a batch, credit, guards, partition over ranks, observation.

Groups of random lengths and rewards are given to the real code, in one process, with nothing beside it. What
remote workers do, and waiting for them, is not part of it.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks._report import arguments, publish
from hybridrl.batch import Batch
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.controller.advantage import load_credit
from hybridrl.controller.verbs import refuse_stale
from hybridrl.data.packing import pack_minibatches
from hybridrl.observe.metrics import Limits, balance_metrics, step_metrics
from hybridrl.observe.samples import Columns, samples_of
from hybridrl.types import Group, Prompt, StepReport, SwapReport, Trajectory

RESULT = {
    "trajectories": "in a step",
    "samples": "answers to each prompt",
    "ranks": "data-parallel ranks of the trainer",
    "seconds": "median over the repeats of each part, and of all",
    "memory_mb": "growth of this process from the first repeat to the last",
}


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"trajectories": 256, "repeats": 2},
        trajectories=65_536,
        samples=16,
        ranks=128,
        repeats=7,
    )
    publish(measure(options.trajectories, options.samples, options.ranks, options.repeats), options.json)


def measure(trajectories: int, samples: int, ranks: int, repeats: int) -> dict[str, Any]:
    rows, resident = [], []
    for seed in range(repeats):
        rows.append(step_s(make_groups(trajectories // samples, samples, seed), ranks))
        resident.append(psutil.Process().memory_info().rss / 2**20)
    return {
        "trajectories": trajectories,
        "samples": samples,
        "ranks": ranks,
        "seconds": {name: round(median(row[name] for row in rows), 4) for name in rows[0]},
        "memory_mb": round(resident[-1] - resident[0], 1),
    }


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
    timed("credit and guards", lambda: credit(batch))
    minibatches = timed("partition", lambda: _partition(batch, ranks))
    timed("columns for ranks", lambda: batch.for_ranks(minibatches))
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


if __name__ == "__main__":
    main()
