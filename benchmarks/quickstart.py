"""A long quickstart: seconds of a step by phase, the share outside generation and training, driver memory."""

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks._report import arguments, publish
from hybridrl.observe.jsonl import read

PHASES = ("gen", "reward", "adv", "old_log_prob", "update_actor", "update_weights", "step")
WARM_UP_STEPS = 10


def main() -> None:
    options = arguments(__doc__, config="configs/quickstart.yaml", steps=200)
    with tempfile.TemporaryDirectory() as folder:
        launch(options.config, folder, options.steps)
        records = [r.metrics for r in read(Path(folder) / "bench" / "metrics.jsonl") if r.kind == "step"]
    publish(
        {"config": options.config, "steps": len(records), **summary(records[WARM_UP_STEPS:])}, options.json
    )


def launch(config: str, folder: str, steps: int) -> None:
    overrides = [f"run.folder={folder}", "run.name=bench", f"run.steps={steps}", "run.evaluate_every=0"]
    subprocess.run([sys.executable, "-m", "hybridrl", "launch", config, *overrides], check=True)


def summary(records: list[dict[str, float]]) -> dict[str, object]:
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
