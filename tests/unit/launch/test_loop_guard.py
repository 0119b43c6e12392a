"""A driver whose event loop stands still is noticed from another thread, with the place where it hangs."""

import asyncio
import threading
import time

import pytest

from hybridrl.launch.loop_guard import guard


def test_a_loop_that_stands_still_is_noticed_once_with_its_stack() -> None:
    said, told = list[str](), threading.Event()

    def hangs(stack: str) -> None:
        said.append(stack)
        told.set()

    async def stands_still() -> None:
        with guard(0.05, hangs):
            await asyncio.sleep(0)
            told.wait(60)
            time.sleep(0.1)

    asyncio.run(stands_still())
    assert len(said) == 1 and "in stands_still" in said[0] and "told.wait(60)" in said[0]


def test_a_loop_that_waits_goes_on_and_what_it_raises_is_raised() -> None:
    said: list[str] = []

    async def fails() -> None:
        with guard(30.0, said.append):
            await asyncio.sleep(0.3)
            raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        asyncio.run(fails())
    assert said == []
