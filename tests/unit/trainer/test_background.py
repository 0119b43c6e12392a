"""Work beside the training: one job at a time, and no failure is lost."""

import threading

import pytest

from hybridrl.errors import ResourceError
from hybridrl.trainer.checkpoint import Background


def test_a_job_waits_for_the_one_before() -> None:
    background, gate, order = Background(), threading.Event(), []

    def slow() -> None:
        gate.wait()
        order.append("slow")

    background.start(slow)
    assert order == []
    threading.Timer(0.05, gate.set).start()
    background.start(lambda: order.append("quick"))
    assert order[0] == "slow"
    background.finish()
    assert order == ["slow", "quick"]


def test_a_failure_is_raised_where_it_is_asked_for_and_once() -> None:
    def fail() -> None:
        raise ResourceError("no room")

    for ask in (Background.finish, Background.raise_failure, lambda b: b.start(lambda: None)):
        background, done = Background(), threading.Event()
        background.start(fail)
        background._pool.submit(done.set).result()  # the job before it has ended
        with pytest.raises(ResourceError, match="no room"):
            ask(background)
        background.raise_failure()
        background.finish()


def test_asking_for_a_failure_waits_for_nothing() -> None:
    background, gate = Background(), threading.Event()
    background.start(lambda: gate.wait() and None)
    background.raise_failure()
    gate.set()
    background.finish()
