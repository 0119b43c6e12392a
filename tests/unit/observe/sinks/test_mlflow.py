"""MLflow: what is sent can be read back from a real store."""

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import observe_values as values
import pytest
import sink_values as sinks

from hybridrl.observe.names import METRICS
from hybridrl.observe.sinks.mlflow import EXPERIMENT, MlflowSink, flat, store_uri

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def met(runs: Path) -> dict[str, Any]:
    """What two sessions of the run "a" met, the second a resume of the first."""
    script = ROOT / "tests" / "support" / "mlflow_sessions.py"
    environment = {"PATH": os.defpath, "HOME": str(runs), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script, runs], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "MLflow writes into the live view"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def client(runs: Path, met: dict[str, Any]) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store_uri(runs))


@pytest.fixture(scope="module")
def run(client: Any) -> Any:
    (found,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return found


def test_the_page_shows_training_runs_of_a_person(client: Any, run: Any) -> None:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.tags["mlflow.source.name"] == "hybridrl"
    assert run.data.tags["mlflow.user"] == getpass.getuser()


def test_nothing_outside_is_asked(met: dict[str, Any]) -> None:
    assert met["attempts"] == [] and met["warnings"] == []


def test_mlflow_is_imported_by_the_thread_only(met: dict[str, Any]) -> None:
    assert met["lazy"] is True


def test_a_resume_goes_on_with_the_same_run(run: Any, runs: Path) -> None:
    assert (run.info.run_name, run.info.status) == ("a", "FINISHED")
    assert (runs / "a" / "mlflow_run_id").read_text().strip() == run.info.run_id


def test_metrics_come_back_by_step(client: Any, run: Any) -> None:
    history = client.get_metric_history(run.info.run_id, "actor/lr")
    assert [(m.step, m.value) for m in history] == [(1, 5e-4), (2, 4e-4), (3, 0.5)]


def test_every_name_is_accepted(run: Any) -> None:
    assert run.data.metrics.keys() >= METRICS.keys()


def test_what_is_not_a_number_is_left_out(run: Any) -> None:
    assert "broken" not in run.data.metrics


def test_params_are_flat_cut_and_more_than_one_call_takes(run: Any) -> None:
    params = run.data.params
    assert (params["actor.parallel.tp"], params["actor.parallel.dp"]) == ("2", "null")
    assert params["actor.optimizer.betas"] == "[0.9, 0.95]"
    assert len(params["reward.prompt"]) == 6000
    assert sum(name.startswith("many.") for name in params) == 150


def test_a_resume_keeps_old_params_and_adds_new_ones(run: Any) -> None:
    assert (run.data.params["run.steps"], run.data.params["new"]) == ("2", "1")


def test_the_config_is_kept_beside_the_store(client: Any, run: Any, runs: Path) -> None:
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["resolved.yaml"]
    assert next((runs / "mlartifacts").rglob("resolved.yaml")).read_text() == "run: {name: a}\n"


def test_a_run_that_the_store_has_lost_starts_anew(client: Any, runs: Path) -> None:
    (runs / "b").mkdir()
    (runs / "b" / "mlflow_run_id").write_text("0" * 32)
    warnings = []
    sink = sinks.session(MlflowSink(), runs / "b", resume_step=6, warn=warnings.append)
    sink.write(values.record(7))
    sink.close("FINISHED", deadline_s=120.0)
    found = client.get_run((runs / "b" / "mlflow_run_id").read_text().strip())
    assert found.data.metrics["training/global_step"] == 7.0 and warnings == []


def test_a_broken_store_is_reported_once_and_stops_nothing(tmp_path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database")
    (tmp_path / "a").mkdir()
    warnings = []
    sink = sinks.session(MlflowSink(), tmp_path / "a", warn=warnings.append)
    for step in range(1, 5001):
        sink.write(values.record(step))
    sink.close("FAILED", deadline_s=120.0)
    failed, lost = warnings
    assert failed.startswith("MLflow failed (") and "metrics.jsonl" in failed and "\n" not in failed
    assert lost == "MLflow lacks 5000 records of this run; metrics.jsonl has them all"


def test_leaves_are_named_by_their_path() -> None:
    assert dict(flat({"a": {"b": 1, "c@d": [1, 2]}, "e": "text"})) == {
        "a.b": "1",
        "a.c_at_d": "[1, 2]",
        "e": "text",
    }
