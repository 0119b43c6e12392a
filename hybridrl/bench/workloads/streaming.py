"""Streaming: how fast runs with long answers are in each mode, and what the controller itself costs.

The first part runs the real training loop on a fake clock, with simulated engines: answers have the lengths
of reasoning runs by mean, 99th percentile and maximum. The second part measures the driver's own work in a
step of many trajectories, on this machine.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from hybridrl.bench.base import Bench, Case, Metric
from hybridrl.bench.workloads import fake_clock
from hybridrl.bench.workloads.simulated import Hardware, Lengths, SimulatedRun, Swap, config
from hybridrl.controller.loop import run

DISTRIBUTIONS: Mapping[str, Lengths] = {
    "short": Lengths(mean=400, p99=1_600, largest=4_096),
    "reasoning": Lengths(mean=4_000, p99=16_000, largest=20_480),
    "long_tail": Lengths(mean=6_000, p99=32_000, largest=65_536),
}

MODES: Mapping[str, tuple[Swap, dict[str, Any]]] = {
    "on_policy": ("drain", {}),
    "on_policy_oversample": ("drain", {"order": "finished", "oversample": 1.25}),
    "whole_batches": ("drain_all", {"max_lag": 1}),
    "drain": ("drain", {"max_lag": 1}),
    "in_flight": ("in_flight", {"max_lag": 1}),
    "in_flight_finished": ("in_flight", {"max_lag": 1, "order": "finished"}),
    "partial_rollouts": ("in_flight", {"max_lag": 2, "order": "finished", "oversample": 1.25}),
    "lag_4": ("in_flight", {"max_lag": 4, "order": "finished"}),
    "lag_4_drop": ("in_flight", {"max_lag": 4, "order": "finished", "stale": "drop"}),
}
"""How weights are swapped, and the keys of batch."""

_SHARES = {"engines_generating": "perf/engines_generating", "with_gradient": "goodput/with_gradient"}

_MODE_METRICS = {
    "steps_an_hour": Metric("steps/h", "policy updates in an hour of the fake clock", "higher"),
    "times_whole_batches": Metric("x", "steps_an_hour over those of whole_batches", "higher"),
    "engines_generating": Metric("share", "engine time in which they generate", "higher"),
    "with_gradient": Metric("share", "engine time that led to a gradient", "higher"),
    "mean_lag": Metric("updates", "mean age of trained answers"),
    "largest_lag": Metric("updates", "largest age of a trained answer"),
    "length_bias": Metric("x", "mean length of trained answers over that of all that were started"),
}
_DRIVER_METRICS = {
    "own_s": Metric(
        "s",
        "processor time of the driver in a step: packing, credit, minibatches, observation",
        "lower",
        gated=True,
    ),
    "messages_and_stream_s": Metric("s", "processor time of the driver for messages with engines", "lower"),
    "memory_growth_mib": Metric("MiB", "growth of the driver's memory in a step"),
    "references": Metric("references", "object references of a batch"),
}

_SIMULATED_S = {"simulated_s": Metric("s", "computation of one simulated run", "lower")}


def measure(case: Case) -> Mapping[str, list[float]]:
    if "actors" in case.config:
        return _driver(case)
    lengths = Lengths(**case.config["lengths"])
    start = time.perf_counter()
    found = _modes(lengths, case.config)
    spent = (time.perf_counter() - start) / len(MODES)
    samples = {f"{mode}/{name}": [value] for mode, row in found.items() for name, value in row.items()}
    return samples | {"simulated_s": [spent]}


def _driver(case: Case) -> Mapping[str, list[float]]:
    from hybridrl.bench.workloads.no_op_engines import measure as measure_driver

    sizes = case.config
    found = [
        measure_driver(sizes["actors"], sizes["prompts"], sizes["samples"], sizes["steps"])
        for _ in range(case.repeats)
    ]
    return {name: [one[name] for one in found] for name in _DRIVER_METRICS}


def _modes(lengths: Lengths, sizes: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """All modes, on the same prompts with the same lengths."""
    episodes = sizes["prompts"] * sizes["samples"]
    running = max(1, episodes // sizes["engines"])
    hardware = Hardware(
        engines=sizes["engines"],
        running=running,
        token_s=0.02,
        prefill_tokens_s=50_000.0,
        train_s=lengths.mean * 0.02,  # as long as a mean answer
        swap_s=2.0,
    )
    found = {name: _mode(hardware, lengths, swap, batch, sizes) for name, (swap, batch) in MODES.items()}
    base = found["whole_batches"]["steps_an_hour"]
    return {name: row | {"times_whole_batches": row["steps_an_hour"] / base} for name, row in found.items()}


def _mode(
    hardware: Hardware, lengths: Lengths, swap: Swap, batch: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, float]:
    cfg = config(sizes["prompts"], sizes["samples"], sizes["steps"], **batch)
    simulated = SimulatedRun(cfg, hardware, lengths, swap)

    async def play() -> None:
        async with simulated.running():
            await run(cfg, simulated.roles())

    fake_clock.run(play())
    spent_s = np.diff([0.0, *simulated.step_ends])
    share = {name: np.array([m[name] for m in simulated.metrics]) for name in _SHARES.values()}
    return {
        "steps_an_hour": 3600 * sizes["steps"] / simulated.step_ends[-1],
        **{key: float(share[name] @ spent_s / spent_s.sum()) for key, name in _SHARES.items()},
        "mean_lag": float(np.mean(simulated.lags)),
        "largest_lag": float(max(simulated.lags)),
        "length_bias": float(np.mean(simulated.trained_lengths) / simulated.mean_started()),
    }


def _case(name: str, lengths: Lengths, **sizes: int) -> Case:
    """The clock is a fake one: every repeat gives the same numbers, so there is one."""
    return Case(name=name, config={"lengths": asdict(lengths), **sizes}, warm_up=0, repeats=1)


BENCH = Bench(
    name="streaming",
    about="Asynchronous modes on a fake clock, and the driver's work with real actors",
    metrics={
        **{f"{mode}/{name}": metric for mode in MODES for name, metric in _MODE_METRICS.items()},
        **_SIMULATED_S,
        **_DRIVER_METRICS,
    },
    cases=[
        *(
            _case(name, lengths, engines=1024, prompts=512, samples=8, steps=24)
            for name, lengths in DISTRIBUTIONS.items()
        ),
        Case(
            name="driver",
            config={"actors": 8, "prompts": 4096, "samples": 16, "steps": 6},
            warm_up=0,
            repeats=3,
        ),
    ],
    smoke=[_case("smoke", DISTRIBUTIONS["short"], engines=4, prompts=8, samples=2, steps=5)],
    measure=measure,
)
