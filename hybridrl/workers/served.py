"""Engines of models that are never trained, and how others ask them.

An engine whose process is lost is started again by its worker at the next request, and Ray starts a worker
that is lost, under the same handle; so whoever holds handles goes on asking.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from hybridrl.config.judge import ServedModelConfig
from hybridrl.errors import EngineLostError, HybridRLError
from hybridrl.hosts import stacks
from hybridrl.rollout.base import Answer, Engine, EngineKind, EngineSetup, Request

_MOST_CALLS = 1_000_000
_TRIES, _PAUSE_S = 3, 2.0


class Served:
    """An engine that is started at the first request, and again after it was lost."""

    def __init__(self, open_engine: Callable[[], Engine], most_restarts: int) -> None:
        self._open, self._most = open_engine, most_restarts
        self._engine: Engine | None = None
        self._starts = 0

    def start(self) -> Engine:
        """
        Raises:
            EngineLostError: it was started too often.
        """
        if self._engine is None:
            if self._starts > self._most:
                raise EngineLostError(f"the engine was lost {self._starts} times and is not started again")
            self._starts += 1
            self._engine = self._open()
        return self._engine

    async def request(self, request: Request) -> Answer:
        """
        Raises:
            EngineLostError: the engine was lost. The next request starts it again.
        """
        engine = self.start()
        try:
            return await engine.request(request)
        except EngineLostError:
            if engine is self._engine:  # the first of its requests that notices
                self._engine = None
                engine.shutdown()
            raise

    @property
    def stack_files(self) -> Mapping[int, str]:
        return getattr(self._engine, "stack_files", {})

    def stop(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()


# Ray's type stubs lack this option for classes.
@ray.remote(max_restarts=3, max_concurrency=_MOST_CALLS)  # pyright: ignore[reportCallIssue, reportArgumentType]
class ServedWorker:
    def __init__(self, kind: EngineKind, setup: EngineSetup, most_restarts: int) -> None:
        self._served = Served(partial(kind.open, setup), most_restarts)

    def pid(self) -> int:
        return stacks.answer()

    async def start(self) -> None:
        self._served.start()

    def stack_files(self) -> dict[int, str]:
        """Process id -> file, of the engine's processes that write their stacks at a signal."""
        return dict(self._served.stack_files)

    async def request(self, request: Request) -> Answer:
        return await self._served.request(request)

    async def stop(self) -> None:
        self._served.stop()


class AskServed:
    """Asks the engines of one model in turn; a request that an engine loses goes to the next one."""

    def __init__(self, engines: Sequence[Any], model: ServedModelConfig) -> None:
        """
        Args:
            engines: handles of ServedWorkers.
        """
        self._engines, self._model = engines, model
        self._numbers = itertools.count()

    async def __call__(self, request: Request) -> Answer:
        """
        Raises:
            TimeoutError: no answer within the model's timeout_s.
            RayError, HybridRLError: no engine answers.
        """
        return await asyncio.wait_for(self._asked(request), self._model.timeout_s)

    async def _asked(self, request: Request) -> Answer:
        for tries in itertools.count(1):
            try:
                return await self._engines[next(self._numbers) % len(self._engines)].request.remote(request)
            except (RayError, HybridRLError) as error:
                if tries == _TRIES or not _is_loss(error):
                    raise
                await asyncio.sleep(_PAUSE_S)  # Ray starts a worker again
        raise AssertionError("the loop above ends")


def _is_loss(error: BaseException) -> bool:
    """Whether an engine or its worker is gone, rather than that it refused the request."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, EngineLostError)
    return isinstance(error, (RayError, EngineLostError))
