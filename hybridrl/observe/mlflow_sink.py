"""Records into a local MLflow store, from a thread: MLflow takes seconds to import and to make its tables.

Who waits for whom: write() waits for nobody; the thread waits for records; close() waits for the thread, up
to a deadline. A store that fails is reported once and never stops the run: metrics.jsonl has it all.
"""

import json
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybridrl.observe.files import atomic_write
from hybridrl.observe.names import safe
from hybridrl.observe.record import Record
from hybridrl.wording import counted

EXPERIMENT = "hybridrl"
RUN_ID_FILE = "mlflow_run_id"

MAX_METRICS_PER_CALL = 1000
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_CHARACTERS = 6000
"""Of a value; beyond these three MLflow refuses the call. The whole config is kept as an artefact."""

_QUEUE_SIZE = 4096
"""Records that wait for the store; beyond it the oldest are dropped, counted and reported."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 600.0
"""Between two tries on a store that fails."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True)
class _End:
    status: Status


_Item = Record | Path | _End


def store_uri(runs: Path) -> str:
    """What `mlflow ui --backend-store-uri` takes."""
    return f"sqlite:///{runs / 'mlflow.db'}"


class MlflowSink:
    """One MLflow run in the store of a folder of runs."""

    def __init__(
        self, folder: Path, *, resume: bool, params: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        """Returns at once; what fails later is said through `warn`, from the thread.

        Args:
            folder: of the run, where its MLflow id is kept; the store is beside it.
            resume: go on with that MLflow run.
            params: nested; logged flat, as "actor.parallel.tp".
        """
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._store = _Store(folder.resolve(), resume, params)
        self._warn, self._reported, self._lost = warn, False, 0
        self._thread = threading.Thread(target=self._serve, name="mlflow", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        self._queue.put(record)

    def keep(self, path: Path) -> None:
        """Keep a file with the run, as it is when the thread comes to it."""
        self._queue.put(path)

    def close(self, status: Status = "FINISHED", *, deadline_s: float = 30.0) -> None:
        """Hand over what waits, give the run its end, and report what did not arrive."""
        self._queue.put(_End(status))
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            self._report(f"did not finish in {deadline_s:.0f} s")
        elif self._lost:
            self._warn(
                f"MLflow lacks {counted(self._lost, 'record')} of this run; metrics.jsonl has them all"
            )

    def _serve(self) -> None:
        waiting: deque[_Item] = deque()
        pause_s, ended = 0.0, False
        while not ended:
            ended = self._collect(waiting, pause_s)
            try:
                self._store.send(waiting)
                pause_s = 0.0
            except Exception as error:  # whatever a store can raise: the run goes on without it
                self._report(f"failed ({type(error).__name__}: {_first_line(error)})")
                pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * pause_s))
        self._lost += sum(isinstance(item, Record) for item in waiting)

    def _collect(self, waiting: deque[_Item], pause_s: float) -> bool:
        """Fill `waiting` with what comes within `pause_s`, at least one item. True: the run has ended."""
        until = time.monotonic() + pause_s
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, until - time.monotonic()) if waiting else None)
            except queue.Empty:
                return False
            if len(waiting) == _QUEUE_SIZE:
                self._lost += isinstance(waiting.popleft(), Record)
            waiting.append(item)
            if isinstance(item, _End):
                return True

    def _report(self, what: str) -> None:
        if not self._reported:
            self._reported = True
            self._warn(f"MLflow {what}; the run goes on, metrics.jsonl has every metric")


class _Store:
    """The connection; made, and used, by the thread."""

    def __init__(self, folder: Path, resume: bool, params: Mapping[str, Any]) -> None:
        self._runs, self._name, self._params = folder.parent, folder.name, params
        self._id_file = folder / RUN_ID_FILE
        self._run_id = self._id_file.read_text().strip() if resume and self._id_file.exists() else ""
        self._client: Any = None

    def send(self, items: deque[_Item]) -> None:
        """Take items off the left end as the store takes them; what remains if it raises can go again."""
        if self._client is None:
            client = _open_client(store_uri(self._runs))
            if not self._continued(client):
                self._run_id = self._created(client)
                atomic_write(self._id_file, self._run_id + "\n")
            self._log_params(client)
            self._client = client
        while items:
            for _ in range(self._send_first(items)):
                items.popleft()

    def _send_first(self, items: deque[_Item]) -> int:
        """Send all records at the left end in one go, or one other item; how many items that were."""
        first = items[0]
        if isinstance(first, Record):
            return self._log(_leading_records(items))
        if isinstance(first, Path):
            self._client.log_artifact(self._run_id, str(first))
        else:
            self._client.set_terminated(self._run_id, first.status)
        return 1

    def _continued(self, client: Any) -> bool:
        """Let the run that the folder belongs to run again; False if there is none in the store."""
        from mlflow.exceptions import MlflowException

        if not self._run_id:
            return False
        try:
            run = client.get_run(self._run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        if run.info.lifecycle_stage != "active":
            return False
        client.update_run(self._run_id, status="RUNNING")
        return True

    def _created(self, client: Any) -> str:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        place = (self._runs / "mlartifacts").as_uri()
        experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, place)
        )
        return client.create_run(experiment_id, run_name=self._name).info.run_id

    def _log_params(self, client: Any) -> None:
        """Those that the run lacks: MLflow refuses to change one, as a resume with more steps would."""
        from mlflow.entities import Param

        known = client.get_run(self._run_id).data.params
        new = [Param(key, text) for key, text in flat(self._params) if key not in known]
        for some in _chunks(new, MAX_PARAMS_PER_CALL):
            client.log_batch(self._run_id, params=some)

    def _log(self, records: Sequence[Record]) -> int:
        from mlflow.entities import Metric

        numbers = [
            (name, value, r) for r in records for name, value in r.metrics.items() if math.isfinite(value)
        ]
        metrics = [Metric(safe(name), value, int(r.time * 1000), r.step) for name, value, r in numbers]
        for some in _chunks(metrics, MAX_METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=some)
        return len(records)


def flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of a nested mapping as ("a.b.c", text), cut to what MLflow takes; a list is a leaf."""
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield safe(f"{prefix}{key}"), text[:MAX_PARAM_CHARACTERS]


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


def _leading_records(items: Iterable[_Item]) -> list[Record]:
    found = []
    for item in items:
        if not isinstance(item, Record):
            break
        found.append(item)
    return found


def _chunks(items: Sequence[Any], length: int) -> Iterator[Sequence[Any]]:
    return (items[at : at + length] for at in range(0, len(items), length))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
