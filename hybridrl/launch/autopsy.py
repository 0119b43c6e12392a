"""What a run was doing when it failed: written to why.txt of its folder while the workers are still there.

The text has the error, the open spans of the driver, the last calls to every worker, which of them were not
answered, and the Python stacks of those workers, then of the others.
"""

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ray.exceptions import RayError

from hybridrl.cluster.group import Called, WorkerGroup
from hybridrl.errors import HybridRLError
from hybridrl.observe.units import duration

_MOST_STACKS = 16
"""Most workers whose stacks are shown."""

_ENGINES, _ENGINE_S = ("engine", "engine part"), 5.0
"""Groups whose workers own processes of an engine, and how long they may take to name these."""

_IN_COLLECTIVE = re.compile(r'File ".*/torch/distributed/distributed_c10d\.py", line \d+ in (\w+)')
"""The innermost frame of torch.distributed in a stack; its function is the collective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A run that failed, while its workers are there."""

    error: HybridRLError
    step: int
    running: Sequence[tuple[str, float]]
    """Open spans of the driver, and their age in seconds."""

    groups: Sequence[WorkerGroup]
    stacks: Mapping[str, str] = field(default_factory=dict)
    """Name of a process -> its Python stacks."""


async def gather(groups: Sequence[WorkerGroup]) -> dict[str, str]:
    """The Python stacks of workers and of their engines: first of those that did not answer, then of others.

    Returns:
        Name of a process -> its stacks.
    """
    everyone = [(group, rank) for group in groups for rank in range(len(group))]
    chosen = sorted(everyone, key=lambda one: _silent(*one) is None)[:_MOST_STACKS]
    found = await asyncio.gather(*(_of_worker(group, rank) for group, rank in chosen))
    return {name: text for stacks in found for name, text in stacks.items()}


async def _of_worker(group: WorkerGroup, rank: int) -> dict[str, str]:
    if group.stacks is None or rank not in group.pids:
        return {}
    files = {group.pids[rank]: Path()}
    if group.name in _ENGINES:
        asked = (await group.outcomes("stack_files", ranks=[rank], timeout_s=_ENGINE_S))[rank]
        files |= {} if isinstance(asked, BaseException) else {pid: Path(f) for pid, f in asked.items()}
    try:
        stacks = await group.stacks(rank, files)
    except (TimeoutError, RayError) as error:
        return {f"{group.name} {rank}": f"its node did not answer: {type(error).__name__}"}
    own = group.pids[rank]
    return {
        f"{group.name} {rank}" if pid == own else f"{group.name} {rank}, process {pid}": text
        for pid, text in stacks.items()
    }


def text_of(scene: Scene, now: float | None = None) -> str:
    """The report about a failed run."""
    now = time.monotonic() if now is None else now
    return (
        "\n".join(
            [*_head(scene, now), *_absent(scene), "", *_calls(scene, now), "", *_stacks(scene)]
        ).rstrip()
        + "\n"
    )


def _head(scene: Scene, now: float) -> Iterator[str]:
    error = scene.error
    yield f"error   {type(error).__name__}: {error.what}"
    for label, text in (("where", error.where), ("fix", error.fix)):
        if text:
            yield f"{label:<8}" + text.replace("\n", "\n        ")
    yield f"time    {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    spans = ", ".join(f"{name} for {duration(age_s)}" for name, age_s in scene.running)
    yield f"phase   step {scene.step}: {spans or 'between two spans'}"
    silent = [
        f"{group.name} {rank} has not returned from {called.method!r} for {duration(now - called.began)}"
        for group in scene.groups
        for rank in range(len(group))
        if (called := _silent(group, rank)) is not None
    ]
    yield "waiting " + ("\n        ".join(silent) if silent else "for nobody")


def _absent(scene: Scene) -> Iterator[str]:
    """Which ranks of a group have not joined the collective that others wait in."""
    for group in scene.groups:
        silent = {rank: called for rank in range(len(group)) if (called := _silent(group, rank))}
        inside = {
            rank: found[1] for rank in silent if (found := _IN_COLLECTIVE.search(_stack(scene, group, rank)))
        }
        if not inside:
            continue
        others = [
            f"{group.name} {rank}, which "
            + (f"hangs elsewhere in {silent[rank].method!r}" if rank in silent else _was_last_in(group, rank))
            for rank in range(len(group))
            if rank not in inside
        ]
        ranks = ", ".join(f"{group.name} {rank} in {name}" for rank, name in inside.items())
        yield f"collect {ranks}: waits for {'; '.join(others) or 'ranks of another group'}"


def _was_last_in(group: WorkerGroup, rank: int) -> str:
    calls = group.history.get(rank, ())
    return f"has returned from {calls[-1].method!r}" if calls else "was not called"


def _stack(scene: Scene, group: WorkerGroup, rank: int) -> str:
    return scene.stacks.get(f"{group.name} {rank}", "")


def _calls(scene: Scene, now: float) -> Iterator[str]:
    yield "last calls to each worker, oldest first"
    for group in scene.groups:
        for rank in range(len(group)):
            calls = [_one(called, now) for called in group.history.get(rank, ())]
            yield f"  {group.name} {rank}, pid {group.pids.get(rank, '?')}: {'; '.join(calls) or 'none'}"


def _one(called: Called, now: float) -> str:
    if called.ended is None or not called.was_answered:
        return f"{called.method} for {duration(now - called.began)}, not answered"
    return f"{called.method} took {duration(called.ended - called.began)}, {duration(now - called.ended)} ago"


def _stacks(scene: Scene) -> Iterator[str]:
    for name, text in scene.stacks.items():
        yield f"--- {name}"
        yield text or "no stack: the process is gone, or does not run, as after SIGSTOP"
        yield ""


def _silent(group: WorkerGroup, rank: int) -> Called | None:
    """The oldest call to a worker that it has not answered."""
    return next((called for called in group.history.get(rank, ()) if not called.was_answered), None)
