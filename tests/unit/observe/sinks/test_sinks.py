"""MLflow, W&B and TensorBoard hold what metrics.jsonl holds, read by their own readers; and no secret."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sink_readers import (
    in_float32,
    tensorboard_events,
    tensorboard_values,
    values_by_step,
    wandb_metrics,
    wandb_records,
    wandb_rows,
)

from hybridrl.observe.jsonl import read
from hybridrl.observe.record import Record
from hybridrl.observe.sinks.mlflow import store_uri
from hybridrl.observe.sinks.wandb import RUN_ID_FILE

SCRIPT = Path(__file__).parents[3] / "support" / "sink_sessions.py"
ROOT = SCRIPT.parents[2]

IN_CONFIG = ["a-secret-by-its-key", "a-secret-in-a-url", "hf_aSecretByItsLooks0123456789"]
IN_ENVIRONMENT = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "a-secret-of-the-hub",
    "DATABASE_URL": "postgres://me:a-secret-of-a-database@db.example/x",
}
IN_GIT = "a-secret-of-the-remote"
SECRETS = [*IN_CONFIG, *IN_ENVIRONMENT.values(), IN_GIT, "a-secret-of-a-database"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose git remote has a password."""
    folder = tmp_path_factory.mktemp("project")
    subprocess.run(["git", "init", "-q", folder], check=True)
    remote = f"https://me:{IN_GIT}@git.example/me/lab.git"
    subprocess.run(["git", "-C", folder, "remote", "add", "origin", remote], check=True)
    return folder


@pytest.fixture(scope="module")
def played(project: Path) -> dict[str, Any]:
    """What two sessions met, the second a resume of the first, which was stopped."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(project),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        **IN_ENVIRONMENT,
    }
    command = [sys.executable, str(SCRIPT), str(project / "runs"), *IN_CONFIG]
    done = subprocess.run(
        command, env=environment, cwd=project, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a sink writes into the live view"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run(project: Path, played: dict[str, Any]) -> Path:
    return project / "runs" / "a"


@pytest.fixture(scope="module")
def lines(run: Path) -> list[Record]:
    """Of metrics.jsonl."""
    found = read(run / "metrics.jsonl")
    assert [(r.kind, r.step) for r in found] == [
        ("evaluation", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("evaluation", 3),
    ]
    return found


def test_no_host_is_asked_and_nothing_fails(played: dict[str, Any]) -> None:
    assert played["attempts"] == []
    assert "the run goes on" not in played["screen"] and "lacks" not in played["screen"]


def test_wandb_has_a_row_for_each_line(run: Path, lines: list[Record]) -> None:
    rows = wandb_rows(run)
    dropped = rows.pop(2)  # step 2 of the first session, which the resume took back
    assert dropped["step"] == 2 and "actor/loss" not in dropped
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert (row["step"], row["wall_s"]) == (line.step, pytest.approx(line.wall_s, abs=1e-3))
        assert row["_timestamp"] == pytest.approx(line.time, abs=1e-3)
        assert wandb_metrics(row) == line.metrics


def test_tensorboard_has_every_value(run: Path, lines: list[Record]) -> None:
    assert tensorboard_values(run) == in_float32(values_by_step(lines))
    events = tensorboard_events(run)
    times = [event.wall_time for event in events.Scalars("actor/loss")]
    assert times == pytest.approx([line.time for line in lines if line.kind == "step"], abs=1e-3)


def test_mlflow_has_every_value(run: Path, lines: list[Record]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store_uri(run.parent))
    mlflow_run = (run / "mlflow_run_id").read_text().strip()
    for name, at in values_by_step(lines).items():
        history = {(m.step, m.value) for m in client.get_metric_history(mlflow_run, name)}
        assert history >= set(at), name


def test_sinks_keep_the_config_the_summary_and_the_curve(run: Path) -> None:
    events = tensorboard_events(run)
    tags = events.Tags()
    assert {"resolved.yaml", "summary.json"} <= set(tags["tensors"]) and tags["images"] == ["reward.png"]
    text = events.Tensors("summary.json")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text) == json.loads((run / "summary.json").read_text())

    kept = {file.name: file for file in run.glob("wandb/offline-run-*/files/*")}
    assert {"resolved.yaml", "summary.json", "reward.png"} <= kept.keys()
    assert kept["summary.json"].read_text() == (run / "summary.json").read_text()
    (config, *_) = (r.run for r in wandb_records(run) if r.WhichOneof("record_type") == "run")
    written = {item.key: json.loads(item.value_json) for item in config.config.update}
    assert written["model"]["path"] == "marker/model" and written["run"]["seed"] == 7


def test_wandb_is_told_how_each_session_ended(run: Path) -> None:
    records = list(wandb_records(run))
    kinds = [record.WhichOneof("record_type") for record in records]
    assert [r.exit.exit_code for r, kind in zip(records, kinds, strict=True) if kind == "exit"] == [255, 0]
    ids = {r.run.run_id for r, kind in zip(records, kinds, strict=True) if kind == "run"}
    assert ids == {(run / RUN_ID_FILE).read_text().strip()}


def test_no_sink_and_no_file_has_a_secret(run: Path) -> None:
    files = [path for path in run.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    texts = {path: path.read_bytes() for path in files}
    for kind in ("resolved.yaml", "*.wandb", "*.tfevents.*", "mlflow.db"):
        assert any(b"marker/model" in text for path, text in texts.items() if path.match(kind)), kind
    found = {
        (path.name, secret) for path, text in texts.items() for secret in SECRETS if secret.encode() in text
    }
    assert not found


def test_the_last_lines_say_how_to_see_each(played: dict[str, Any], run: Path) -> None:
    for command in ("mlflow ui --backend-store-uri", "wandb sync", "tensorboard --logdir"):
        assert command in played["screen"]


ONLINE = """\
import sys
import time
from pathlib import Path

import observe_values as values
import sink_values as sinks

from hybridrl.observe.sinks.wandb import WandbSink

warnings = []
session = sinks.session(WandbSink(mode="online"), Path(sys.argv[1]), warn=warnings.append)
session.write(values.record(1))
session.close("FINISHED", deadline_s=3.0)
print(*warnings, sep="\\n")
"""


@pytest.mark.slow
def test_a_host_that_never_answers_keeps_no_process_from_its_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = {
            **os.environ,
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "WANDB_API_KEY": IN_ENVIRONMENT["WANDB_API_KEY"],
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), str(SCRIPT.parent), os.environ.get("PYTHONPATH")])
            ),
        }
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", ONLINE, tmp_path],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert time.monotonic() - began < 30.0
    assert done.stdout == ("W&B did not finish in 3 s; the run goes on, metrics.jsonl has every metric\n")
    assert (done.returncode, done.stderr) == (0, "")
