"""Requests that travel together, between an owner and a host that is a list here."""

import asyncio
from concurrent.futures import Future

import numpy as np
import pytest

from hybridrl.errors import EngineError
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.lots import AnswerLot, Inbox, Outbox
from hybridrl.types import Sampling


def request(name):
    return Request(id=name, token_ids=(1,), sampling=Sampling(num_samples=1, max_response_tokens=4))


def answer(name, tokens, experts=None):
    token_T = np.array(tokens, np.int32)
    return Answer(
        id=name,
        token_T=token_T,
        logp_T=-token_T.astype(np.float32),
        version_T=token_T * 0 + 2,
        finish="stop",
        experts_SLK=experts,
    )


class Caller:
    """A host that answers when it is told to."""

    def __init__(self):
        self.calls, self.asked = [], []

    def call(self, method, *args):
        future = Future()
        self.calls.append((method, *args))
        if method == "answers":
            self.asked.append(future)
        else:
            future.set_result(None)
        return future


def names(caller):
    return [[one.id for one in args[0]] if args else method for method, *args in caller.calls]


def test_requests_of_one_round_are_one_message_and_each_gets_its_answer():
    experts = np.ones((3, 1, 2), np.int32)

    async def scenario():
        outbox = Outbox(caller := Caller())
        asked = [asyncio.ensure_future(outbox.request(request(name))) for name in "abc"]
        await asyncio.sleep(0.01)
        sent = names(caller)
        caller.asked[0].set_result(AnswerLot.of([answer("c", [5, 6], experts), answer("a", [])], {}))
        await asyncio.sleep(0.01)
        caller.asked[1].set_result(AnswerLot.of([], {"b": EngineError("too long")}))
        found = await asyncio.gather(*asked, return_exceptions=True)
        return sent, found, len(outbox), len(caller.asked)

    sent, (a, b, c), left, asked = asyncio.run(scenario())
    assert sent == [["a", "b", "c"], "answers"] and left == 0 and asked == 2
    assert a.token_T.tolist() == [] and a.experts_SLK is None
    assert isinstance(b, EngineError) and "too long" in str(b)
    assert c.token_T.tolist() == [5, 6] and c.logp_T.tolist() == [-5, -6] and c.version_T.tolist() == [2, 2]
    assert (c.experts_SLK == experts).all()


def test_an_id_that_runs_is_refused():
    async def scenario():
        outbox = Outbox(Caller())
        asyncio.ensure_future(outbox.request(request("a")))
        await asyncio.sleep(0)
        await outbox.request(request("a"))

    with pytest.raises(EngineError, match="'a' runs already"):
        asyncio.run(scenario())


def test_a_host_that_is_gone_fails_all_requests_and_ends_the_wait_for_them():
    async def scenario():
        outbox = Outbox(caller := Caller())
        asked = [asyncio.ensure_future(outbox.request(request(name))) for name in "ab"]
        empty = asyncio.create_task(outbox.empty())
        await asyncio.sleep(0.01)
        caller.asked[0].set_exception(EngineError("it ended"))
        await asyncio.wait_for(empty, 1)
        return await asyncio.gather(*asked, return_exceptions=True)

    assert [str(error) for error in asyncio.run(scenario())] == ["it ended"] * 2


def test_a_flush_sends_what_waits_so_that_an_abort_finds_it():
    async def scenario():
        outbox = Outbox(caller := Caller())
        asyncio.ensure_future(outbox.request(request("a")))
        await asyncio.sleep(0)
        outbox.flush()
        outbox.flush()
        return names(caller)

    assert asyncio.run(scenario()) == [["a"], "answers"]


def test_an_inbox_gives_what_ended_together_and_names_what_was_refused():
    async def scenario():
        inbox = Inbox()
        taking = asyncio.create_task(inbox.take())
        await asyncio.sleep(0)
        inbox.put(request("a"), answer("a", [1, 2]))
        inbox.put(request("b"), ValueError("no such token"))
        inbox.put(request("c"), EngineError("too long"))
        return await taking

    lot = asyncio.run(scenario())
    assert [one.token_T.tolist() for one in lot.answers()] == [[1, 2]]
    texts = {name: str(error) for name, error in lot.errors.items()}
    assert (
        texts["c"] == "too long" and "request 'b' was not answered: ValueError: no such token" in texts["b"]
    )


def test_a_request_counts_from_the_moment_that_it_is_made() -> None:
    async def ask() -> int:
        outbox = Outbox(Caller())
        outbox.request(request("a"))
        return len(outbox)

    assert asyncio.run(ask()) == 1
