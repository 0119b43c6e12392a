"""Records go to each sink from a thread of its own: a tool may take seconds to import, or stand still.

Who waits for whom: write() and keep() wait for nobody; a thread waits for records; close() waits for the
threads, up to a deadline. A sink that fails is reported once and never stops the run: metrics.jsonl has it
all.
"""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hybridrl.config.secrets import masked_text
from hybridrl.observe.record import Record
from hybridrl.observe.sink import Sink, SinkRun, Status
from hybridrl.wording import counted

_QUEUE_SIZE = 4096
"""Records that wait for a sink; beyond it the oldest are dropped, counted and reported."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 600.0
"""Between two tries on a sink that fails."""

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _End:
    status: Status


_Item = Record | Path | _End


class SinkThreads:
    """All sinks of a session; each gets everything."""

    def __init__(self, sinks: Mapping[str, Sink], run: SinkRun, warn: Warn) -> None:
        """Returns at once; what fails later is said through `warn`, from a thread."""
        self._threads = {name: SinkThread(sink, run, warn) for name, sink in sinks.items()}

    def write(self, record: Record) -> None:
        for thread in self._threads.values():
            thread.put(record)

    def keep(self, path: Path) -> None:
        """Keep a file with the run, as it is when a thread comes to it."""
        for thread in self._threads.values():
            thread.put(path)

    def close(self, status: Status, *, deadline_s: float = 30.0) -> None:
        """Hand over what waits, tell how the session ended, and report what did not arrive.

        Args:
            deadline_s: for all of them together.
        """
        until = time.monotonic() + deadline_s
        for thread in self._threads.values():
            thread.put(_End(status))
        for thread in self._threads.values():
            thread.join(max(0.0, until - time.monotonic()), deadline_s)

    def views(self, folder: Path) -> dict[str, str]:
        """The command or address at which a person sees the run, by the name of the sink."""
        found = {name: thread.view(folder) for name, thread in self._threads.items()}
        return {name: view for name, view in found.items() if view}


class SinkThread:
    """A queue, and the thread that takes from it for one sink."""

    def __init__(self, sink: Sink, run: SinkRun, warn: Warn) -> None:
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._sink, self._run, self._warn = sink, run, warn
        self._label = sink.label or type(sink).__name__
        self._open, self._closed, self._abandoned = False, False, False
        self._reported, self._lost = False, 0
        self._thread = threading.Thread(target=self._serve, name=f"sink {self._label}", daemon=True)
        self._thread.start()

    def put(self, item: _Item) -> None:
        self._queue.put(item)

    def join(self, timeout_s: float, deadline_s: float) -> None:
        """Wait for the end that was put, and report what is missing.

        Args:
            timeout_s: what is left of the deadline.
            deadline_s: named in the report.
        """
        self._thread.join(timeout_s)
        in_time = not self._thread.is_alive()
        if not self._closed:
            self._abandon()
        if not in_time:
            self._report(f"did not finish in {deadline_s:.0f} s")
        elif self._lost:
            lost = counted(self._lost, "record")
            self._warn(f"{self._label} lacks {lost} of this run; metrics.jsonl has them all")

    def view(self, folder: Path) -> str:
        """What the sink's view says; "" if it raises, for the run is not to fail over it."""
        try:
            return self._sink.view(folder)
        except (Exception, SystemExit) as error:  # as in the thread
            self._report(f"could not be viewed ({type(error).__name__}: {_first_line(error)})")
            return ""

    def _serve(self) -> None:
        waiting: deque[_Item] = deque()
        pause_s, ended = 0.0, False
        while not ended and not self._abandoned:
            ended = self._collect(waiting, pause_s)
            try:
                self._send(waiting)
                pause_s = 0.0
            except (Exception, SystemExit) as error:  # whatever a tool can raise: the run goes on without it
                if self._abandoned:
                    return
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

    def _send(self, items: deque[_Item]) -> None:
        """Take items off the left end as the sink takes them; what remains if it raises can go again."""
        if not self._open:
            self._sink.open(self._run)
            self._open = True
        while items:
            for _ in range(self._send_first(items)):
                items.popleft()

    def _send_first(self, items: deque[_Item]) -> int:
        """Send all records at the left end in one go, or one other item; how many items that were."""
        first = items[0]
        if isinstance(first, Record):
            records = _leading_records(items)
            self._sink.write(records)
            return len(records)
        if isinstance(first, Path):
            self._sink.keep(first)
        else:
            self._sink.close(first.status)
            self._closed = True
        return 1

    def _abandon(self) -> None:
        self._abandoned = True
        try:
            self._sink.abandon()
        except Exception as error:  # as in the thread
            self._report(f"could not be left ({type(error).__name__}: {_first_line(error)})")

    def _report(self, what: str) -> None:
        if not self._reported:
            self._reported = True
            self._warn(f"{self._label} {what}; the run goes on, metrics.jsonl has every metric")


def _leading_records(items: Iterable[_Item]) -> list[Record]:
    found = []
    for item in items:
        if not isinstance(item, Record):
            break
        finite = {name: value for name, value in item.metrics.items() if math.isfinite(value)}
        found.append(replace(item, metrics=finite))
    return found


def _first_line(error: BaseException) -> str:
    return masked_text(next(iter(str(error).splitlines()), ""))[:200]
