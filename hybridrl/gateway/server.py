"""The HTTP server of an engine's gateway: a session for each episode, with a URL and a key of its own.

    /s/SESSION/v1/chat/completions    OpenAI, also as a stream
    /s/SESSION/v1/messages            Anthropic, also as a stream
    /s/SESSION/v1/models
    /s/SESSION/v1/done                ends the episode: {"reward": 1.0, "metrics": {"solved": 1}}

Waits: a request waits for its answer, also over a swap of weights; a stream gets a comment meanwhile, so that
nothing between takes it for dead.
"""

import asyncio
import hmac
import json
import secrets
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from aiohttp import web

from hybridrl.errors import HybridRLError
from hybridrl.gateway import anthropic_form, openai_form
from hybridrl.gateway.conversation import Conversations
from hybridrl.gateway.ending import Ending, read_ending
from hybridrl.gateway.requests import Given, RefusedError, read_object

MODEL = "policy"
"""Name of the policy; a request may name any model."""

_KEEP_ALIVE_S = 4 * 3600.0
_COMMENT_S = 15.0
_RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """Arguments with which a gateway serves."""

    host: str = "127.0.0.1"
    max_body_bytes: int = 1 << 20
    max_running: int = 1024
    """Requests that are answered at the same time; further ones are told to come again."""

    certificate: tuple[str, str] | None = None
    """Files with a certificate and its key, in PEM. None: plain HTTP."""


@dataclass(slots=True)
class Session:
    """What the server knows of an episode."""

    conversations: Conversations
    url: str
    """Address in front of /v1."""

    key: str
    ended: "asyncio.Future[Ending]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Set by the program's call of `done`, or by a failure of the engine."""

    def fail(self, error: BaseException) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)


@dataclass(frozen=True, slots=True)
class Listening:
    """A further socket on which a gateway serves."""

    site: web.SockSite

    async def close(self) -> None:
        """Serve no further connection of it."""
        await self.site.stop()


class Gateway:
    """All calls come from one event loop."""

    def __init__(self, setup: ServerSetup) -> None:
        self._setup, self._sessions = setup, dict[str, Session]()
        self._runner: web.AppRunner | None = None
        self._base, self.running = "", 0

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application(client_max_size=self._setup.max_body_bytes)
        app.router.add_post("/s/{session}/v1/chat/completions", self._openai)
        app.router.add_post("/s/{session}/v1/messages", self._anthropic)
        app.router.add_post("/s/{session}/v1/done", self._done)
        app.router.add_get("/s/{session}/v1/models", self._models)
        app.router.add_get("/s/{session}/v1/models/{model:.+}", self._model)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=_KEEP_ALIVE_S, handler_cancellation=False
        )
        await self._runner.setup()
        context = None
        if self._setup.certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*self._setup.certificate, password="")  # nobody is asked for one
        await web.TCPSite(self._runner, self._setup.host, 0, ssl_context=context, backlog=1024).start()
        port = self._runner.addresses[0][1]
        scheme = "https" if context else "http"
        self._base = f"{scheme}://{_reached(self._setup.host)}:{port}"

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def num_sessions(self) -> int:
        """Episodes that have not ended."""
        return len(self._sessions)

    @property
    def num_listening(self) -> int:
        """How many sockets it serves on: its own, and one for each box."""
        return 0 if self._runner is None else len(self._runner.sites)

    async def listen(self, listener: socket.socket) -> Listening:
        """Serve on a socket that listens already, without TLS: such as the loopback of a box."""
        assert self._runner is not None, "start() was not called"
        site = web.SockSite(self._runner, listener)
        await site.start()
        return Listening(site)

    def open(self, conversations: Conversations, address: str = "") -> Session:
        """A session for one episode.

        Args:
            address: start of its URL. "": where this gateway listens.
        """
        name = secrets.token_urlsafe(9)
        url = f"{address or self._base}/s/{name}"
        session = Session(conversations, url, f"hy-{secrets.token_urlsafe(24)}")
        self._sessions[name] = session
        conversations.fail = session.fail
        return session

    def end(self, session: Session) -> None:
        """Answer no further request of a session."""
        self._sessions.pop(session.url.rpartition("/")[2], None)

    async def _openai(self, request: web.Request) -> web.StreamResponse:
        def as_events(given: Given, body: Any) -> Iterable[str]:
            return openai_form.events(given, MODEL, body.get("stream_options") or {})

        return await self._answered(request, openai_form, as_events)

    async def _anthropic(self, request: web.Request) -> web.StreamResponse:
        def as_events(given: Given, body: Any) -> Iterable[str]:
            return anthropic_form.events(given, MODEL)

        return await self._answered(request, anthropic_form, as_events)

    async def _answered(
        self, request: web.Request, form: ModuleType, as_events: Callable[[Given, Any], Iterable[str]]
    ) -> web.StreamResponse:
        try:
            session = self._session(request)
            body = read_object(await self._body(request))
            asked = form.read_request(body)
            if self.running >= self._setup.max_running:
                raise RefusedError("too many requests at the same time", status=429, code="busy")
        except RefusedError as error:
            return _refusal(form, error)
        work = asyncio.ensure_future(self._work(session, asked))
        if body.get("stream"):
            return await self._streamed(request, form, work, lambda given: as_events(given, body))
        try:
            return web.json_response(form.response(await work, MODEL))
        except RefusedError as error:
            return _refusal(form, error)

    async def _work(self, session: Session, asked: Any) -> Given:
        """
        Raises:
            RefusedError: there is no answer.
        """
        self.running += 1
        try:
            return await session.conversations.answer(asked)
        except HybridRLError as error:
            raise RefusedError(f"the engine failed: {error}", status=503, code="engine") from error
        finally:
            self.running -= 1

    async def _streamed(
        self,
        request: web.Request,
        form: ModuleType,
        work: "asyncio.Future[Given]",
        as_events: Callable[[Given], Iterable[str]],
    ) -> web.StreamResponse:
        """The answer as events. What is refused within a moment is refused as without a stream."""
        await asyncio.wait([work], timeout=0.05)
        if work.done() and isinstance(error := work.exception(), RefusedError):
            return _refusal(form, error)
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        try:
            await response.prepare(request)
            while not work.done():
                await asyncio.wait([work], timeout=_COMMENT_S)
                if not work.done():
                    await response.write(b": waiting\n\n")
            await response.write("".join(as_events(await work)).encode())
            await response.write_eof()
        except RefusedError as error:
            await response.write(_event_of_failure(form.failure(error)))
        except ConnectionError:  # the client hung up; its repetition gets the stored answer
            pass
        return response

    async def _done(self, request: web.Request) -> web.Response:
        try:
            session = self._session(request)
            body = await self._body(request)
            ending = read_ending(read_object(body) if body.strip() else {})
        except RefusedError as error:
            return _refusal(openai_form, error)
        if not session.ended.done():
            session.ended.set_result(ending)
        return web.json_response({"done": True})

    async def _models(self, request: web.Request) -> web.Response:
        return await self._said(request, lambda: openai_form.models(MODEL))

    async def _model(self, request: web.Request) -> web.Response:
        return await self._said(request, lambda: openai_form.one_model(MODEL))

    async def _said(self, request: web.Request, say: Callable[[], Any]) -> web.Response:
        try:
            self._session(request)
        except RefusedError as error:
            return _refusal(openai_form, error)
        return web.json_response(say())

    def _session(self, request: web.Request) -> Session:
        """
        Raises:
            RefusedError: there is no such session, or the key is not its own.
        """
        session = self._sessions.get(request.match_info["session"])
        if session is None:
            raise RefusedError("there is no such episode, or it has ended", status=404, code="ended")
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        given = given or request.headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode(), session.key.encode()):
            raise RefusedError("this is not the key of the episode", status=401, code="key")
        return session

    async def _body(self, request: web.Request) -> bytes:
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            limit = f"program.max_body_kb allows {self._setup.max_body_bytes // 1024}"
            raise RefusedError(f"the body is too large: {limit}", status=413, code="too_large") from error


def _reached(host: str) -> str:
    """A host as an address has it; for one that means all addresses of this machine, its name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _refusal(form: ModuleType, error: RefusedError) -> web.Response:
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if error.status == 429 else None
    return web.json_response(form.failure(error), status=error.status, headers=headers)


def _event_of_failure(failure: dict[str, Any]) -> bytes:
    return f"event: error\ndata: {json.dumps(failure)}\n\n".encode()
