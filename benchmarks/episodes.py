"""Episodes of several turns: what controller and runner spend on one, and what an engine loses by them.

Episodes of a scripted environment are played through an engine that answers at once, and on a real engine;
there they are compared with single answers that have the same contexts and as many in flight.
"""

import asyncio
import pickle
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks._episode_tools import tool_times
from benchmarks._report import arguments, publish
from hybridrl.batch import Batch, TokenBlock
from hybridrl.environments.base import EnvironmentUsage, Observation, Turn
from hybridrl.models.tiny import random_model
from hybridrl.rollout.base import Answer, EngineSetup, Request, kind_of
from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import FinishedGroup, Ticket
from hybridrl.rollout.session import EngineSession
from hybridrl.rollout.sglang.sizes import SGLangParallel
from hybridrl.rollout.turns import TurnPlayer
from hybridrl.types import Group, GroupTask, Prompt, Sampling

RESULT = {
    "episodes": "played through the engine that answers at once",
    "turns": "answers in an episode",
    "driver_us": "CPU time of the controller for one episode: reading and packing what the runner reports",
    "runner_us": "CPU time of the runner for one episode, next to the engine",
    "memory_mb": "growth of this process from the first tenth of the episodes to the last",
    "sessions": "episodes in flight on the real engine",
    "tokens_per_s": "sampled tokens per second: episodes, and single answers of the same contexts",
    "share": "the first over the second",
    "cached_share": "prompt tokens of later turns that were in the engine's cache",
    "tool_ms": "a turn that calls a tool, [median, 99th percentile]: a function, in as many episodes at once "
    "as sessions; Python in a box, in eight; /bin/true in a box, and the first call of a box that waited",
}
_READ, _SAMPLES, _VOCABULARY = 20, 16, 263


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"episodes": 320, "sessions": 4, "tokens": 4, "calls": 3},
        episodes=10_240,
        turns=8,
        sessions=64,
        tokens=24,
        calls=30,
    )
    found = {"episodes": options.episodes, "turns": options.turns, "sessions": options.sessions}
    found |= asyncio.run(_through_nothing(options.episodes, options.turns))
    found |= asyncio.run(_on_an_engine(options.sessions, options.tokens))
    found["tool_ms"] = asyncio.run(tool_times(options.sessions, options.calls))
    publish(found, options.json)


class _Script:
    """Environment and source: every answer is followed by the same message."""

    def __init__(self, turns: int) -> None:
        self._turns = turns

    async def start(self) -> None:
        return None

    def name(self, row: Mapping[str, Any]) -> str:
        return "script"

    def tools(self, row: Mapping[str, Any]) -> tuple[()]:
        return ()

    def max_turns(self, row: Mapping[str, Any]) -> int:
        return self._turns

    def open(self, row: Mapping[str, Any]) -> "_Script":
        return self

    async def reset(self, seed: int) -> Observation:
        return Observation()

    async def step(self, turn: Turn) -> Observation:
        return Observation("x" * _READ, reward=0.25)

    def usage(self) -> EnvironmentUsage:
        return EnvironmentUsage()

    async def close(self) -> None:
        return None


class Letters:
    """A dialogue: a letter of a message is a token."""

    stop_token_ids = ()

    def begin(self, messages: Any, tools: Any) -> list[int]:
        return [3 + ord(letter) % 90 for message in messages for letter in message["content"]]

    def more(self, history: Any, answer: Any, messages: Any, tools: Any) -> list[int]:
        return self.begin(messages, tools)

    def write(self, message: Any, tools: Any) -> list[int]:
        return self.begin([message], tools)

    def read(self, answer: Any, finish: Any, tools: Any) -> Turn:
        return Turn("", finish=finish)


class AtOnce:
    """The engine that answers at once."""

    session = EngineSession(0)
    _token_T = np.arange(3, 11, dtype=np.int32)
    _logp_T, _version_T = -np.ones(8, np.float32), np.zeros(8, np.int32)

    async def request(self, request: Request) -> Answer:
        return Answer(
            id=request.id,
            token_T=self._token_T,
            logp_T=self._logp_T,
            version_T=self._version_T,
            finish="stop",
        )


def _runner(engine: Any, turns: int, length: int, *, most: int | None = None) -> EpisodeRunner:
    def opening(row: Mapping[str, Any]) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["text"]}]

    player = TurnPlayer(_Script(turns), Letters(), opening, max_context_tokens=length)
    return EpisodeRunner(engine, player=player, most_requests=most)


def _ticket(number: int, tokens: int, text: str, *, samples: int = _SAMPLES) -> Ticket:
    sampling = Sampling(num_samples=samples, max_response_tokens=tokens, seed=number)
    prompt = Prompt(f"train/{number}", tuple(Letters().begin([{"content": text}], ())), {"text": text})
    return Ticket(number, GroupTask(index=number, prompt=prompt, sampling=sampling))


async def finished(runner: EpisodeRunner) -> list[tuple[list[FinishedGroup], TokenBlock]]:
    found = []
    while True:
        groups, block = await runner.finished()
        if block is None:
            return found
        found.append((groups, block))


async def _through_nothing(episodes: int, turns: int) -> dict[str, Any]:
    runner, driver_s, resident = _runner(AtOnce(), turns, 10_000), 0.0, []
    start = time.process_time()
    for first in range(0, episodes // _SAMPLES, 20):
        runner.submit([_ticket(first + i, 8, "abc") for i in range(20)])
        found = await finished(runner)
        before = time.process_time()
        groups = [group for part, block in found for group in received(part, block)]
        Batch.pack(1, groups)
        driver_s += time.process_time() - before
        resident.append(psutil.Process().memory_info().rss / 2**20)
    whole_s = time.process_time() - start
    return {
        "driver_us": round(driver_s / episodes * 1e6, 1),
        "runner_us": round((whole_s - driver_s) / episodes * 1e6, 1),
        "memory_mb": round(resident[-1] - resident[len(resident) // 10], 1),
    }


def received(part: list[FinishedGroup], block: TokenBlock) -> list[Group]:
    """What reaches the controller: metadata, by pickle as Ray sends it."""
    groups = []
    for found in pickle.loads(pickle.dumps(part)):
        for trajectory in found.trajectories:
            trajectory.reward = trajectory.turn_reward
        groups.append(Group(Prompt("t", (1,), {}), found.trajectories, block, index=found.ticket))
    return groups


async def _on_an_engine(sessions: int, tokens: int, turns: int = 4, opening: int = 100) -> dict[str, Any]:
    longest = opening + turns * (tokens + _READ)
    with tempfile.TemporaryDirectory() as folder:
        random_model(Path(folder, "model"), "qwen3", 0, hidden_size=128, intermediate_size=384, head_dim=32)
        setup = EngineSetup(
            model_folder=str(Path(folder, "model")),
            log_path=str(Path(folder, "log")),
            parallel=SGLangParallel(),
            max_prompt_tokens=longest,
            max_response_tokens=tokens,
        )
        engine = kind_of("sglang").open(setup)
        try:
            texts = ["".join(chr(97 + (i * 7 + j) % 26) for j in range(opening)) for i in range(sessions)]
            single = EpisodeRunner(engine, most_requests=sessions)
            played = _runner(engine, turns, longest + tokens)
            asked = [text + "x" * (k * (tokens + _READ)) for k in range(turns) for text in texts]
            await _tokens_per_s(single, tokens, asked)  # their contexts are in the cache from here on
            several = await _tokens_per_s(played, tokens, texts)
            usage = played.usage().sums
            alone = await _tokens_per_s(single, tokens, asked)
        finally:
            engine.shutdown()
    return {
        "tokens_per_s": [round(several), round(alone)],
        "share": round(several / alone, 3),
        "cached_share": round(usage["cached"] / usage["cacheable"], 3),
    }


async def _tokens_per_s(runner: EpisodeRunner, tokens: int, texts: list[str]) -> float:
    start = time.perf_counter()
    runner.submit([_ticket(i, tokens, text, samples=1) for i, text in enumerate(texts)])
    found = await finished(runner)
    spent_s = time.perf_counter() - start
    return sum(t.trained_tokens for part, _ in found for group in part for t in group.trajectories) / spent_s


if __name__ == "__main__":
    main()
