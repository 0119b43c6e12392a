"""A run's own thread: what enters, calls and fails there reaches the caller, whatever loop the caller has."""

import asyncio
import contextlib
import threading

import pytest

from hybridrl.library.run_thread import RunThread


class Notes:
    """Contexts that note when they are entered and left, and in which thread."""

    def __init__(self, fail: str = "") -> None:
        self.events: list[str] = []
        self.threads: set[str] = set()
        self.fail = fail

    def note(self, event: str) -> None:
        self.events.append(event)
        self.threads.add(threading.current_thread().name)
        if event == self.fail:
            raise ValueError(event)

    @contextlib.contextmanager
    def outer(self):
        self.note("enter")
        yield self
        self.note("leave")

    @contextlib.asynccontextmanager
    async def workers(self, entered):
        assert entered is self
        self.note("start")
        yield "inside"
        self.note("stop")


def opened(notes: Notes) -> RunThread:
    thread = RunThread(notes.outer, notes.workers)
    assert thread.open() == (notes, "inside")
    return thread


async def answer(value):
    await asyncio.sleep(0)
    return value, threading.current_thread().name


def test_everything_happens_in_the_thread_of_the_run() -> None:
    notes = Notes()
    thread = opened(notes)
    assert thread.call(lambda: answer(7)) == (7, "hybridrl run")
    thread.close()
    thread.close()
    assert notes.events == ["enter", "start", "stop", "leave"] and notes.threads == {"hybridrl run"}
    with pytest.raises(RuntimeError, match="the run is closed"):
        thread.call(lambda: answer(7))


def test_a_caller_may_have_an_event_loop_that_runs() -> None:
    async def notebook() -> object:
        thread = opened(Notes())
        found = thread.call(lambda: answer(1))
        thread.close()
        return found

    assert asyncio.run(notebook()) == (1, "hybridrl run")


@pytest.mark.parametrize("fail", ["enter", "start"])
def test_what_fails_while_it_opens_is_raised_there(fail: str) -> None:
    notes = Notes(fail)
    thread = RunThread(notes.outer, notes.workers)
    with pytest.raises(ValueError, match=fail):
        thread.open()
    thread.close()


@pytest.mark.parametrize("fail", ["stop", "leave"])
def test_what_fails_while_it_closes_is_raised_there(fail: str) -> None:
    thread = opened(Notes(fail))
    with pytest.raises(ValueError, match=fail):
        thread.close()


def test_a_call_that_fails_leaves_the_run_open() -> None:
    async def fails() -> None:
        raise KeyError("x")

    thread = opened(Notes())
    with pytest.raises(KeyError):
        thread.call(fails)
    assert thread.call(lambda: answer(2))[0] == 2
    thread.close()


def test_calls_of_several_threads_wait_for_each_other() -> None:
    thread, running, most = opened(Notes()), 0, 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    callers = [threading.Thread(target=thread.call, args=(work,)) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    thread.close()
    assert most == 1
