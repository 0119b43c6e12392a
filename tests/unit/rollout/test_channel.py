"""Calls over a pipe between two threads, each with its own end."""

import asyncio
import socket
import threading
from multiprocessing.connection import Connection

import pytest

from hybridrl.errors import EngineError, VersionError
from hybridrl.rollout.channel import Callee, Caller


class Methods:
    """What the other side answers. Made in its event loop."""

    def __init__(self):
        self.released = asyncio.Event()

    async def add(self, a, b):
        return a + b

    async def wait(self):
        await self.released.wait()
        return "waited"

    async def release(self):
        self.released.set()

    async def fail(self, error):
        raise error

    async def hang(self):
        await asyncio.Event().wait()


def gone():
    return EngineError("it ended: reason")


@pytest.fixture
def caller():
    ours, theirs = (Connection(end.detach()) for end in socket.socketpair())

    async def serve():
        with theirs:
            await Callee(theirs, Methods()).serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    caller = Caller(ours, gone)
    yield caller
    caller.hang_up()
    thread.join(10)
    assert not thread.is_alive()


def test_a_call_returns_its_answer(caller):
    assert caller.call("add", 2, 3).result(10) == 5


def test_answers_come_in_any_order(caller):
    waiting = caller.call("wait")
    assert caller.call("add", 1, 1).result(10) == 2
    assert not waiting.done()
    caller.call("release").result(10)
    assert waiting.result(10) == "waited"


def test_a_named_error_arrives_as_it_is(caller):
    error = caller.call("fail", VersionError("3, not 5", fix="swap again")).exception(10)
    assert isinstance(error, VersionError) and (error.what, error.fix) == ("3, not 5", "swap again")


def test_any_other_error_arrives_named_by_its_call(caller):
    error = caller.call("fail", KeyError("x")).exception(10)
    assert isinstance(error, EngineError) and str(error) == "fail: KeyError: 'x'"


def test_calls_are_answered_after_an_error(caller):
    caller.call("fail", KeyError("x")).exception(10)
    assert caller.call("add", 1, 2).result(10) == 3


def test_calls_under_way_and_later_ones_fail_when_the_other_side_ends(caller):
    under_way = caller.call("hang")
    caller.hang_up()
    assert str(under_way.exception(10)) == "it ended: reason"
    assert str(caller.call("add", 1, 2).exception(10)) == "it ended: reason"


def test_giving_up_on_an_answer_does_not_disturb_the_others(caller):
    async def give_up():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(caller.call("wait")), 0.01)

    asyncio.run(give_up())
    caller.call("release").result(10)
    assert caller.call("add", 1, 2).result(10) == 3
