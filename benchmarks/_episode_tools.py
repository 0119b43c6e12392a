"""How long a turn that calls a tool takes: a function in a process of environments, and code in a box."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np

from hybridrl.config.environment import EnvironmentConfig
from hybridrl.environments.base import Call, OpenEpisode, Turn
from hybridrl.environments.hosting import open_environments
from hybridrl.errors import SandboxError
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.support import inspect

_ADD = "benchmarks._episode_tools:add"


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


async def tool_times(episodes: int, calls: int) -> dict[str, Any]:
    """Milliseconds of a turn with a call, [median, 99th percentile], in so many episodes at once."""
    found = {
        "function": await _turns([_ADD], Call("add", {"a": 1, "b": 2}, "x"), episodes, calls),
        "python": [],
        "box": {},
    }
    if (await inspect()).kind is not None:
        ran = Call("python", {"code": "1 + 1"}, "x")
        found["python"] = await _turns([{"python": {}}], ran, min(episodes, 8), calls)
        found["box"] = await _boxes(calls)
    return found


async def _turns(tools: Sequence[Any], call: Call, episodes: int, calls: int) -> list[float]:
    source = open_environments(EnvironmentConfig.model_validate({"tools": tools}))
    await source.start()
    try:
        opened = [source.open({}) for _ in range(episodes)]
        await asyncio.gather(*(episode.reset(0) for episode in opened))
        times = await asyncio.gather(*(_played(episode, call, calls) for episode in opened))
        await asyncio.gather(*(episode.close() for episode in opened))
    finally:
        await source.close()
    return _spread([spent_s for own in times for spent_s in own])


async def _played(episode: OpenEpisode, call: Call, calls: int) -> list[float]:
    """Seconds of each turn after the first one, which takes a box where the tool needs one."""
    times = [await _timed(episode.step(Turn("", calls=(call,)))) for _ in range(calls + 1)]
    return times[1:]


async def _boxes(calls: int) -> dict[str, list[float]]:
    """A program in a box, and the first Python call of a box that waited."""
    sandbox, programs, first = LocalSandbox(Limits(), ahead=4), list[float](), list[float]()
    await sandbox.start()
    try:
        for _ in range(calls):
            await asyncio.sleep(0.2)  # the next boxes start meanwhile
            begun = time.perf_counter()
            box = await sandbox.take()
            await box.python("1 + 1")
            first.append(time.perf_counter() - begun)
            programs.append(await _timed(box.run(["/bin/true"])))
            await box.close()
    except SandboxError as error:
        raise SystemExit(f"no box: {error}") from error
    finally:
        await sandbox.close()
    return {"true": _spread(programs), "python_from_pool": _spread(first)}


async def _timed(work: Awaitable[Any]) -> float:
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


def _spread(times: Sequence[float]) -> list[float]:
    return [round(float(np.percentile(times, share)) * 1e3, 2) for share in (50, 99)]
