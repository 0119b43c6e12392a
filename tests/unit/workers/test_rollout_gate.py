"""The gate between requests and swaps, and how requests are dealt to engines."""

import asyncio

import pytest

from hybridrl.types import Sampling
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
