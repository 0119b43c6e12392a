"""What sinks have kept of a run, read by the readers of W&B and TensorBoard."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from hybridrl.observe.record import Record

Values = dict[str, list[tuple[int, Any]]]
"""Metric -> its values, each with its step."""


def values_by_step(records: Iterable[Record]) -> Values:
    found = defaultdict(list)
    for record in records:
        for name, value in record.metrics.items():
            found[name].append((record.step, value))
    return dict(found)


def in_float32(values: Values) -> Values:
    return {name: [(step, np.float32(value)) for step, value in at] for name, at in values.items()}


def wandb_records(run: Path) -> Iterator[Any]:
    """The records of all offline files of a run, oldest first."""
    from wandb.sdk.internal.datastore import DataStore

    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda f: f.stat().st_mtime_ns):
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = messages.Record()
            record.ParseFromString(data)
            yield record


def wandb_rows(run: Path) -> list[dict[str, Any]]:
    """Rows of the history."""
    rows = [r.history.item for r in wandb_records(run) if r.WhichOneof("record_type") == "history"]
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row} for row in rows]


def wandb_metrics(row: dict[str, Any]) -> dict[str, float]:
    """The metrics of a row, without what W&B and the sink add."""
    return {name: value for name, value in row.items() if name[0] != "_" and name not in {"step", "wall_s"}}


def tensorboard_events(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def tensorboard_values(run: Path) -> Values:
    """Every scalar; float32."""
    events = tensorboard_events(run)
    return {
        name: [(event.step, np.float32(event.value)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
