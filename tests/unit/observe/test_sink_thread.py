"""A sink gets everything, in order; one that fails, raises or stands still changes nothing for the run."""

import itertools
import math
import threading
import time
from pathlib import Path

import observe_values as values
import pytest
import sink_values as sinks

from hybridrl.observe import sink_thread
from hybridrl.observe.sink import Sink, SinkRun
from hybridrl.observe.sink_thread import SinkThreads

RUN = SinkRun(folder=Path("/runs/a"), resume_step=None, config={"run": {"name": "a"}})


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_thread, "_FIRST_PAUSE_S", 0.01)


def failing(*calls: int, error: type[BaseException] = OSError):
    """Raises at these calls of the sink, counted from 0."""
    count = itertools.count()

    def fails(call: str) -> None:
        if next(count) in calls:
            raise error(f"cannot {call} https://me:password@host/\nmore")

    return fails


def test_everything_arrives_in_order() -> None:
    warnings, sink = [], sinks.Recorded()
    threads = SinkThreads({"it": sink}, RUN, warnings.append)
    first, second = values.record(1, loss=1.0), values.record(2, loss=2.0)
    threads.keep(Path("resolved.yaml"))
    threads.write(first)
    threads.write(second)
    threads.close("KILLED")
    assert sink.calls == [RUN, Path("resolved.yaml"), first, second, "KILLED"] and warnings == []


def test_what_is_not_a_finite_number_is_left_out() -> None:
    sink = sinks.Recorded()
    threads = SinkThreads({"it": sink}, RUN, print)
    threads.write(values.record(1, loss=1.0, broken=math.nan, endless=-math.inf))
    threads.close("FINISHED")
    assert sink.calls[1].metrics == {"loss": 1.0, "training/global_step": 1.0}


@pytest.mark.parametrize("error", [OSError, KeyError, SystemExit])
def test_what_failed_comes_again(error: type[BaseException]) -> None:
    warnings, sink = [], sinks.Recorded(failing(0, 2, error=error))
    threads = SinkThreads({"it": sink}, RUN, warnings.append)
    threads.write(values.record(1))
    assert sink.written.wait(5.0)
    threads.close("FINISHED")
    assert sink.calls == [RUN, values.record(1), "FINISHED"]
    (warning,) = warnings
    assert warning.startswith(f"Recorded failed ({error.__name__}") and "metrics.jsonl" in warning
    assert "password" not in warning and "\n" not in warning


def test_a_sink_that_always_fails_is_reported_once_and_left() -> None:
    def fails(call: str) -> None:
        raise OSError(call)

    class Left(sinks.Recorded):
        def abandon(self) -> None:
            self.calls.append("abandoned")

    warnings, sink = [], Left(fails)
    threads = SinkThreads({"it": sink}, RUN, warnings.append)
    for step in range(5000):
        threads.write(values.record(step))
    threads.close("FINISHED")
    assert len(warnings) == 2 and warnings[1].startswith("Recorded lacks 5000 records")
    assert sink.calls == ["abandoned"]


def test_one_that_stands_still_keeps_neither_the_run_nor_the_others() -> None:
    still = threading.Event()

    class Stuck(sinks.Recorded):
        def abandon(self) -> None:
            still.set()
            raise RuntimeError("nor can it be left")

    def waits(call: str) -> None:
        still.wait(30.0)

    warnings, stuck, other = [], Stuck(waits), sinks.Recorded()
    threads = SinkThreads({"stuck": stuck, "other": other}, RUN, warnings.append)
    began = time.monotonic()
    for step in range(100):
        threads.write(values.record(step))
    threads.close("FINISHED", deadline_s=0.2)
    assert time.monotonic() - began < 5.0
    assert len(other.calls) == 102
    assert len(warnings) == 1 and still.is_set()


@pytest.mark.parametrize("error", [OSError, SystemExit])
def test_a_view_that_raises_leaves_the_other_views(error: type[BaseException]) -> None:
    class Unseen(sinks.Recorded):
        def view(self, folder: Path) -> str:
            raise error("cannot show https://me:password@host/")

    class Seen(sinks.Recorded):
        def view(self, folder: Path) -> str:
            return f"show {folder}"

    warnings: list[str] = []
    threads = SinkThreads({"unseen": Unseen(), "seen": Seen()}, RUN, warnings.append)
    threads.close("FINISHED")
    assert threads.views(Path("a")) == {"seen": "show a"}
    (warning,) = warnings
    assert warning.startswith(f"Recorded could not be viewed ({error.__name__}: cannot show")
    assert "password" not in warning


def test_a_sink_is_not_tried_again_once_it_was_left() -> None:
    tried, left = [], threading.Event()

    class Once(Sink):
        def open(self, run: SinkRun) -> None:
            tried.append(run)
            left.wait(30.0)
            raise OSError

        def abandon(self) -> None:
            left.set()

    threads = SinkThreads({"it": Once()}, RUN, [].append)
    threads.close("FINISHED", deadline_s=0.1)
    time.sleep(0.1)
    assert tried == [RUN]
