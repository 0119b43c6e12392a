"""Two sessions of a run into an MLflow store, in a process of their own; prints what they met as JSON.

Its own process, because MLflow leaves its usage reports out by itself where it sees a test runner.
Called as: python mlflow_sessions.py RUNS_FOLDER
"""

import json
import math
import socket
import sys
from pathlib import Path
from typing import Any

import observe_values as values
import sink_values as sinks

from hybridrl.observe.names import METRICS
from hybridrl.observe.sinks.mlflow import MlflowSink

PARAMS = {
    "actor": {"parallel": {"tp": 2, "dp": None}, "optimizer": {"betas": (0.9, 0.95)}},
    "run": {"name": "a", "steps": 2},
    "reward": {"prompt": "x" * 7000},
    "many": {f"key {i}": i for i in range(150)},
}


def watch_the_network() -> list[str]:
    """Note, and refuse, every attempt to reach a host."""
    attempts: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        attempts.append(repr(arguments[1:] or arguments))
        raise OSError("no network here")

    socket.socket.connect = refuse
    socket.getaddrinfo = refuse
    return attempts


def play(runs: Path) -> dict[str, Any]:
    attempts, warnings = watch_the_network(), []
    lazy = "mlflow" not in sys.modules
    folder = runs / "a"
    folder.mkdir(parents=True)
    (folder / "resolved.yaml").write_text("run: {name: a}\n")

    first = sinks.session(MlflowSink(), folder, warn=warnings.append, config=PARAMS)
    first.keep(folder / "resolved.yaml")
    first.write(values.record(1, actor__lr=5e-4, broken=math.nan))
    first.write(values.record(2, actor__lr=4e-4, broken=math.inf))
    first.close("KILLED", deadline_s=120.0)

    longer = {**PARAMS, "run": {"name": "a", "steps": 3}, "new": 1}
    second = sinks.session(MlflowSink(), folder, warn=warnings.append, config=longer, resume_step=2)
    second.write(values.record(3, kind="step", **dict.fromkeys(METRICS, 0.5)))
    second.close("FINISHED", deadline_s=120.0)
    return {"attempts": attempts, "warnings": warnings, "lazy": lazy}


if __name__ == "__main__":
    print(json.dumps(play(Path(sys.argv[1]))))
