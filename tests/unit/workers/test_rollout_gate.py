"""The gate between requests and swaps, and how requests are dealt to engines."""

import asyncio

import pytest

from hybridrl.config.cluster import ClusterConfig
from hybridrl.rollout.base import Request
from hybridrl.types import Sampling
from hybridrl.workers.engine_worker import RolloutWorker
from hybridrl.workers.rollout import RayRollout, _shares, _shifted


def gate() -> RayRollout:
    return RayRollout(workers=[], cluster=None)


def test_a_swap_waits_for_running_requests_and_later_requests_wait_for_the_swap() -> None:
    async def scenario() -> list[str]:
        rollout, order = gate(), []

        async def request(name: str, seconds: float) -> None:
            async with rollout._requests(2):
                order.append(f"{name} starts")
                await asyncio.sleep(seconds)
            order.append(f"{name} ends")

        first = asyncio.create_task(request("first", 0.02))
        await asyncio.sleep(0)

        async def swap() -> None:
            async with rollout.quiet():
                order.append("swap")
                await asyncio.sleep(0.01)

        swapping = asyncio.create_task(swap())
        await asyncio.sleep(0)
        second = asyncio.create_task(request("second", 0.0))
        await asyncio.gather(first, swapping, second)
        return order

    assert asyncio.run(scenario()) == ["first starts", "first ends", "swap", "second starts", "second ends"]


def test_after_a_failed_swap_no_request_passes() -> None:
    async def scenario() -> None:
        rollout = gate()
        with pytest.raises(ValueError):
            async with rollout.quiet():
                raise ValueError("torn")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), rollout._requests(2):
                pass

    asyncio.run(scenario())


class Workers:
    """Engines: a request is answered with the engine's rank and the request's id."""

    def __len__(self) -> int:
        return 2

    async def one(self, rank: int, method: str, request: Request) -> tuple[int, str]:
        await asyncio.sleep(0.01)
        return rank, request.id


def test_a_request_goes_to_the_engine_that_it_names_and_a_swap_waits_for_each() -> None:
    sampling = Sampling(num_samples=1, max_response_tokens=1)

    async def scenario() -> tuple[list, list[int]]:
        rollout, seen = RayRollout(workers=Workers(), cluster=ClusterConfig()), []
        asked = [Request(id=name, token_ids=(1,), sampling=sampling) for name in "abc"]
        running = [asyncio.create_task(rollout.request(i % 2, one)) for i, one in enumerate(asked)]
        await asyncio.sleep(0)
        seen.append(rollout._running)
        async with rollout.quiet():
            seen.append(rollout._running)
            assert all(one.done() for one in running)
        return await asyncio.gather(*running), seen

    assert asyncio.run(scenario()) == ([(0, "a"), (1, "b"), (0, "c")], [3, 0])


class Paused:
    """One engine that answers when it is not paused, and tells what it is asked."""

    def __init__(self) -> None:
        self.asked, self.goes_on = [], asyncio.Event()
        self.goes_on.set()

    def __len__(self) -> int:
        return 1

    async def one(self, rank: int, method: str, request: Request) -> str:
        await asyncio.sleep(0.01)
        await self.goes_on.wait()
        self.asked.append(request.id)
        return request.id

    async def outcomes(
        self, method: str, *args: object, ranks: list[int], timeout_s: float | None
    ) -> dict[int, None]:
        await asyncio.sleep(0.005)
        self.asked.append(method)
        if method in ("pause", "continue_"):
            (self.goes_on.clear if method == "pause" else self.goes_on.set)()
        return dict.fromkeys(ranks)


def test_paused_requests_do_not_block_the_call_that_ends_the_pause() -> None:
    assert RolloutWorker._default_options.get("max_concurrency", 1000) >= 100_000  # Ray's own default


async def settle() -> None:
    await asyncio.sleep(0.03)


def single(name: str) -> Request:
    return Request(id=name, token_ids=(1,), sampling=Sampling(num_samples=1, max_response_tokens=1))


def test_single_requests_outlast_a_swap_in_a_pause_for_which_batches_wait() -> None:
    async def scenario() -> list[str]:
        rollout = RayRollout(workers=(engine := Paused()), cluster=ClusterConfig())

        async def batch() -> None:
            async with rollout._requests(2):
                engine.asked.append("batch")

        async with rollout._requests(2):
            pausing = asyncio.create_task(rollout.pause())
            await settle()
            engine.asked.append("batch before")
        await pausing
        running = [asyncio.create_task(rollout.request(0, single("a"))), asyncio.create_task(batch())]
        await settle()
        async with rollout.quiet():
            engine.asked.append("swap")
            going_on = asyncio.create_task(rollout.continue_())
            running.append(asyncio.create_task(rollout.request(0, single("b"))))
            await settle()
            engine.asked.append("swapped")
        await asyncio.gather(going_on, *running)
        async with rollout.quiet():
            engine.asked.append("swap")
        return engine.asked

    order = asyncio.run(scenario())
    assert order[:5] == ["batch before", "pause", "swap", "swapped", "continue_"]
    assert sorted(order[5:8]) == ["a", "b", "batch"] and order[8:] == ["swap"]


def test_a_request_to_resting_engines_waits_for_the_swap() -> None:
    async def scenario() -> list[str]:
        rollout = RayRollout(workers=(engine := Paused()), cluster=ClusterConfig())
        before = asyncio.create_task(rollout.request(0, single("before")))
        await asyncio.sleep(0)
        await rollout.sleep()
        after = asyncio.create_task(rollout.request(0, single("after")))
        await settle()
        async with rollout.quiet():
            engine.asked.append("swap")
        await asyncio.gather(before, after)
        return engine.asked

    assert asyncio.run(scenario()) == ["before", "release_cache", "swap", "after"]


@pytest.mark.parametrize(("count", "engines"), [(8, 3), (2, 3), (0, 2), (7, 1)])
def test_shares_are_contiguous_complete_and_even(count: int, engines: int) -> None:
    shares = _shares(count, engines)
    assert [i for share in shares for i in range(count)[share]] == list(range(count))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_prompt_has_the_same_seed_whatever_engine_answers_it() -> None:
    sampling = Sampling(num_samples=4, max_response_tokens=8, seed=100)
    assert _shifted(sampling, 3).seed == 112
    assert _shifted(Sampling(num_samples=4, max_response_tokens=8), 3).seed is None
