"""Tries an environment on random, empty, endless and malformed answers: `hybridrl environment check`.

What is found are episodes that hang, die or fail, episodes that differ at equal seeds, rewards, waiting
times, episodes that were not closed, and processes that grow.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybridrl.environments.base import Call, EnvironmentFailedError, Observation, Phase, ToolSchema, Turn
from hybridrl.environments.hosting import Environments
from hybridrl.findings import Finding
from hybridrl.hosts.process_usage import Usage, usage_of
from hybridrl.wording import counted

KINDS = ("random", "empty", "endless", "malformed")
"""Kinds of answers, each of which has the same share of the episodes."""

AT_ONCE = 16
"""Episodes that are played at the same time."""

_MOST_FAILURES = 3
"""Failed episodes of a kind of answers after which the others of that kind are left out."""

_ENDLESS = "again and again " * 20_000
_SLOW_SHARE = 0.5
"""Share of a deadline above which an answer is slow: a loaded machine takes twice as long."""

_LEAK_BYTES = 20_000
"""Growth per episode above which memory leaks: 20 kB are 2 GB in 100,000 episodes."""

_LEAK_FILES = 0.05
"""Open files, threads or processes per episode above which they leak."""


@dataclass(slots=True)
class _Episode:
    kind: str
    seed: int
    seen: list[Observation] = field(default_factory=list)
    seconds: list[tuple[Phase, float]] = field(default_factory=list)
    failure: EnvironmentFailedError | None = None

    @property
    def reward(self) -> float:
        return sum(seen.reward for seen in self.seen)


async def try_environment(
    source: Environments,
    rows: Sequence[Mapping[str, Any]],
    *,
    episodes: int,
    deadlines: Mapping[Phase, float],
) -> AsyncIterator[Finding]:
    """Play episodes of the environment that these rows have, whose processes have started.

    Args:
        episodes: number of them; each row begins as many as another one, in turn.
        deadlines: of the config, in seconds.
    """
    source.usage()
    played: list[_Episode] = []
    share = max(episodes // (len(KINDS) + 1), 1)
    for kind in KINDS:
        found = [episode async for episode in _play(source, rows, kind, share)]
        played += found
        yield _ended(kind, found)
    again = [episode async for episode in _play(source, rows, "random", share)]
    played += again
    yield _compared(played[: len(again)], again)
    yield _rewards(played)
    yield _waiting(played, deadlines)
    yield await _closed(source)
    if not any(episode.failure for episode in played):
        async for finding in _leaks(source, rows, share):
            yield finding


async def _play(
    source: Environments, rows: Sequence[Mapping[str, Any]], kind: str, count: int
) -> AsyncIterator[_Episode]:
    failures = 0
    for start in range(0, count, AT_ONCE):
        seeds = range(start, min(start + AT_ONCE, count))
        lot = [_episode(source, rows[seed % len(rows)], _Episode(kind, seed)) for seed in seeds]
        for episode in await asyncio.gather(*lot):
            failures += episode.failure is not None
            yield episode
        if failures >= _MOST_FAILURES:
            return


async def _episode(source: Environments, row: Mapping[str, Any], episode: _Episode) -> _Episode:
    opened, turns = source.open(row), _turns(episode, source.tools(row))
    try:
        episode.seen.append(await _timed(episode, "reset", opened.reset(episode.seed)))
        for _ in range(source.max_turns(row)):
            if episode.seen[-1].done:
                break
            turn = next(turns)
            episode.seen.append(await _timed(episode, "step", opened.step(turn)))
    except EnvironmentFailedError as error:
        episode.failure = error
    finally:
        await opened.close()
    return episode


async def _timed(episode: _Episode, phase: Phase, answer: Any) -> Observation:
    began = time.monotonic()
    try:
        return await answer
    finally:
        episode.seconds.append((phase, time.monotonic() - began))


def _turns(episode: _Episode, tools: Sequence[ToolSchema]) -> Iterator[Turn]:
    """What a policy says in an episode; it depends on the kind, the seed, and what was seen."""
    draw, number = random.Random(episode.seed), 0
    while True:
        agent, number = episode.seen[-1].agent, number + 1
        match episode.kind:
            case "empty":
                yield Turn("", agent=agent)
            case "endless":
                yield Turn(_ENDLESS, finish="length", agent=agent)
            case "malformed":
                yield _malformed(draw, number, tools, agent)
            case _:
                yield _random(draw, number, episode.seen, tools, agent)


def _random(
    draw: random.Random, number: int, seen: Sequence[Observation], tools: Sequence[ToolSchema], agent: int
) -> Turn:
    """A call of a tool with arguments of its types, or words that the environment has said, and digits."""
    if tools and draw.random() < 0.7:
        body = draw.choice(tools)["function"]
        return Turn(
            "",
            calls=(Call(body["name"], _arguments(draw, body["parameters"]), f"call_{number}"),),
            agent=agent,
        )
    contents = [
        message["content"] for one in seen for message in one.messages if not isinstance(message, str)
    ]
    texts = [content for content in contents if isinstance(content, str)]
    words = [*"0123456789", *" ".join(texts).split()]
    return Turn(" ".join(draw.choices(words, k=draw.choice((1, 1, 1, 2, 5)))), agent=agent)


def _arguments(draw: random.Random, schema: Mapping[str, Any]) -> dict[str, Any]:
    values = {
        "integer": draw.randrange(10),
        "number": draw.random(),
        "boolean": draw.random() < 0.5,
        "array": [],
        "object": {},
    }
    return {name: values.get(of.get("type", ""), "a") for name, of in schema.get("properties", {}).items()}


def _malformed(draw: random.Random, number: int, tools: Sequence[ToolSchema], agent: int) -> Turn:
    name = draw.choice(tools)["function"]["name"] if tools else "search"
    calls = draw.choice(
        [
            (Call("", fault="invalid JSON: it ends early", text='{"name": "'),),
            (Call("no_such_tool", {"a": 1}, "x"),),
            (Call(name, {"no_such_argument": [{"a": None}]}, "x"),),
            (Call(name, {}, "x"),) * 50,
            (),
        ]
    )
    text = draw.choice(["\0\x1b[31m\ufffd", "{" * 2000, "<tool_call>{</tool_call>", "[" * 500, "\n\n"])
    return Turn(text, calls=calls if tools else (), agent=agent)


def _ended(kind: str, episodes: Sequence[_Episode]) -> Finding:
    failed = [episode for episode in episodes if episode.failure is not None]
    if failed:
        error = failed[0].failure
        of = counted(len(episodes), "episode")
        return Finding(
            "no", kind, f"{len(failed)} of {of} failed, the first with seed {failed[0].seed}: {error}"
        )
    done = sum(episode.seen[-1].done for episode in episodes)
    turns = statistics.mean(len(episode.seen) - 1 for episode in episodes)
    text = f"{counted(len(episodes), 'episode')} of {turns:.1f} turns, {done} ended by the environment"
    return Finding("ok", kind, text)


def _compared(first: Sequence[_Episode], second: Sequence[_Episode]) -> Finding:
    """Whether episodes with equal seeds and equal answers are equal."""
    pairs = [(a, b) for a, b in zip(first, second, strict=False) if not (a.failure or b.failure)]
    for a, b in pairs:
        for turn, (one, other) in enumerate(zip(a.seen, b.seen, strict=False)):
            # Calls in metrics have times.
            one_, other_ = (_without_times(seen) for seen in (one, other))
            if one_ != other_:
                text = f"seed {a.seed} differs from itself in turn {turn}: {_differ(one, other)}"
                return Finding("warning", "seeds", f"{text}; an episode that is played again is another one")
    return Finding("ok", "seeds", f"{counted(len(pairs), 'episode')} played twice, equal at equal seeds")


def _without_times(seen: Observation) -> tuple[Any, ...]:
    return seen.messages, seen.reward, seen.done, seen.anchor, seen.agent, seen.rewards


def _differ(one: Observation, other: Observation) -> str:
    for name in ("messages", "reward", "done", "anchor", "agent", "rewards"):
        a, b = getattr(one, name), getattr(other, name)
        if a != b:
            return f"{name} {a!r:.60} and {b!r:.60}"
    return ""


def _rewards(episodes: Sequence[_Episode]) -> Finding:
    turns = [seen.reward for episode in episodes for seen in episode.seen[1:]]
    sums = [episode.reward for episode in episodes if episode.failure is None]
    if not turns or not sums:
        return Finding("warning", "rewards", "no turn was taken")
    text = (
        f"of a turn {min(turns):g} to {max(turns):g}, of an episode {min(sums):g} to {max(sums):g}, "
        f"{statistics.mean(sums):.3g} on average"
    )
    if min(sums) == max(sums):
        return Finding(
            "warning", "rewards", f"{text}: these answers all earn the same, so nothing is learnt of them"
        )
    return Finding("ok", "rewards", text)


def _waiting(episodes: Sequence[_Episode], deadlines: Mapping[Phase, float]) -> Finding:
    parts, slow = [], False
    for phase in ("reset", "step"):
        took = sorted(s for episode in episodes for of, s in episode.seconds if of == phase)
        if took:
            worst = took[int(0.99 * (len(took) - 1))]
            slow = slow or took[-1] > _SLOW_SHARE * deadlines[phase]
            parts.append(f"{phase} {statistics.median(took) * 1e3:.2g} ms, p99 {worst * 1e3:.2g} ms")
    text = "; ".join(parts)
    if slow:
        return Finding("warning", "latency", f"{text}: some took more than half of their deadline")
    return Finding("ok", "latency", text)


async def _closed(source: Environments) -> Finding:
    await source.idle()
    usage = source.usage()
    failed = sum(count for name, count in usage.failures.items() if name.startswith("close/"))
    text = f"{usage.closed:,} of {usage.episodes:,} episodes"
    if failed:
        return Finding(
            "no", "close", f"{text}; {counted(failed, 'call')} of close failed: {usage.first_failure}"
        )
    return Finding("ok", "close", text)


async def _leaks(
    source: Environments, rows: Sequence[Mapping[str, Any]], count: int
) -> AsyncIterator[Finding]:
    """Compare what the processes hold before and after further episodes."""
    before = _held(source)
    played = [episode async for episode in _play(source, rows, "random", max(count, 2 * AT_ONCE))]
    await source.idle()
    after = _held(source)
    kept = before.keys() & after.keys()
    if not kept:
        yield Finding("warning", "leaks", "no process lived long enough to tell")
        return
    grown = {
        name: sum(getattr(after[pid], name) - getattr(before[pid], name) for pid in kept) / len(played)
        for name in ("memory_bytes", "files", "threads", "children")
    }
    found = [f"{grown['memory_bytes'] / 1e3:.0f} kB"] * (grown["memory_bytes"] > _LEAK_BYTES)
    found += [f"{grown[name]:.2g} {name}" for name in ("files", "children") if grown[name] > _LEAK_FILES]
    if found:
        yield Finding("warning", "leaks", f"each episode leaves {', '.join(found)} behind in its process")
    else:
        yield Finding("ok", "leaks", f"{counted(len(played), 'episode')} left nothing behind")


def _held(source: Environments) -> dict[int, Usage]:
    found = {pid: usage_of(pid) for pid in source.pids()}
    return {pid: usage for pid, usage in found.items() if usage is not None}
