"""What a signal does to a run: it stops where it can go on without loss, and a second signal ends it."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from hybridrl.launch.stop import SIGNALS, STOPPED, StopRequest


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def started_in(request: pytest.FixtureRequest) -> Iterator[None]:
    """What SIGINT does: a shell script ignores it for what it starts in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def in_terminal() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def said_within(said: list[str], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(said)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_during_training_is_noted_and_said(number: int) -> None:
    said: list[str] = []
    with StopRequest(said.append) as stop:
        stop.begin()
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested() and stop.signal == signal.Signals(number).name
        assert said_within(said, 5) and stop.signal in said[0]
    assert stop.exit_code == 0, "whether the run stopped at it is for the loop to say"


def test_a_second_signal_is_ctrl_c_and_the_first_keeps_its_name(started_in: None) -> None:
    with StopRequest(lambda text: None) as stop:
        stop.begin()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == "SIGUSR1"


def test_a_signal_before_the_first_step_ends_the_start(started_in: None) -> None:
    said: list[str] = []
    with StopRequest(said.append) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the start goes on")
    assert (stop.stopped_by, stop.exit_code) == ("SIGTERM", STOPPED)
    assert said == ["SIGTERM: stopped before a step began"]


def test_a_signal_that_the_event_loop_passes_on_only_after_the_beginning_ends_the_start_too() -> None:
    async def play(stop: StopRequest) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.begin()
        await asyncio.sleep(5)

    with StopRequest(lambda text: None) as stop:
        asyncio.run(play(stop))
    assert (stop.stopped_by, stop.exit_code) == ("SIGTERM", STOPPED)


@pytest.mark.parametrize("begins", [False, True])
def test_ctrl_c_stays_ctrl_c(started_in: None, begins: bool) -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest(lambda text: None) as stop:
        if begins:
            stop.begin()
        raise KeyboardInterrupt
    assert stop.stopped_by is None


def test_a_first_ctrl_c_saves_if_the_config_says_so_and_a_second_one_ends_the_run() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest(lambda text: None, saves_on_interrupt=True) as stop:
        stop.begin()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested() and stop.signal == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step_ends_the_start_whatever_the_config_says(
    in_terminal: None,
) -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest(lambda text: None, saves_on_interrupt=True):
        os.kill(os.getpid(), signal.SIGINT)


def test_inside_the_event_loop_ctrl_c_is_noted_once_and_then_ends_it() -> None:
    async def play(stop: StopRequest) -> None:
        stop.begin()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
        assert stop.requested()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(5)

    with (
        pytest.raises(KeyboardInterrupt),
        StopRequest(lambda text: None, saves_on_interrupt=True) as stop,
    ):
        asyncio.run(play(stop))


def test_a_screen_that_is_locked_where_the_signal_comes_does_not_hold_the_run() -> None:
    lock, said = threading.Lock(), []

    def say(text: str) -> None:
        with lock:
            said.append(text)

    with StopRequest(say) as stop:
        stop.begin()
        with lock:
            os.kill(os.getpid(), signal.SIGTERM)
        assert said_within(said, 5)


def test_a_handler_that_a_library_set_meanwhile_is_replaced_and_the_old_one_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(lambda text: None) as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.listen()
        stop.begin()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()
    assert signal.getsignal(signal.SIGTERM) is before
