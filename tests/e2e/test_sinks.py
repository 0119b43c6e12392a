"""Runs on the real stack with all sinks: each holds what metrics.jsonl holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sink_readers import in_float32, tensorboard_values, values_by_step, wandb_metrics, wandb_rows

from hybridrl.observe.jsonl import read

CONFIGS = Path(__file__).parents[2] / "configs"

SHORT = {
    "launch quickstart": ["run.steps=3", "run.evaluate_every=2", "actor.optimizer={lr: 1.0e-3}"],
    "sft sft_arithmetic": ["run.steps=3", "run.evaluate_every=2", "actor.optimizer={lr: 1.0e-3}"],
    "rm rm_arithmetic": ["run.steps=3", "run.evaluate_every=2", "actor.optimizer={lr: 1.0e-3}"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", SHORT)
def test_every_sink_has_the_metrics_of_a_run(command: str, tmp_path: Path) -> None:
    verb, config = command.split()
    sinks = ["observe.sinks=[mlflow, wandb, tensorboard]", "run.name=a"]
    path = str(CONFIGS / f"{config}.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "hybridrl", verb, path, *SHORT[command], *sinks],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the run goes on" not in done.stdout and "wandb:" not in done.stdout + done.stderr

    run = tmp_path / "runs" / "a"
    lines = read(run / "metrics.jsonl")
    assert {r.step for r in lines if r.kind == "step"} == {1, 2, 3}
    rows = wandb_rows(run)
    assert [(row["step"], wandb_metrics(row)) for row in rows] == [(r.step, dict(r.metrics)) for r in lines]
    assert tensorboard_values(run) == in_float32(values_by_step(lines))

    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    known = client.get_run((run / "mlflow_run_id").read_text().strip())
    assert known.data.metrics.keys() == values_by_step(lines).keys() and known.info.status == "FINISHED"
    kept = {file.name for file in run.glob("wandb/offline-run-*/files/*")}
    assert {"resolved.yaml", "summary.json"} <= kept
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
