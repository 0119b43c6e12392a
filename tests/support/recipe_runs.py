"""Runs of the project's recipes and of tests' own configs, from the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"


def launched(folder: Path, config: str, *overrides: str) -> tuple[list[dict[str, float]], str]:
    """The metrics of a run by step, and what it said."""
    command = [sys.executable, "-m", "hybridrl", "launch", config, *overrides]
    paths = {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    process = subprocess.run(
        ["env", *(f"{k}={v}" for k, v in paths.items()), *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    (file,) = folder.glob("runs/*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()], process.stdout


def steps(run: Path) -> list[dict[str, Any]]:
    """The metrics of the steps of a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]


def last(metrics: list[dict[str, float]], name: str) -> float:
    return [row[name] for row in metrics if name in row][-1]


def first(metrics: list[dict[str, float]], name: str) -> float:
    return next(row[name] for row in metrics if name in row)
