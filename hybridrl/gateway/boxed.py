"""Programs in boxes of the sandbox: one box for each episode, and nothing of the network but the endpoint.

The gateway listens on a socket of the box's own loopback, so plain HTTP goes from the program to it without a
way that anybody else could read. What the program started ends with the box.

Waits: begin() waits for a place and for a box.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from hybridrl.errors import SandboxError
from hybridrl.gateway.program import ProgramSetup, commanded, endpoint_variables, failed
from hybridrl.gateway.server import Gateway, Listening
from hybridrl.sandbox.box import Box, Result
from hybridrl.sandbox.places import Sandbox
from hybridrl.sandbox.start import SHARED_FOLDER

PORT = 8000
"""Port of every box's loopback on which its gateway listens."""


class BoxedPrograms:
    """The boxes of one engine; implements ProgramSource. All calls come from one event loop."""

    address = f"http://127.0.0.1:{PORT}"

    def __init__(self, setup: ProgramSetup, sandbox: Sandbox, gateway: Gateway, *, timeout_s: float) -> None:
        """
        Args:
            sandbox: has started; its boxes share the program's folder, and PORT.
            timeout_s: time of an episode, which its player keeps; a box holds a little longer.
        """
        self._setup, self._sandbox, self._gateway = setup, sandbox, gateway
        self._most_s = timeout_s + 60.0
        self._places = asyncio.Semaphore(setup.max_processes)

    async def begin(self, episode: Mapping[str, Any]) -> "BoxedEpisode":
        """Start the program for an episode.

        Raises:
            EnvironmentFailedError: there is no box for it.
        """
        await self._places.acquire()
        try:
            box = await self._sandbox.take()
        except BaseException as error:
            self._places.release()
            if isinstance(error, SandboxError):
                raise failed(f"no box for {self._setup.command[0]}: {error}") from error
            raise
        listening = await self._gateway.listen(box.take_listener())
        running = asyncio.create_task(self._run(box, episode))
        return BoxedEpisode(box, listening, running, self._places)

    async def close(self) -> None:
        """End all boxes."""
        await self._sandbox.close()

    async def _run(self, box: Box, episode: Mapping[str, Any]) -> str:
        command = commanded(self._setup.command, episode)
        try:
            result = await box.run(
                command,
                stdin=json.dumps(episode, default=str).encode() + b"\n",
                time_s=self._most_s,
                folder=SHARED_FOLDER,
                variables={**self._setup.environment, **endpoint_variables(episode)},
            )
        except SandboxError as error:
            return f"{' '.join(command)} lost its box: {error}"
        return "" if result.ended == "exit" else _why(command[0], result)


class BoxedEpisode:
    """An episode that a program in a box plays."""

    def __init__(
        self, box: Box, listening: Listening, running: "asyncio.Task[str]", places: asyncio.Semaphore
    ) -> None:
        self._box, self._listening, self._places, self.exited = box, listening, places, running
        self.output = ""  # a box hands it over at its end

    async def end(self, *, hangs: bool = False) -> None:
        """End the box, with all that runs in it."""
        self.exited.cancel()  # a call and an end would read the same socket
        await asyncio.wait([self.exited])
        try:
            await self._box.close()
            await self._listening.close()
        finally:
            self._places.release()


def _why(name: str, result: Result) -> str:
    """How a program ended that did not succeed, with the end of what it said."""
    limits = {
        "memory": "passed program.box.memory_mb",
        "disk": "filled program.box.disk_mb",
        "cpu": "used its processor time",
        "output": "wrote more than a box may",
    }
    how = limits.get(result.ended, f"ended with exit code {result.code}")
    said = (result.stderr or result.stdout).decode(errors="replace").strip()
    return f"{name} {how}" + (f": ...{said[-400:]}" if said else "")
