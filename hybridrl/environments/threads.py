"""Calls plain functions in threads: one that waits does not stop the other episodes of its process."""

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

MOST_THREADS = 512
"""Plain functions that run at the same time in a process; others wait."""


def prepare(loop: asyncio.AbstractEventLoop) -> None:
    """Let an event loop call that many functions at the same time."""
    loop.set_default_executor(ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="episode"))


async def called(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What a function returns: an async one runs in the loop, a plain one in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **named)
    result = await asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **named))
    return await result if inspect.isawaitable(result) else result
