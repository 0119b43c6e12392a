"""An environment behind a server of OpenEnv, over its WebSocket protocol.

environment: {name: openenv, url: "http://127.0.0.1:8000", action: message, observation: text}

Every episode is a session of the server. It needs the package websockets; OpenEnv itself is installed where
the server runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import Observation, Turn
from hybridrl.environments.packages import require
from hybridrl.registry import register

_MOST_BYTES = 64 * 2**20


@register("environment", "openenv")
@dataclass(kw_only=True)
class OpenEnv:
    url: str
    """Address of the server."""

    action: str = "message"
    """Field of the server's action that a turn's text fills."""

    observation: str | None = None
    """Field of the server's observation that the policy reads. null: all of it, as JSON."""

    def __post_init__(self) -> None:
        require("websockets", "websockets==17.4", needed_by="environment openenv")
        scheme, _, rest = self.url.partition("://")
        if scheme not in ("http", "https", "ws", "wss") or not rest:
            raise ValueError(f"url = {self.url}, which is no address: write http://host:port")
        secure = "wss" if scheme in ("https", "wss") else "ws"
        self._address = f"{secure}://{rest.rstrip('/')}/ws"
        self._connection: Any = None

    @classmethod
    def warm_up(cls) -> None:
        import websockets.asyncio.client  # noqa: F401

    async def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        from websockets.asyncio.client import connect

        self._connection = await connect(self._address, max_size=_MOST_BYTES)
        seen = await self._asked("reset", {"seed": seed % 2**32})
        return Observation(self._text(seen))

    async def step(self, turn: Turn) -> Observation:
        seen = await self._asked("step", {self.action: turn.text})
        reward, done = seen.get("reward"), seen.get("done")
        return Observation(self._text(seen), reward=float(reward or 0.0), done=bool(done))

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.send(json.dumps({"type": "close"}))
            await self._connection.close()

    async def _asked(self, do: str, data: Mapping[str, Any]) -> dict[str, Any]:
        await self._connection.send(json.dumps({"type": do, "data": data}))
        answer = json.loads(await self._connection.recv())
        if answer.get("type") != "observation":
            raise RuntimeError(f"the server answers {do} with {answer.get('data', answer)!r:.300}")
        return answer["data"]

    def _text(self, seen: Mapping[str, Any]) -> str:
        observed = seen.get("observation", {})
        if self.observation is None:
            return observed if isinstance(observed, str) else json.dumps(observed, ensure_ascii=False)
        if self.observation not in observed:
            raise KeyError(
                f"the server's observation has no field {self.observation!r}, but {', '.join(observed)}"
            )
        return str(observed[self.observation])
