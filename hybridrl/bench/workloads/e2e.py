"""Whole runs through `hybridrl launch`: time of a step by phase, tokens a second, memory of the driver."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridrl.bench.base import Bench, Case, Metric
from hybridrl.bench.flops import operations
from hybridrl.bench.peers.work import written
from hybridrl.bench.roofline import bounds, speeds_here
from hybridrl.bench.workloads.e2e_cases import CASES, SMOKE
from hybridrl.hosts.machine import Machine
from hybridrl.models.config_json import read_config
from hybridrl.models.spec import from_config
from hybridrl.observe.jsonl import read

PHASES = ("gen", "reward", "adv", "old_log_prob", "update_actor", "update_weights")
"""Spans of a step, as in metrics.jsonl."""

_METRICS = {
    "step_s": Metric(
        "s",
        "a whole step",
        "lower",
        gated=True,
        headline="A whole step",
    ),
    "gen_s": Metric("s", "generation", "lower"),
    "reward_s": Metric("s", "scoring", "lower"),
    "adv_s": Metric("s", "advantages", "lower"),
    "old_log_prob_s": Metric("s", "loading the batch and its log-probabilities", "lower"),
    "update_actor_s": Metric("s", "all optimizer steps", "lower"),
    "update_weights_s": Metric(
        "s", "the weight update of the engines, with checksums", "lower", headline="Weight update in a run"
    ),
    "train_s": Metric("s", "old_log_prob_s and update_actor_s", "lower"),
    "other_share": Metric(
        "share",
        "the step without generation and trainer",
        "lower",
        headline="Share of a step outside of generation and trainer",
    ),
    "tokens_s": Metric(
        "tokens/s/device", "tokens of the step, prompts included, by step_s", "higher", gated=True
    ),
    "response_tokens_s": Metric("tokens/s/device", "response tokens by step_s", "higher"),
    "gen_tokens_s": Metric("tokens/s/device", "response tokens by gen_s", "higher"),
    "train_tokens_s": Metric("tokens/s/device", "tokens of the step by train_s", "higher"),
    "samples_s": Metric("samples/s/device", "answers by step_s", "higher"),
    "response_tokens": Metric("tokens", "mean length of an answer"),
    "mfu_actor": Metric("share", "operations of update_actor, by its time, over the device's peak", "higher"),
    "gen_bound_s": Metric("s", "the least time of generation on this machine"),
    "gen_times_bound": Metric("x", "gen_s over its bound", "lower"),
    "train_bound_s": Metric("s", "the least time of log-probabilities and optimizer steps"),
    "train_times_bound": Metric("x", "train_s over its bound", "lower"),
    "update_weights_bound_s": Metric("s", "the least time of the weight update"),
    "update_weights_times_bound": Metric("x", "update_weights_s over its bound", "lower"),
    "driver_memory_mb": Metric("MB", "main memory of the driver process"),
    "driver_memory_growth_kb": Metric("kB", "slope of the driver's memory over the steps", "lower"),
    "step_times_ours": Metric("x", "step_s over that of hybridrl", ""),
    "token_times_ours": Metric("x", "time of a response token over that of hybridrl", ""),
}


def measure(case: Case) -> Mapping[str, list[float]]:
    steps = case.warm_up + case.repeats
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        launch(case.config, Path(folder), steps)
        return samples(case.config, steps_of(Path(folder, "bench"))[case.warm_up :])


def steps_of(run: Path) -> list[Mapping[str, float]]:
    """Metrics of each step of a run, by its folder."""
    return [record.metrics for record in read(run / "metrics.jsonl") if record.kind == "step"]


def launch(config: Mapping[str, Any], folder: Path, steps: int) -> None:
    file = written(config, folder, steps)
    subprocess.run([sys.executable, "-m", "hybridrl", "launch", str(file)], check=True)


def samples(config: Mapping[str, Any], records: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Metrics of each step, from the lines of metrics.jsonl."""
    count = config["batch"]["prompts_per_step"] * config["algorithm"]["samples_per_prompt"]
    steps = [
        {f"{name}_s": record.get(f"timing_s/{name}", 0.0) for name in ("step", *PHASES)}
        | {
            "tokens": record["perf/total_num_tokens"],
            "response_tokens": record["response_length/mean"],
            "longest_response": record["response_length/max"],
            "answers": count,
        }
        for record in records
    ]
    found = speeds(steps)
    memory_gib = np.array([record["perf/driver_memory_gb"] for record in records])
    found["driver_memory_mb"] = (memory_gib * 2**30 / 1e6).tolist()
    if len(memory_gib) > 1:
        slope, _ = np.polyfit(np.arange(len(memory_gib)), memory_gib * 2**30 / 1e3, 1)
        found["driver_memory_growth_kb"] = [float(slope)]
    return found | of_machine(config, steps)


def speeds(steps: Sequence[Mapping[str, float]], devices: int | None = None) -> dict[str, list[float]]:
    """Metrics that follow from seconds by phase, mean response tokens, answers and tokens of each step.

    Args:
        steps: what each step took; without `tokens`, speeds of all tokens are left out.
        devices: number of them; None: the GPUs of this machine, or 1 without any.
    """
    devices = devices or max(1, len(Machine.here().gpus))
    found: dict[str, list[float]] = {}
    for step in steps:
        for name, value in _speeds(step, devices).items():
            found.setdefault(name, []).append(value)
    return found


def _speeds(step: Mapping[str, float], devices: int) -> dict[str, float]:
    responses = step["response_tokens"] * step["answers"]
    train_s = step["old_log_prob_s"] + step["update_actor_s"]
    found = {name: value for name, value in step.items() if name.endswith("_s")} | {
        "train_s": train_s,
        "other_share": max(0.0, 1 - (step["gen_s"] + train_s) / step["step_s"]),
        "response_tokens_s": responses / step["step_s"] / devices,
        "gen_tokens_s": responses / step["gen_s"] / devices,
        "samples_s": step["answers"] / step["step_s"] / devices,
        "response_tokens": step["response_tokens"],
    }
    if "tokens" in step:
        found["tokens_s"] = step["tokens"] / step["step_s"] / devices
        found["train_tokens_s"] = step["tokens"] / train_s / devices
    return found


def of_machine(config: Mapping[str, Any], steps: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """What the steps are beside this machine: the share of its peak that update_actor reaches, with every
    answer of the mean length, and each phase over its bound. Empty for a model that is not in its folder, and
    for a GPU whose data sheet is not known.
    """
    folder = Path(str(config["model"]["path"]).replace("{seed}", "0"))
    here = speeds_here()
    if here is None or not folder.is_dir():  # a model of the hub is in its cache
        return {}
    model = from_config(read_config(folder), where=str(folder))
    batch = config["batch"]
    epochs, prompts = batch.get("epochs", 1), batch["prompts_per_step"]
    updates = epochs * prompts // batch["minibatch_prompts"]
    found: dict[str, list[float]] = {}
    for step in steps:
        lengths = [round(step["tokens"] / step["answers"])] * round(step["answers"])
        least = bounds(model, step, here, prompts=prompts, updates=updates, epochs=epochs)
        spent = {**step, "train_s": step["old_log_prob_s"] + step["update_actor_s"]}
        values = {"mfu_actor": epochs * operations(model, lengths) / step["update_actor_s"] / here.flops}
        for name, bound_s in least.items():
            phase = name.removesuffix("_s")
            values |= {f"{phase}_bound_s": bound_s}
            if spent[name]:
                values |= {f"{phase}_times_bound": spent[name] / bound_s}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return found


BENCH = Bench(
    name="e2e",
    about="Whole steps of a run",
    metrics=_METRICS,
    cases=CASES,
    smoke=SMOKE,
    measure=measure,
)
