"""How long a report takes, how large its page is, what observing a step costs, and how soon commands answer.

The report is of a run of invented numbers with as many metrics as the quickstart has. A step is observed with
a batch of the quickstart's size and without sinks, and compared with the quickstart's own step time. Commands
are timed by the processor time of their processes, the least of several, since another program on the machine
makes the clock's time longer.
"""

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._report import arguments, publish
from hybridrl.batch import Batch
from hybridrl.config.load import load
from hybridrl.observe.names import LOGP_GAP
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.terminal import Terminal
from hybridrl.report.page import write
from hybridrl.report.run_data import read_run
from hybridrl.types import Group, Prompt, StepReport, SwapReport, Trajectory

RESULT = {
    "reports": "by steps of the run: processor seconds until its page is written, and MB of the page",
    "observe_step_ms": "mean processor time of publishing a step of 1,024 trajectories, without sinks",
    "observe_share_of_a_step": "that time over the quickstart's step time",
    "quickstart_step_ms": "the quickstart's step time, of benchmarks/results/e2e.jsonl",
    "commands": "processor seconds of a command, the least of several",
}

METRICS = 130
COMMANDS = {
    "--help": ["--help"],
    "plan of 72B": ["plan", "configs/grpo_qwen72b.yaml"],
}
NAMED = (
    "critic/score/mean",
    "actor/entropy",
    "timing_s/step",
    "timing_s/gen",
    "response_length/mean",
    LOGP_GAP,
)


def main() -> None:
    options = arguments(
        __doc__, smoke={"longest": 20, "steps": 2, "times": 1}, longest=10_000, steps=50, times=5
    )
    lengths = sorted({min(1000, options.longest), options.longest})
    step_ms, observe_ms = quickstart_step_ms(), observed_ms(options.steps)
    found = {
        "reports": {str(steps): report(steps) for steps in lengths},
        "observe_step_ms": round(observe_ms, 3),
        "observe_share_of_a_step": round(observe_ms / step_ms, 5),
        "quickstart_step_ms": round(step_ms, 1),
        "commands": {name: command(words, options.times) for name, words in COMMANDS.items()},
    }
    publish(found, options.json)


def report(steps: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "metrics.jsonl").write_text("".join(lines(steps)))
        began = time.process_time()
        page = write(read_run(Path(folder)))
        taken = time.process_time() - began
        return {"seconds": round(taken, 3), "megabytes": round(page.stat().st_size / 1e6, 3)}


def lines(steps: int) -> list[str]:
    """metrics.jsonl of a run with an evaluation every ten steps."""
    values_SM = np.random.default_rng(0).normal(1.0, 0.1, (steps, METRICS))
    names = [*NAMED, *(f"reward/part_{i}/mean" for i in range(METRICS - len(NAMED)))]
    found = []
    for step, value_M in enumerate(values_SM.tolist(), 1):
        common = {"step": step, "time": float(step), "wall_s": float(step)}
        found.append(json.dumps({"kind": "step", **common, **dict(zip(names, value_M, strict=True))}) + "\n")
        if step % 10 == 0:
            held = {"val-core/digits/reward/mean_at_1": value_M[0]}
            found.append(json.dumps({"kind": "evaluation", **common, **held}) + "\n")
    return found


def observed_ms(steps: int) -> float:
    """Mean processor milliseconds of publishing a step of 64 groups of 16."""
    swap = SwapReport(
        version=1, time_s=0.01, num_tensors=26, written_bytes=1800, staging_bytes=64, checksums_equal=True
    )
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"run.folder={json.dumps(folder)}", "observe.sinks=[]", f"run.steps={steps + 1}"]
        cfg = load("configs/quickstart.yaml", changes).config
        (Path(folder) / cfg.run.name).mkdir()
        terminal = Terminal(io.StringIO())
        with RunObserver(cfg, terminal, resume_step=None, num_devices=1) as observe:

            def publish_step(step: int) -> None:
                reports = [
                    StepReport(version=step, loss=0.1, grad_norm=0.5, lr=1e-3, metrics={}) for _ in range(4)
                ]
                with observe.span("step"):
                    observe.step(step, batch(step), reports, swap, {})

            publish_step(1)
            made = least(lambda: batch(1), 3)
            began = time.process_time()
            for step in range(2, steps + 2):
                publish_step(step)
            return ((time.process_time() - began) / steps - made) * 1000


def batch(step: int) -> Batch:
    chance = np.random.default_rng(step)
    groups = [
        Group(
            Prompt(f"train/{i}", (1, 2, 3, 4, 5), {"prompt": "7+5="}),
            [Trajectory(0, 5, 2, 2, "stop", step - 1, float(reward)) for reward in chance.integers(0, 2, 16)],
            "block",
        )
        for i in range(64)
    ]
    packed = Batch.pack(step, groups)
    packed.advantage_N = packed.reward_N - packed.reward_N.mean(dtype=np.float32)
    return packed


def least(work: Callable[[], Any], times: int) -> float:
    """The least processor seconds of a call."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def command(words: list[str], times: int) -> float:
    """The least processor seconds of a command, its interpreter included."""
    found = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "-m", "hybridrl", *words], env=environment, stdout=subprocess.DEVNULL, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(min(found), 3)


def quickstart_step_ms() -> float:
    """The step time of the quickstart in benchmarks/results/e2e.jsonl."""
    lines = Path("benchmarks/results/e2e.jsonl").read_text().splitlines()
    (row,) = (
        row
        for row in map(json.loads, lines)
        if (row["case"], row["contestant"]) == ("quickstart", "hybridrl")
    )
    return 1000.0 * row["metrics"]["step_s"]["median"]


if __name__ == "__main__":
    main()
