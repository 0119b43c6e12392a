"""Episodes of a program through the gateway: what they leave in memory, and how many requests it serves.

A program with OpenAI's client plays thousands of episodes over connections that stay open. The engine answers
at once, and what the runner reports is packed into batches as the controller packs it, so gateway and
controller grow by what they keep of an episode that has ended.
"""

import asyncio
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks._report import arguments, publish
from benchmarks.episodes import AtOnce, Letters, finished, received
from hybridrl.batch import Batch
from hybridrl.gateway.conversation import Limits
from hybridrl.gateway.player import ProgramPlayer
from hybridrl.gateway.program import Programs, ProgramSetup
from hybridrl.gateway.server import Gateway, ServerSetup
from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import Ticket
from hybridrl.types import GroupTask, Prompt, Sampling

RESULT = {
    "episodes": "episodes played",
    "turns": "requests of an episode",
    "at_once": "episodes in flight",
    "requests_per_s": "requests answered per second, clients included",
    "gateway_us": "CPU time of this process for one request: gateway, runner and controller",
    "memory_mb": "resident memory of this process after each twentieth of the episodes",
    "growth_mb": "slope of a line through the last three quarters of memory_mb, over all episodes",
    "objects": "growth of the number of Python objects over the same episodes",
    "connections": "connections that were open after the last episode",
    "left": "sessions and conversations that were there after the last episode",
}
_SAMPLES = 16


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"episodes": 320, "turns": 1, "at_once": 16},
        episodes=5120,
        turns=3,
        at_once=64,
    )
    found = {"episodes": options.episodes, "turns": options.turns, "at_once": options.at_once}
    publish(found | asyncio.run(_played(**found)), options.json)


async def _played(episodes: int, turns: int, at_once: int) -> dict[str, Any]:
    gateway = Gateway(ServerSetup())
    await gateway.start()
    command = (sys.executable, str(Path(__file__).with_name("_gateway_agent.py")))
    programs = Programs(ProgramSetup(command, dict(os.environ), None, episodes_per_process=at_once))
    try:
        runner = _runner(gateway, programs)
        await _wave(runner, at_once, turns)  # the program starts, and opens its connections
        memory_mb, objects, began, cpu_s = [], [], time.perf_counter(), time.process_time()
        per_mark = max(episodes // 20 // at_once, 1)
        for wave in range(episodes // at_once):
            await _wave(runner, at_once, turns)
            if wave % per_mark == per_mark - 1:
                gc.collect()
                memory_mb.append(round(psutil.Process().memory_info().rss / 2**20, 1))
                objects.append(len(gc.get_objects()))
        requests = episodes * turns
        return {
            "requests_per_s": round(requests / (time.perf_counter() - began)),
            "gateway_us": round((time.process_time() - cpu_s) / requests * 1e6),
            "memory_mb": memory_mb,
            "growth_mb": round(_slope(memory_mb) * len(memory_mb), 2),
            "objects": objects[-1] - objects[len(objects) // 4],
            "connections": len(psutil.Process().net_connections("tcp")) - 1,  # one listens
            "left": gateway.num_sessions,
        }
    finally:
        await programs.close()
        await gateway.close()


def _runner(gateway: Gateway, programs: Programs) -> EpisodeRunner:
    player = ProgramPlayer(
        gateway,
        programs,
        Letters(),
        lambda row: [{"role": "user", "content": row["text"]}],
        Limits(10_000, 8),
        timeout_s=600,
        max_sessions=512,
    )
    engine: Any = AtOnce()  # it answers requests, and no more is asked of it here
    return EpisodeRunner(engine, player=player)


async def _wave(runner: EpisodeRunner, episodes: int, turns: int) -> None:
    """Play some episodes, and pack them."""
    for number in range(episodes // _SAMPLES):
        row = {"text": f"question {number}", "turns": turns}
        prompt = Prompt(f"train/{number}", (5, 6), row)
        sampling = Sampling(num_samples=_SAMPLES, max_response_tokens=8, seed=number)
        runner.submit([Ticket(number, GroupTask(index=number, prompt=prompt, sampling=sampling))])
    groups = [group for part, block in await finished(runner) for group in received(part, block)]
    Batch.pack(1, groups)
    runner.usage()  # as at the end of a step


def _slope(values: list[float]) -> float:
    """Slope of a line through the last three quarters of some values."""
    last = values[len(values) // 4 :]
    return float(np.polyfit(np.arange(len(last)), last, 1)[0]) if len(last) > 1 else 0.0


if __name__ == "__main__":
    main()
