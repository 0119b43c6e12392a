"""Streaming: how fast runs with long answers are in each mode, and what the controller itself costs.

The first part runs the real training loop on a fake clock, with simulated engines: answers have the lengths
of reasoning runs by mean, 99th percentile and maximum. The second part measures the driver's own work in a
step of many trajectories, on this machine.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import _fake_clock
from benchmarks._no_op_engines import measure
from benchmarks._report import arguments, publish
from benchmarks._simulated import Hardware, Lengths, SimulatedRun, Swap, config
from hybridrl.controller.loop import run

RESULT = {
    "modes": "per distribution of lengths and mode: steps an hour, and over those of whole_batches; share of "
    "engine time in which they generate and that led to a gradient; mean and largest lag in updates; mean "
    "length of trained answers over that of all started ones",
    "driver": "CPU seconds of the driver in a step with real Ray actors whose engines answer at once: packing"
    " the batch, credit with guards, minibatches and observation (own_s is their sum), and messages with the "
    "stream; growth of its memory a step, and object references of a batch",
    "simulated": "engines, trajectories a step and steps of a simulated run, and the seconds that one took",
}

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


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"engines": 4, "prompts": 8, "samples": 2, "steps": 5, "actors": 2, "driver_prompts": 16},
        engines=1024,
        prompts=512,
        samples=8,
        steps=24,
        actors=8,
        driver_prompts=4096,
        driver_steps=6,
    )
    start = time.perf_counter()
    modes = {name: _distribution(lengths, options) for name, lengths in DISTRIBUTIONS.items()}
    runs = len(DISTRIBUTIONS) * len(MODES)
    simulated = {
        "engines": options.engines,
        "trajectories": options.prompts * options.samples,
        "steps": options.steps,
        "seconds_a_run": (time.perf_counter() - start) / runs,
    }
    driver = measure(options.actors, options.driver_prompts, 16, options.driver_steps)
    publish({"modes": modes, "driver": driver, "simulated": simulated}, options.json)


def _distribution(lengths: Lengths, options: Any) -> dict[str, dict[str, float]]:
    """All modes, on the same prompts with the same lengths."""
    episodes = options.prompts * options.samples
    running = max(1, episodes // options.engines)
    hardware = Hardware(
        engines=options.engines,
        running=running,
        token_s=0.02,
        prefill_tokens_s=50_000.0,
        train_s=lengths.mean * 0.02,  # as long as a mean answer
        swap_s=2.0,
    )
    found = {name: _mode(hardware, lengths, swap, batch, options) for name, (swap, batch) in MODES.items()}
    base = found["whole_batches"]["steps_an_hour"]
    return {name: row | {"times_whole_batches": row["steps_an_hour"] / base} for name, row in found.items()}


def _mode(
    hardware: Hardware, lengths: Lengths, swap: Swap, batch: Mapping[str, Any], options: Any
) -> dict[str, float]:
    cfg = config(options.prompts, options.samples, options.steps, **batch)
    simulated = SimulatedRun(cfg, hardware, lengths, swap)

    async def play() -> None:
        async with simulated.running():
            await run(cfg, simulated.roles())

    _fake_clock.run(play())
    spent_s = np.diff([0.0, *simulated.step_ends])
    share = {name: np.array([m[name] for m in simulated.metrics]) for name in _SHARES.values()}
    return {
        "steps_an_hour": 3600 * options.steps / simulated.step_ends[-1],
        **{key: float(share[name] @ spent_s / spent_s.sum()) for key, name in _SHARES.items()},
        "mean_lag": float(np.mean(simulated.lags)),
        "largest_lag": float(max(simulated.lags)),
        "length_bias": float(np.mean(simulated.trained_lengths) / simulated.mean_started()),
    }


if __name__ == "__main__":
    main()
