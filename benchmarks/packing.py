"""How evenly long-tailed batches are shared out over data-parallel ranks and microbatches.

Lengths are drawn from a log-normal distribution that is cut at the token limit, as answers of reasoning
models are. Packing has no padding; what is lost is the time in which ranks wait for the busiest one, and the
room that microbatches leave. `least_idle_share` is what no plan can go below: a trajectory is not cut in two.
"""

import math
import time
from statistics import mean
from typing import Any

import numpy as np

from benchmarks._report import arguments, publish
from hybridrl.data.packing import partition_rows

RESULT = {
    "batches": "over which each number is a mean",
    "attention_length": "tokens at which attention costs as much as the weights",
    "cases": "idle share, microbatches and room left, by batch and by how cost is counted",
}

ATTENTION_LENGTH = 12 * 4096
"""Tokens at which attention costs as much as the weights, in a plain transformer of width 4096."""

CASES = {  # trajectories of a minibatch, ranks, token limit of an answer
    "512 answers of 8k, 8 ranks": (512, 8, 8_192),
    "512 answers of 32k, 8 ranks": (512, 8, 32_768),
    "1024 answers of 8k, 64 ranks": (1024, 64, 8_192),
    "1024 answers of 32k, 64 ranks": (1024, 64, 32_768),
    "8192 answers of 32k, 128 ranks": (8192, 128, 32_768),
}
PROMPT_TOKENS = 256


def main() -> None:
    options = arguments(__doc__, smoke={"batches": 1, "cases": 1}, batches=20, cases=len(CASES))
    found = {
        name: {
            "tokens": measure(case, options.batches, math.inf),
            "with attention": measure(case, options.batches, ATTENTION_LENGTH),
        }
        for name, case in list(CASES.items())[: options.cases]
    }
    publish({"batches": options.batches, "attention_length": ATTENTION_LENGTH, "cases": found}, options.json)


def measure(case: tuple[int, int, int], batches: int, attention_length: float) -> dict[str, float]:
    """Means over batches; cost by tokens alone, or with the square that attention adds."""
    rows = [plan(case, seed, attention_length) for seed in range(batches)]
    return {name: round(mean(float(row[name]) for row in rows), 5) for name in rows[0]}


def plan(case: tuple[int, int, int], seed: int, attention_length: float) -> dict[str, Any]:
    count, num_ranks, limit = case
    length_N = draw_lengths(count, limit, seed)
    budget = limit + PROMPT_TOKENS
    began = time.perf_counter()
    shared = partition_rows(
        np.arange(count),
        length_N,
        num_ranks=num_ranks,
        microbatch_tokens=budget,
        attention_length=attention_length,
    )
    spent_s = time.perf_counter() - began
    cost_N = length_N * (1 + length_N / attention_length)
    busy = [cost_N[[n for microbatch in rank for n in microbatch]].sum() for rank in shared]
    least = max(np.mean(busy), cost_N.max())
    num_microbatches = num_ranks * len(shared[0])
    return {
        "idle_share": 1 - np.mean(busy) / max(busy),
        "least_idle_share": 1 - np.mean(busy) / least,
        "microbatches": len(shared[0]),
        "least_microbatches": -(-length_N.sum() // (num_ranks * budget)),
        "room_left_share": 1 - length_N.sum() / (num_microbatches * budget),
        "plan_ms": spent_s * 1e3,
    }


def draw_lengths(count: int, limit: int, seed: int) -> np.ndarray:
    """Prompt and answer; the median answer is a fourteenth of the limit, and a few reach it."""
    answers = np.random.default_rng(seed).lognormal(np.log(limit / 14), 1.0, count)
    return PROMPT_TOKENS + np.minimum(answers, limit).astype(np.int64)


if __name__ == "__main__":
    main()
