"""Sinks under test: a session of one, and a sink that fails or stands still as it is told."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridrl.observe.record import Record
from hybridrl.observe.sink import Sink, SinkRun, Status
from hybridrl.observe.sink_thread import SinkThreads


def session(
    sink: Sink,
    folder: Path,
    *,
    warn: Callable[[str], None],
    resume_step: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> SinkThreads:
    """A session of a run with one sink."""
    run = SinkRun(folder=folder.resolve(), resume_step=resume_step, config=config or {})
    return SinkThreads({"it": sink}, run, warn)


class Recorded(Sink):
    """Keeps what it gets; `fails` is asked before every call, and may raise or wait."""

    label = "Recorded"

    def __init__(self, fails: Callable[[str], None] = lambda call: None) -> None:
        self.calls: list[Any] = []
        self.written = threading.Event()
        self._fails = fails

    def open(self, run: SinkRun) -> None:
        self._fails("open")
        self.calls.append(run)

    def write(self, records: Sequence[Record]) -> None:
        self._fails("write")
        self.calls += records
        self.written.set()

    def keep(self, path: Path) -> None:
        self._fails("keep")
        self.calls.append(path)

    def close(self, status: Status) -> None:
        self._fails("close")
        self.calls.append(status)


class NotInstalled(Sink):
    """A sink whose package nobody has."""

    label, package, requirement = "Mine", "no_such_package_here", "no-such-package>=2"
