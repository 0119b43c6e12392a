"""A service on loopback that judges answers as a test says, and notes what it was sent."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Behaviour = Callable[[int, dict[str, Any]], Awaitable[web.StreamResponse]]
"""Answers a request, given its number and its body."""


@dataclass
class Service:
    behave: Behaviour
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await self.behave(len(self.requests) - 1, body)
        finally:
            self.running -= 1


@contextlib.asynccontextmanager
async def served(behave: Behaviour) -> AsyncIterator[Service]:
    service = Service(behave)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/score", service.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    service.url = f"http://127.0.0.1:{runner.addresses[0][1]}/score"
    try:
        yield service
    finally:
        await runner.cleanup()


async def lengths(number: int, body: dict[str, Any]) -> web.Response:
    """The length of each answer."""
    return web.json_response({"results": [len(item["answer"]) for item in body["items"]]})


async def hang(number: int, body: dict[str, Any]) -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


def says(text: str | bytes, status: int = 200, **headers: str) -> Behaviour:
    async def say(number: int, body: dict[str, Any]) -> web.Response:
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=text.encode() if isinstance(text, str) else text, status=status, headers=own)

    return say


def first(count: int, behave: Behaviour, then: Behaviour = lengths) -> Behaviour:
    """One way for the first requests, another one for the others."""

    async def by_number(number: int, body: dict[str, Any]) -> web.StreamResponse:
        return await (behave if number < count else then)(number, body)

    return by_number


def by_answer(**behaviours: Behaviour) -> Behaviour:
    """A behaviour for the requests whose first answer it is named by."""

    async def choose(number: int, body: dict[str, Any]) -> web.StreamResponse:
        return await behaviours.get(body["items"][0]["answer"], lengths)(number, body)

    return choose


def results(values: Any) -> Behaviour:
    return says(json.dumps({"results": values}))
