"""Calls plain functions in threads: one that waits does not stop the other episodes of its process.

asyncio's own pool is not used: under Python 3.12 it begins further threads while others are idle.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from anyio import to_thread

MOST_THREADS = 512
"""Plain functions that run at the same time in a process; others wait."""


def prepare() -> None:
    """Let the running event loop call that many functions at the same time."""
    to_thread.current_default_thread_limiter().total_tokens = MOST_THREADS


async def called(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What a function returns: an async one runs in the loop, a plain one in a thread."""
    if inspect.iscoroutinefunction(function):
        return await function(*args, **named)
    result = await to_thread.run_sync(partial(function, *args, **named), abandon_on_cancel=True)
    return await result if inspect.isawaitable(result) else result
