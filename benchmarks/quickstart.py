"""A long quickstart: seconds of a step by phase, the share outside generation and training, driver memory."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks._report import arguments, publish
from hybridrl.observe.jsonl import read

RESULT = {
    "config": "that was run",
    "steps": "policy updates, those of the warm-up included",
    "median_s": "of each phase of a step",
    "median_swap_s": "of the weight swap",
    "overhead_share": "time of a step in neither generation nor trainer, median",
    "tokens_per_s": "of a step over its time, median",
    "driver_memory_gb": "of the driver process: at the first and last step, and its slope",
}

PHASES = ("gen", "reward", "adv", "old_log_prob", "update_actor", "update_weights", "step")


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"steps": 3, "warm_up": 1},
        config="configs/quickstart.yaml",
        steps=200,
        warm_up=10,
    )
    if options.steps < options.warm_up + 2:
        raise SystemExit(
            f"--steps {options.steps}: a slope needs two steps after --warm-up {options.warm_up}"
        )
    with tempfile.TemporaryDirectory() as folder:
        launch(options.config, folder, options.steps)
        records = [r.metrics for r in read(Path(folder) / "bench" / "metrics.jsonl") if r.kind == "step"]
    publish(
        {"config": options.config, "steps": len(records), **summary(records[options.warm_up :])}, options.json
    )


def launch(config: str, folder: str, steps: int) -> None:
    overrides = [f"run.folder={folder}", "run.name=bench", f"run.steps={steps}", "run.evaluate_every=0"]
    subprocess.run([sys.executable, "-m", "hybridrl", "launch", config, *overrides], check=True)


def summary(records: Sequence[Mapping[str, float]]) -> dict[str, object]:
    """Medians over the steps after warm-up."""
    memory_gb = np.array([r["perf/driver_memory_gb"] for r in records])
    slope_gb, _ = np.polyfit(np.arange(len(memory_gb)), memory_gb, 1)
    return {
        "median_s": {name: round(median(r[f"timing_s/{name}"] for r in records), 4) for name in PHASES},
        "median_swap_s": round(median(r["sync/time_s"] for r in records), 4),
        "overhead_share": round(median(r["perf/overhead_share"] for r in records), 4),
        "tokens_per_s": round(median(r["perf/throughput"] for r in records), 1),
        "driver_memory_gb": {
            "first": memory_gb[0],
            "last": memory_gb[-1],
            "slope_mb_per_step": 1e3 * slope_gb,
        },
    }


if __name__ == "__main__":
    main()
