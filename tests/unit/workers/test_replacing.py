"""Which engines are replaced, how often, and what the user is told; workers are in this process."""

import asyncio

import pytest
from coming_node import ComingNode

from hybridrl.errors import DeadlineError, EngineError, EngineLostError, WorkerError
from hybridrl.faults import parse
from hybridrl.workers.replacing import Replacements

LOST = EngineLostError("engine1 was ended by SIGKILL", where="its log\nof several lines")


class Workers:
    """Workers that note what happens to them; some starts fail."""

    def __init__(self, count=2, failures=()):
        self.count, self.failures, self.calls = count, list(failures), []
        self.held = asyncio.Event()
        self.held.set()

    def __len__(self):
        return self.count

    async def renew(self, rank, *, timeout_s):
        self.calls.append(("renew", rank))

    async def one(self, rank, method, *args, timeout_s=None):
        self.calls.append((method, rank, *args))
        if method == "end":
            raise WorkerError("its worker died too")
        await self.held.wait()
        if method == "start" and self.failures:
            raise self.failures.pop(0)


def engines(workers, most=2, **options):
    """Replacements whose fresh engines get their weights at once, and what it says."""
    said = []
    made = Replacements(workers, most=most, say=said.append, **options)

    async def give(engine):
        made.serve(engine)

    made.give_weights = give
    return made, said


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("error", [LOST, WorkerError("it died"), DeadlineError("late")])
def test_a_lost_engine_is_replaced_and_serves_again(error):
    async def scenario():
        made, said = engines(workers := Workers())
        made.lose(1, error)
        before = set(made.serving)
        await settled()
        return before, made.serving, workers.calls, said, made.replaced

    before, serving, calls, said, replaced = asyncio.run(scenario())
    assert (before, serving, replaced) == ({0}, {0, 1}, 1)
    assert calls == [("end", 1), ("renew", 1), ("start", 1)]
    assert said[0] == f"engine 1 is lost, another one starts, 1 other engine goes on: {error.what}"
    assert said[1] == "engine 1 serves again, 0.0 s after it was lost" and len(said) == 2


@pytest.mark.parametrize("most", [0, 2])
def test_other_errors_and_all_errors_before_the_first_swap_end_the_run(most):
    made = Replacements(Workers(), most=most)
    with pytest.raises(EngineLostError):
        made.lose(1, LOST)
    made, _ = engines(Workers(), most)
    with pytest.raises(EngineError, match="too long"):
        made.lose(1, EngineError("the prompt is too long"))
    assert made.serving == {0, 1}


def test_an_error_of_an_engine_that_was_replaced_since_does_not_count():
    async def scenario():
        made, said = engines(workers := Workers())
        start = made.starts[1]
        made.lose(1, LOST, start=start)
        made.lose(1, WorkerError("the same death"))
        await settled()
        made.lose(1, DeadlineError("a call to the old one is late"), start=start)
        await settled()
        return made.serving, len(said), [call for call in workers.calls if call[0] == "start"]

    assert asyncio.run(scenario()) == ({0, 1}, 2, [("start", 1)])


def test_a_start_that_fails_is_tried_again():
    async def scenario():
        made, said = engines(workers := Workers(failures=[EngineError("no memory")]))
        made.lose(1, LOST)
        await settled()
        return made.serving, workers.calls.count(("start", 1)), len(said)

    assert asyncio.run(scenario()) == ({0, 1}, 2, 2)


def test_an_engine_that_fails_too_often_is_left_out_until_the_next_swap():
    async def scenario():
        made, said = engines(workers := Workers(failures=[EngineError("no memory")] * 2))
        made.lose(1, LOST)
        await settled()
        left_out = set(made.serving)
        made.swapped(8)
        await settled()
        return left_out, made.serving, said, workers.calls.count(("start", 1))

    left_out, serving, said, starts = asyncio.run(scenario())
    assert (left_out, serving, starts) == ({0}, {0, 1}, 3)
    assert said[1].startswith("engine 1 failed again after 2 starts; it is tried again after the next swap: ")


def test_the_last_of_too_many_starts_promises_no_other():
    async def scenario():
        made, said = engines(Workers(), most=1)
        for error in (LOST, LOST):
            made.lose(1, error)
            await settled()
        with pytest.raises(EngineLostError):
            for _ in range(2):
                made.lose(0, LOST)
                await settled()
        return said

    said = asyncio.run(scenario())
    assert said[2] == f"engine 1 is lost, 1 other engine goes on: {LOST.what}"
    assert said[-1] == f"engine 0 is lost, it was the last one: {LOST.what}"


def test_without_an_engine_that_serves_or_will_serve_the_run_ends():
    async def scenario():
        made, _ = engines(Workers(1, failures=[EngineError("no memory")] * 2))
        told = []
        made.on_failure.append(told.append)
        made.lose(0, LOST)
        waiting = asyncio.create_task(made.one_serves())
        await settled()
        with pytest.raises(EngineError, match="no memory"):
            await waiting
        return told

    (error,) = asyncio.run(scenario())
    assert error.what == "no memory"


def test_who_waits_for_an_engine_goes_on_when_one_serves():
    async def scenario():
        made, _ = engines(workers := Workers(1))
        workers.held.clear()
        made.lose(0, LOST)
        waiting = asyncio.create_task(made.one_serves())
        await settled()
        assert not waiting.done()
        workers.held.set()
        await asyncio.wait_for(waiting, 60)

    asyncio.run(scenario())


def test_a_new_engine_takes_no_memory_before_it_may():
    async def scenario():
        made, _ = engines(workers := Workers())
        made.may_start.clear()
        made.lose(1, LOST)
        await settled()
        before = list(workers.calls)
        made.may_start.set()
        await settled()
        return before, made.serving

    assert asyncio.run(scenario()) == ([], {0, 1})


def test_a_new_engine_suffers_the_faults_of_later_steps_only():
    kills = [parse(f"kill:engine:{e}@step={step},phase=swap") for step in (3, 5) for e in (0, 1)]

    async def scenario():
        made, _ = engines(workers := Workers(), faults=kills)
        made.swapped(3)
        made.lose(1, LOST)
        await settled()
        return [call for call in workers.calls if call[0] == "plant"]

    assert asyncio.run(scenario()) == [("plant", 1, [kills[3]])]


def test_groups_hear_of_a_lost_engine_before_its_successor():
    async def scenario():
        made, _ = engines(Workers())
        heard = []
        made.on_lost.append(lambda engine: heard.append(("lost", engine)))
        made.on_serving.append(lambda engine: heard.append(("serving", engine)))
        made.lose(1, LOST)
        await settled()
        return heard

    assert asyncio.run(scenario()) == [("lost", 1), ("serving", 1)]


def test_an_engine_whose_node_comes_later_starts_there_and_joins():
    async def scenario():
        made, said = engines(workers := Workers(3), nodes={2: (node := ComingNode())})
        node.comes()
        await settled()
        at_first = set(made.serving), list(workers.calls)
        made.swapped(0)
        await settled()
        return at_first, made, workers.calls, said

    at_first, made, calls, said = asyncio.run(scenario())
    assert at_first == ({0, 1}, []), "its node is awaited from the first swap on"
    assert made.serving == {0, 1, 2} and made.replaced == 0
    assert calls == [("end", 2), ("renew", 2), ("start", 2)]
    assert said == ["the node of engine 2 has come, the engine starts", "engine 2 joins: 3 engines serve"]


def test_a_node_is_awaited_without_an_end_and_once():
    async def scenario():
        waits = []
        made, said = engines(workers := Workers(), nodes={1: (node := ComingNode())})
        for step in range(3):
            made.swapped(step)
            await settled()
            waits.append((list(workers.calls), set(made.serving)))
        node.comes()
        await settled()
        return waits, workers.calls.count(("start", 1)), made.serving, said

    waits, starts, serving, said = asyncio.run(scenario())
    assert waits == [([], {0})] * 3 and len(said) == 2
    assert (starts, serving) == (1, {0, 1})


def test_a_node_that_cannot_be_used_is_said_once_and_awaited_again():
    async def scenario():
        made, said = engines(Workers(), nodes={1: (node := ComingNode())})
        node.comes()
        node.failures = [EngineError("no interface")] * 2
        for step in range(3):
            made.swapped(step)
            await settled()
        return said, made.serving

    said, serving = asyncio.run(scenario())
    assert said[0] == "the node of engine 1 came and cannot be used: no interface"
    assert said[1:] == ["the node of engine 1 has come, the engine starts", "engine 1 joins: 2 engines serve"]
    assert serving == {0, 1}


def test_a_run_whose_engines_are_all_lost_does_not_wait_for_a_node():
    async def scenario():
        failures = [EngineError("no memory")] * 2
        made, _ = engines(Workers(failures=failures), nodes={1: ComingNode()})
        made.swapped(0)
        made.lose(0, LOST)
        await settled()
        with pytest.raises(EngineError, match="no memory"):
            await made.one_serves()
        made.stop()

    asyncio.run(scenario())


def test_an_engine_that_has_joined_is_replaced_like_the_others():
    async def scenario():
        made, said = engines(Workers(), nodes={1: (node := ComingNode())})
        node.comes()
        made.swapped(0)
        await settled()
        made.lose(1, LOST)
        await settled()
        return made.serving, made.replaced, said[2:]

    serving, replaced, said = asyncio.run(scenario())
    assert (serving, replaced) == ({0, 1}, 1)
    assert said[0].startswith("engine 1 is lost, another one starts") and "serves again" in said[1]


def test_an_engine_that_joins_suffers_the_faults_of_later_steps_only():
    kills = [parse(f"kill:engine:1@step={step},phase=generate") for step in (3, 9)]

    async def scenario():
        made, _ = engines(workers := Workers(), faults=kills, nodes={1: (node := ComingNode())})
        made.swapped(5)
        node.comes()
        await settled()
        return [call for call in workers.calls if call[0] == "plant"]

    assert asyncio.run(scenario()) == [("plant", 1, [kills[1]])]


def test_waiting_for_a_node_ends_with_the_run():
    async def scenario():
        made, said = engines(workers := Workers(), nodes={1: (node := ComingNode())})
        made.swapped(0)
        await settled()
        made.stop()
        node.comes()
        await settled()
        return workers.calls, said

    assert asyncio.run(scenario()) == ([], [])


def test_an_engine_whose_node_has_gone_is_absent_until_it_is_back():
    async def scenario():
        node = ComingNode()
        node.comes()
        made, said = engines(workers := Workers(), nodes={1: node})
        made.swapped(0)
        node.goes()
        made.lose(1, LOST)
        for step in (1, 2):
            made.swapped(step)
            await settled()
        gone = set(made.serving), list(workers.calls), list(said)
        node.comes()
        await settled()
        return gone, made, said

    (serving, calls, told), made, said = asyncio.run(scenario())
    assert (serving, calls) == ({0}, [])
    assert told[1:] == ["the node of engine 1 has gone; it is awaited"]
    assert said[2] == "the node of engine 1 has come, the engine starts" and "1 serves again" in said[3]
    assert made.serving == {0, 1} and made.replaced == 1


def test_a_run_ends_if_the_node_of_its_last_engine_goes():
    async def scenario():
        node = ComingNode()
        node.comes()
        made, _ = engines(Workers(1), nodes={0: node})
        node.goes()
        with pytest.raises(EngineLostError):
            made.lose(0, LOST)
        made.stop()

    asyncio.run(scenario())


def test_a_node_that_goes_while_its_engine_starts_is_awaited():
    async def scenario():
        made, said = engines(
            workers := Workers(failures=[WorkerError("it is gone")]), nodes={1: (node := ComingNode())}
        )
        made.swapped(0)
        workers.held.clear()
        node.comes()
        await settled()
        node.goes()
        workers.held.set()
        await settled()
        return made.serving, said

    serving, said = asyncio.run(scenario())
    assert serving == {0} and said[-1] == "the node of engine 1 has gone; it is awaited"
