"""Requests to an engine's host and answers from it, many in one message.

A message for each request, and one for each answer, would take a third of the time of a batch of short
answers. So requests that are made in one round of an event loop travel together, and so do answers that end
in one step of the engine. This module imports no engine.
"""

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridrl.errors import EngineError
from hybridrl.rollout.base import Answer, Request
from hybridrl.rollout.channel import Caller
from hybridrl.types import Finish

_Waiter = asyncio.Future[Answer]


@dataclass(frozen=True, slots=True)
class AnswerLot:
    """Answers, concatenated; the fields are those of Answer."""

    ids: list[str]
    length_N: np.ndarray
    token_T: np.ndarray
    logp_T: np.ndarray
    version_T: np.ndarray
    finish: list[Finish]
    experts: list[np.ndarray | None]
    heads: list[tuple[np.ndarray, np.ndarray] | None]
    cached: list[int | None]
    errors: dict[str, EngineError]
    """Requests that were refused, by id; they have no answer."""

    @classmethod
    def of(cls, answers: Sequence[Answer], errors: dict[str, EngineError]) -> "AnswerLot":
        def joined(arrays: list[np.ndarray], dtype: Any) -> np.ndarray:
            return np.concatenate(arrays) if arrays else np.zeros(0, dtype)

        return cls(
            [answer.id for answer in answers],
            np.array([len(answer.token_T) for answer in answers], np.int64),
            joined([answer.token_T for answer in answers], np.int32),
            joined([answer.logp_T for answer in answers], np.float32),
            joined([answer.version_T for answer in answers], np.int32),
            [answer.finish for answer in answers],
            [answer.experts_SLK for answer in answers],
            [answer.head_TK for answer in answers],
            [answer.cached_tokens for answer in answers],
            errors,
        )

    def answers(self) -> list[Answer]:
        """The answers; their arrays are views."""
        end_N = np.cumsum(self.length_N).tolist()
        return [
            Answer(
                id=self.ids[i],
                token_T=self.token_T[start:end],
                logp_T=self.logp_T[start:end],
                version_T=self.version_T[start:end],
                finish=self.finish[i],
                experts_SLK=self.experts[i],
                head_TK=self.heads[i],
                cached_tokens=self.cached[i],
            )
            for i, (start, end) in enumerate(zip([0, *end_N], end_N, strict=False))
        ]


class Inbox:
    """The host's end: collects what became of requests until the owner asks. All calls come from one loop."""

    def __init__(self) -> None:
        self._ended: list[Answer] = []
        self._refused: dict[str, EngineError] = {}
        self._news = asyncio.Event()

    def put(self, request: Request, outcome: Answer | Exception) -> None:
        """Note the answer to a request, or why there is none."""
        if isinstance(outcome, Answer):
            self._ended.append(outcome)
        elif isinstance(outcome, EngineError):
            self._refused[request.id] = outcome
        else:
            self._refused[request.id] = EngineError(
                f"request {request.id!r} was not answered: {type(outcome).__name__}: {outcome}"
            )
        self._news.set()

    async def take(self) -> AnswerLot:
        """Wait until requests have ended."""
        await self._news.wait()
        await asyncio.sleep(0)  # others may end in the same step of the engine
        ended, refused = self._ended, self._refused
        self._ended, self._refused = [], {}
        self._news.clear()
        return AnswerLot.of(ended, refused)


class Outbox:
    """The owner's end: sends requests in lots, and hands out the answers. Callers may be in any thread."""

    def __init__(self, caller: Caller) -> None:
        self._caller, self._lock = caller, threading.Lock()
        self._unsent: list[Request] = []
        self._waiting: dict[str, tuple[asyncio.AbstractEventLoop, _Waiter]] = {}
        self._asking = False
        self._idle: list[Future[None]] = []

    def __len__(self) -> int:
        """Number of requests without an answer."""
        return len(self._waiting)

    def request(self, request: Request) -> Awaitable[Answer]:
        """Send a request, which counts from now on; returns what waits for its answer.

        Raises:
            EngineError: the id is that of a running request; from the wait, the request was refused, or the
                host is gone.
        """
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        with self._lock:
            if request.id in self._waiting:
                raise EngineError(f"request {request.id!r} runs already", fix="give each an id of its own")
            self._waiting[request.id] = loop, waiter
            self._unsent.append(request)
            if len(self._unsent) == 1:
                loop.call_soon(self.flush)
        return waiter

    def flush(self) -> None:
        """Send what was not sent yet. Without it, a call to the host would overtake new requests."""
        with self._lock:
            lot, self._unsent = self._unsent, []
            asks = bool(lot) and not self._asking
            self._asking = self._asking or asks
        if lot:
            self._caller.call("start", lot).add_done_callback(self._started)
        if asks:
            self._ask()

    async def empty(self) -> None:
        """Wait until every request is answered."""
        future: Future[None] = Future()
        with self._lock:
            if not self._waiting:
                return
            self._idle.append(future)
        await asyncio.wrap_future(future)

    def _ask(self) -> None:
        self._caller.call("answers").add_done_callback(self._answered)

    def _started(self, future: Future[None]) -> None:
        if error := future.exception():
            self._fail(error)

    def _answered(self, future: Future[AnswerLot]) -> None:
        """Called in the caller's reader thread."""
        if error := future.exception():
            self._fail(error)
            return
        lot = future.result()
        outcomes: list[tuple[str, Any]] = [(answer.id, answer) for answer in lot.answers()]
        self._hand_out([*outcomes, *lot.errors.items()])
        with self._lock:
            self._asking = bool(self._waiting)
            asks = self._asking
        if asks:
            self._ask()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._asking = False
            lost = list(self._waiting)
        self._hand_out([(name, error) for name in lost])

    def _hand_out(self, outcomes: Sequence[tuple[str, Any]]) -> None:
        """Give requests their answer or error, with one wake-up of each event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Waiter, Any]]] = defaultdict(list)
        with self._lock:
            for name, outcome in outcomes:
                if waiting := self._waiting.pop(name, None):  # None: it was given an error before
                    by_loop[waiting[0]].append((waiting[1], outcome))
            idle, self._idle = (self._idle, []) if not self._waiting else ([], self._idle)
        for loop, settled in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_settle, settled)
        for future in idle:
            future.set_result(None)


def _settle(settled: Sequence[tuple[_Waiter, Any]]) -> None:
    for waiter, outcome in settled:
        if waiter.done():  # its caller gave up
            continue
        if isinstance(outcome, BaseException):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)
