"""The processes of a program: one for each episode, or one for many.

A process is the leader of its own session. Its end takes all that it started along; what left its process
group is found by its parents. Standard output and error are read, and their ends kept for messages.

Waits: begin() waits for a free process; whoever holds a started episode waits for `exited`.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import psutil

from hybridrl.environments.base import EnvironmentFailedError

_TAIL = 2000
"""Bytes of output that are kept."""


@dataclass(frozen=True, slots=True)
class ProgramSetup:
    """Arguments with which processes are started."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str | None = None
    episodes_per_process: int = 1
    max_processes: int = 32


class PlayedEpisode(Protocol):
    """An episode that a program plays."""

    exited: "asyncio.Task[str]"
    """Ends with the program: why that is no success; "": it is."""

    @property
    def output(self) -> str:
        """The end of what the program has written so far; "": nothing, or it is not known yet."""
        ...

    async def end(self, *, hangs: bool = False) -> None:
        """End what plays this episode alone.

        Args:
            hangs: it did not end the episode itself.
        """
        ...


class ProgramSource(Protocol):
    """Starts programs, or gives episodes to those that run."""

    address: str
    """Start of the endpoint's address as programs see it; "": as the gateway says."""

    async def begin(self, episode: Mapping[str, Any]) -> PlayedEpisode:
        """
        Raises:
            EnvironmentFailedError: no program can be started, or it does not read.
        """
        ...

    async def close(self) -> None:
        """End all programs."""
        ...


@dataclass(slots=True, eq=False)
class _Process:
    running: asyncio.subprocess.Process
    exited: "asyncio.Task[str]"
    """Ends with the process: why that is no success; "": it is."""

    episodes: int = 0
    retired: bool = False
    """Whether it gets no further episode."""

    tail: bytearray = field(default_factory=bytearray)


class ProgramEpisode:
    """An episode that a process plays."""

    def __init__(self, owner: "Programs", process: _Process) -> None:
        self._owner, self._process = owner, process
        self.exited = process.exited

    @property
    def output(self) -> str:
        return _shown(self._process.tail)

    async def end(self, *, hangs: bool = False) -> None:
        """Let go of the process, and end it if it plays this episode alone.

        Args:
            hangs: it did not end the episode itself, so it gets no further one.
        """
        await self._owner.leave(self._process, hangs=hangs)


class Programs:
    """The processes of one engine; implements ProgramSource. All calls come from one event loop."""

    address = ""

    def __init__(self, setup: ProgramSetup) -> None:
        self._setup, self._processes = setup, set[_Process]()
        self._places = asyncio.Semaphore(setup.max_processes * setup.episodes_per_process)
        self._starting = asyncio.Lock()

    @property
    def pids(self) -> list[int]:
        return [process.running.pid for process in self._processes]

    async def begin(self, episode: Mapping[str, Any]) -> ProgramEpisode:
        """Give an episode to a process.

        Raises:
            EnvironmentFailedError: none can be started, or it does not read.
        """
        await self._places.acquire()
        process = None
        try:
            process = await self._free_process(episode)
            stdin = process.running.stdin
            assert stdin is not None
            stdin.write(json.dumps(episode, default=str).encode() + b"\n")
            await stdin.drain()
            if self._setup.episodes_per_process == 1:
                stdin.close()
        except (OSError, ValueError) as error:
            if process is not None:
                process.retired = True
                await self.leave(process)
            else:
                self._places.release()
            raise failed(f"{self._setup.command[0]} cannot be started: {error}") from error
        return ProgramEpisode(self, process)

    async def leave(self, process: _Process, *, hangs: bool = False) -> None:
        """An episode of a process has ended."""
        self._places.release()
        process.episodes -= 1
        process.retired |= hangs or process.exited.done() or self._setup.episodes_per_process == 1
        if process.retired and not process.episodes:
            await self._end(process)

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(self._end(process) for process in list(self._processes)))

    async def _free_process(self, episode: Mapping[str, Any]) -> _Process:
        many = self._setup.episodes_per_process
        async with self._starting:  # otherwise each of many waiting episodes starts a process of its own
            free = (p for p in self._processes if p.episodes < many and not p.retired and not p.exited.done())
            process = next(free, None) or await self._start(episode)
            process.episodes += 1
        return process

    async def _start(self, episode: Mapping[str, Any]) -> _Process:
        setup = self._setup
        alone = setup.episodes_per_process == 1
        pipe = asyncio.subprocess.PIPE
        running = await asyncio.create_subprocess_exec(
            *(commanded(setup.command, episode) if alone else setup.command),
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
            cwd=setup.folder,
            env={**setup.environment, **(endpoint_variables(episode) if alone else {})},
            start_new_session=True,
        )
        tail = bytearray()
        process = _Process(running, asyncio.create_task(self._watch(running, tail)), tail=tail)
        self._processes.add(process)
        return process

    async def _watch(self, running: asyncio.subprocess.Process, tail: bytearray) -> str:
        assert running.stdout is not None
        reading = asyncio.create_task(_keep_tail(running.stdout, tail))
        code = await running.wait()
        await asyncio.wait([reading], timeout=1.0)  # what it started may hold the pipe open
        reading.cancel()
        if code == 0 and self._setup.episodes_per_process == 1:
            return ""
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        said = _shown(tail)
        return f"{' '.join(self._setup.command)} {how}" + (f": ...{said}" if said else "")

    async def _end(self, process: _Process) -> None:
        self._processes.discard(process)
        pid = process.running.pid
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
        if process.running.stdin is not None:
            process.running.stdin.close()
        await asyncio.wait([process.exited])


def _shown(tail: bytearray) -> str:
    return bytes(tail).decode(errors="replace").strip()[-400:]


def failed(what: str, *, reason: str = "died") -> EnvironmentFailedError:
    return EnvironmentFailedError(
        what, where="program.command", fix="run it by hand: docs/gateway.md shows how", reason=reason
    )


def endpoint_variables(episode: Mapping[str, Any]) -> dict[str, str]:
    """Variables by which clients of OpenAI and Anthropic find their endpoint."""
    base, key = str(episode["base_url"]), str(episode["key"])
    openai = {"OPENAI_BASE_URL": base, "OPENAI_API_KEY": key}
    return {**openai, "ANTHROPIC_BASE_URL": base.removesuffix("/v1"), "ANTHROPIC_API_KEY": key}


def commanded(command: Sequence[str], episode: Mapping[str, Any]) -> list[str]:
    """The command with columns of the row in place of {column}."""
    row = episode["row"]
    filled = []
    for word in command:
        name = word[1:-1] if word[:1] == "{" and word[-1:] == "}" else None
        filled.append(str(row[name]) if name is not None and name in row else word)
    return filled


async def _keep_tail(stream: asyncio.StreamReader, tail: bytearray) -> None:
    while data := await stream.read(1 << 16):
        tail += data
        del tail[:-_TAIL]
