"""Records into a local MLflow store, beside the folder of the run."""

import getpass
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridrl.config.files import atomic_write
from hybridrl.observe.names import safe
from hybridrl.observe.record import Record
from hybridrl.observe.sink import Sink, SinkRun, Status
from hybridrl.registry import register

EXPERIMENT = "hybridrl"
RUN_ID_FILE = "mlflow_run_id"

KIND = "mlflow.experimentKind"
"""Tag by which the page of MLflow shows an experiment as training runs, not as answers of an application."""

MAX_METRICS_PER_CALL = 1000
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_CHARACTERS = 6000
"""Longest value of a parameter. MLflow refuses a call beyond one of these three limits; the whole config is
kept as an artefact."""


def store_uri(runs: Path) -> str:
    """What `mlflow ui --backend-store-uri` takes."""
    return f"sqlite:///{runs / 'mlflow.db'}"


@register("sink", "mlflow")
class MlflowSink(Sink):
    """One MLflow run in the store of a folder of runs; its id is kept in the folder of the run."""

    label, package, requirement = "MLflow", "mlflow", "mlflow>=3"

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""

    def open(self, run: SinkRun) -> None:
        """A resume goes on with the MLflow run of the folder, if the store still has it."""
        id_file = run.folder / RUN_ID_FILE
        if not self._run_id and run.resume_step is not None and id_file.exists():
            self._run_id = id_file.read_text().strip()
        client = _open_client(store_uri(run.folder.parent))
        if not self._continued(client):
            self._run_id = _created(client, run.folder)
            atomic_write(id_file, self._run_id + "\n")
        self._log_params(client, run.config)
        self._client = client

    def write(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(safe(name), value, int(record.time * 1000), record.step)
            for record in records
            for name, value in record.metrics.items()
        ]
        for some in _chunks(metrics, MAX_METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=some)

    def keep(self, path: Path) -> None:
        self._client.log_artifact(self._run_id, str(path))

    def close(self, status: Status) -> None:
        self._client.set_terminated(self._run_id, status)

    def view(self, folder: Path) -> str:
        return f"mlflow ui --backend-store-uri {store_uri(folder.parent)}"

    def _continued(self, client: Any) -> bool:
        """Let the run that the folder belongs to run again; False if there is none in the store."""
        if not self._run_id or not _is_there(client, self._run_id):
            return False
        client.update_run(self._run_id, status="RUNNING")
        return True

    def _log_params(self, client: Any, config: Mapping[str, Any]) -> None:
        """Log the parameters that the run lacks: MLflow refuses to change one, as a resume with more steps
        would."""
        from mlflow.entities import Param

        known = client.get_run(self._run_id).data.params
        new = [Param(key, text) for key, text in flat(config) if key not in known]
        for some in _chunks(new, MAX_PARAMS_PER_CALL):
            client.log_batch(self._run_id, params=some)


def add(folder: Path, metrics: Mapping[str, float], step: int, files: Sequence[Path]) -> bool:
    """Add metrics and files to the MLflow run of a run folder that has ended; False: the store has none."""
    from mlflow.entities import Metric

    id_file = folder / RUN_ID_FILE
    if not id_file.exists():
        return False
    client, run_id = _open_client(store_uri(folder.resolve().parent)), id_file.read_text().strip()
    if not _is_there(client, run_id):
        return False
    now = int(time.time() * 1000)
    found = [Metric(safe(name), value, now, step) for name, value in metrics.items()]
    for some in _chunks(found, MAX_METRICS_PER_CALL):
        client.log_batch(run_id, metrics=some)
    for path in files:
        client.log_artifact(run_id, str(path))
    return True


def _is_there(client: Any, run_id: str) -> bool:
    """Whether the store has a run that is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested mapping as ("a.b.c", text), cut to what MLflow takes; a list is a leaf."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield safe(f"{prefix}{key}"), text[:MAX_PARAM_CHARACTERS]


def _created(client: Any, folder: Path) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    place = (folder.parent / "mlartifacts").as_uri()
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, place)
    if experiment is None or KIND not in experiment.tags:
        client.set_experiment_tag(experiment_id, KIND, "custom_model_development")
    tags = {"mlflow.user": _user(), "mlflow.source.name": "hybridrl"}
    return client.create_run(experiment_id, run_name=folder.name, tags=tags).info.run_id


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


def _open_client(uri: str) -> Any:
    """A client that talks to the store alone: MLflow's usage reports, which go to a host outside, are off."""
    from mlflow import MlflowClient
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
    from mlflow.telemetry import set_telemetry_client

    MLFLOW_DISABLE_TELEMETRY.set(True)
    set_telemetry_client()
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _chunks(items: Sequence[Any], length: int) -> Iterator[Sequence[Any]]:
    return (items[at : at + length] for at in range(0, len(items), length))
