"""Runs in a process of environments: plays up to `episodes_per_process` episodes at the same time.

    owner --Order--> child --ready or refusal--> owner, then any number of
    owner --{n, do, episode, ...}--> child --{n, ...}--> owner

An episode's requests are served one after the other, those of different episodes at the same time. When the
owner ends, its connection closes, and the process ends.
"""

import asyncio
import contextlib
import faulthandler
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from hybridrl.config.environment import OneEnvironment
from hybridrl.environments import frames, threads
from hybridrl.environments.loading import LoadedEnvironment, load
from hybridrl.environments.observations import UnreadableObservation, read_turn, to_plain
from hybridrl.environments.played import Played
from hybridrl.environments.process import DUMP_SIGNAL
from hybridrl.errors import HybridRLError
from hybridrl.hosts.processes import ends_with_parent

_OURS = os.path.dirname(__file__)


def main(connection_fd: int, stack_fd: int, owner: int) -> None:
    """Serve the owner until it closes the connection."""
    if not ends_with_parent(owner):
        return
    faulthandler.register(DUMP_SIGNAL, file=stack_fd, all_threads=True)
    faulthandler.enable(file=stack_fd, all_threads=True)
    try:
        asyncio.run(_serve(socket.socket(fileno=connection_fd)))
    finally:
        sys.stdout.flush()
        os._exit(0)  # threads that hang are not waited for


async def _serve(connection: socket.socket) -> None:
    threads.prepare()
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**20)
    order = await frames.read(reader)
    try:
        own = OneEnvironment.model_validate(order["environment"])
        loaded = await load(own, timeout_s=order["timeout_s"], where=order["where"])
    except BaseException as error:  # a process edge: the owner raises it
        writer.write(frames.pack({"refused": _refusal(error, order)}))
        await writer.drain()
        return
    ready = {"schemas": list(loaded.schemas), "text_tools": list(loaded.rules.text_calls)}
    writer.write(frames.pack(ready))
    with contextlib.suppress(EOFError):
        await _Server(loaded, writer).serve(reader)
    await loaded.close()


class _Server:
    """The episodes of a process."""

    def __init__(self, loaded: LoadedEnvironment, writer: asyncio.StreamWriter) -> None:
        self._loaded, self._writer = loaded, writer
        self._episodes: dict[int, tuple[Played, asyncio.Lock]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader) -> None:
        while True:
            request = await frames.read(reader)
            task = asyncio.create_task(self._answer(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: Mapping[str, Any]) -> None:
        try:
            seen = await self._do(request)
            reply = {"n": request["n"], "seen": None if seen is None else to_plain(seen)}
            frame = frames.pack(reply)
        except BaseException as error:  # a process edge: the owner raises it
            frame = frames.pack({"n": request["n"], "raised": _raised(error)})
        self._writer.write(frame)

    async def _do(self, request: Mapping[str, Any]) -> Any:
        number, do = request["episode"], request["do"]
        if do == "reset":
            self._episodes[number] = (self._loaded.episode(), asyncio.Lock())
        played, lock = self._episodes[number]
        async with lock:
            if do == "reset":
                return await played.reset(request["row"], request["seed"])
            if do == "step":
                return await played.step(read_turn(request["turn"]))
            del self._episodes[number]
            await played.close()
            return None


def _refusal(error: BaseException, order: Mapping[str, Any]) -> dict[str, str]:
    """An error of loading: what the owner raises."""
    if isinstance(error, HybridRLError):
        return {"kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
    name = order["environment"]["name"]
    what = f"environment {name} cannot be loaded: {_said(error)}"
    return {"kind": "ConfigError", "what": what, "where": _place(error) or order["where"], "fix": ""}


def _raised(error: BaseException) -> dict[str, str]:
    """An error of an episode."""
    if isinstance(error, UnreadableObservation):
        return {"reason": "invalid", "what": str(error), "where": ""}
    return {"reason": "raised", "what": f"raised {_said(error)}", "where": _place(error)}


def _said(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # a class of the user may fail to write itself
        text = ""
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


def _place(error: BaseException) -> str:
    """The innermost line that is not of the project; "" if there is none."""
    frames_of = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OURS)]
    own = [
        f
        for f in frames_of
        if "site-packages" not in f.filename and f"{os.sep}lib{os.sep}python" not in f.filename
    ]
    last = (own or frames_of)[-1:]
    return f"{last[0].filename}:{last[0].lineno} in {last[0].name}" if last else ""
