"""Seconds by span name."""

import asyncio

from hybridrl.observe.clock import Clock


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def __call__(self) -> float:
        return self.at_s


def test_spans_of_one_name_add_up() -> None:
    hands = Hands()
    clock = Clock(hands)
    for seconds in (1.0, 2.0):
        with clock.span("gen"):
            hands.at_s += seconds
        hands.at_s += 10
    assert clock.take() == {"gen": 3.0}


def test_a_name_inside_itself_counts_once() -> None:
    hands = Hands()
    clock = Clock(hands)
    with clock.span("gen"):
        hands.at_s += 1
        with clock.span("gen"):
            hands.at_s += 1
        hands.at_s += 1
    assert clock.take() == {"gen": 3.0}


def test_a_name_inside_another_counts_in_both() -> None:
    hands = Hands()
    clock = Clock(hands)
    with clock.span("step"):
        hands.at_s += 1
        with clock.span("gen"):
            hands.at_s += 2
    assert clock.take() == {"step": 3.0, "gen": 2.0}


def test_concurrent_tasks_count_each_second_once() -> None:
    hands = Hands()
    clock = Clock(hands)

    async def generate(entered: asyncio.Event, leave: asyncio.Event) -> None:
        with clock.span("gen"):
            entered.set()
            await leave.wait()

    async def play() -> None:
        entered, leave = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]
        tasks = []
        for i in range(2):  # both open from second 1 to second 2
            tasks.append(asyncio.create_task(generate(entered[i], leave[i])))
            await entered[i].wait()
            hands.at_s += 1
        for i in range(2):
            leave[i].set()
            await tasks[i]
            hands.at_s += 1

    asyncio.run(play())
    assert clock.take() == {"gen": 3.0}


def test_an_open_span_is_shared_out_between_readings() -> None:
    hands = Hands()
    clock = Clock(hands)
    with clock.span("gen"):
        hands.at_s += 1
        assert clock.take() == {"gen": 1.0}
        hands.at_s += 2
    assert clock.take() == {"gen": 2.0}
    assert clock.take() == {}


def test_a_name_read_alone_ends_there() -> None:
    hands = Hands()
    clock = Clock(hands)
    with clock.span("save_checkpoint"):
        hands.at_s += 5
    with clock.span("testing"):
        hands.at_s += 1
        assert clock.take_one("testing") == 1.0
        hands.at_s += 1
    assert clock.take_one("testing") is None
    assert clock.take() == {"save_checkpoint": 5.0}


def test_a_span_that_raises_is_counted() -> None:
    hands = Hands()
    clock = Clock(hands)
    try:
        with clock.span("reward"):
            hands.at_s += 1
            raise ValueError("no reward")
    except ValueError:
        pass
    assert clock.take() == {"reward": 1.0} and clock.running == []


def test_open_spans_are_known_by_name_and_age() -> None:
    hands = Hands()
    clock = Clock(hands)
    with clock.span("step"):
        hands.at_s += 2
        with clock.span("gen"):
            hands.at_s += 1
            assert clock.running == [("step", 3.0), ("gen", 1.0)]
