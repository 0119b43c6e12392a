"""Plants the faults of `hybridrl launch --inject` around what a worker calls: an engine, a policy, a scorer,
the observer of the driver. A run without the option calls them directly.

A worker takes its faults with `plant` before it starts.
"""

import asyncio
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.faults import Fault, Planted
from hybridrl.rollout.base import Answer, Engine, Request
from hybridrl.types import PolicyVersion, StepReport

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_LASTING = (*_SIGNALS, "hang", "slow", "pause")


def around_engine(engine: Engine, faults: Sequence[Fault]) -> Any:
    return FaultyEngine(engine, faults) if faults else engine


def around_policy(policy: Any, faults: Sequence[Fault]) -> Any:
    return FaultyPolicy(policy, faults) if faults else policy


def around_observer(observe: Any, faults: Sequence[Fault], start_step: int) -> Any:
    return FaultyObserver(observe, faults, start_step) if faults else observe


class _Around:
    """Everything that is not replaced is the inner object's."""

    def __init__(self, inner: Any, faults: Sequence[Fault]) -> None:
        self._inner, self._planted = inner, Planted(faults)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _happen(self, phase: str, step: int) -> None:
        """Let a fault of this process happen if it is due."""
        if fault := self._planted.due(phase, step, _LASTING):
            _happen(fault)


class FaultyEngine(_Around):
    """An engine with faults. A signal goes to all processes of the engine, or to this one if it has none."""

    _target: PolicyVersion = -1

    async def request(self, request: Request) -> Answer:
        step = self._step
        answer = await self._inner.request(request)
        await self._happen_to_engine("generate", step)
        return answer

    async def generate(self, prompts: Any, sampling: Any) -> Any:
        step = self._step
        found = await self._inner.generate(prompts, sampling)
        await self._happen_to_engine("generate", step)
        return found

    async def begin_swap(self, version: PolicyVersion) -> None:
        self._target = version
        await self._inner.begin_swap(version)
        await self._happen_to_engine("swap", version)

    async def checksums(self) -> list[dict[str, int]]:
        found = await self._inner.checksums()
        if self._planted.due("swap", self._target, ("bad_checksum",)):
            name = next(iter(found[0]))
            found[0][name] ^= 1
        return found

    @property
    def _step(self) -> int:
        """The step that trains the weights which the engine serves."""
        version = self._inner.session.version
        return 0 if version is None else version + 1

    async def _happen_to_engine(self, phase: str, step: int) -> None:
        fault = self._planted.due(phase, step, _LASTING)
        if fault is None:
            return
        if number := _SIGNALS.get(fault.kind):
            own = getattr(self._inner, "process_ids", ()) if fault.target == "engine" else ()
            for pid in own or (os.getpid(),):
                os.kill(pid, number)
        elif fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
        elif fault.kind == "pause":
            await self._inner.pause()
        else:
            await asyncio.Event().wait()


class FaultyPolicy(_Around):
    """The policy of a trainer rank, with faults."""

    _step = 0

    def measure(self, batch: RankBatch) -> dict[str, float]:
        self._step = batch.step
        self._happen("load", batch.step)
        if self._planted.due("update", batch.step, ("nan",)):
            batch = _without_numbers(batch)
        return self._inner.measure(batch)

    def step(self, index: int) -> StepReport:
        self._happen("update", self._step)
        if self._planted.due("update", self._step, ("skip",)):
            return StepReport(self._step, 0.0, 0.0, 0.0, {})
        return self._inner.step(index)

    def tensors(self) -> Any:
        self._happen("swap", self._step)
        return self._inner.tensors()

    def save(
        self,
        folder: Path,
        facts: Mapping[str, Any] | None = None,
        export: Path | None = None,
        more: Callable[[Path], None] | None = None,
    ) -> None:
        self._happen("save", self._step)
        full = self._planted.due("save", self._step, ("disk_full",))
        self._inner.save(folder, facts, export, _no_room if full else more)


def before_scores(faults: Planted, block: TokenBlock) -> None:
    """Let a fault of this reward worker happen if it is due when this block is to be scored."""
    if fault := faults.due("reward", int(block.column("version").max(initial=0)) + 1):
        _happen(fault)


class FaultyObserver(_Around):
    """The observer of the driver, whose spans say what the driver does."""

    _PHASES: Mapping[str, str] = {
        "wait_for_batch": "generate",
        "update_actor": "update",
        "update_weights": "swap",
        "save_checkpoint": "save",
    }

    def __init__(self, inner: Any, faults: Sequence[Fault], start_step: int) -> None:
        super().__init__(inner, faults)
        self._step = start_step

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self._step += name == "step"
        with self._inner.span(name):
            if name in self._PHASES:
                self._happen(self._PHASES[name], self._step)
            yield


def _happen(fault: Fault) -> None:
    if number := _SIGNALS.get(fault.kind):
        os.kill(os.getpid(), number)
    elif fault.kind == "slow":
        time.sleep(fault.seconds)
    else:
        threading.Event().wait()


def _without_numbers(batch: RankBatch) -> RankBatch:
    """The batch with NaN where the loss gets its weights from."""
    if batch.advantage_N is None:
        return replace(batch, reward_N=np.full_like(batch.reward_N, np.nan))
    return replace(batch, advantage_N=np.full_like(batch.advantage_N, np.nan))


def _no_room(folder: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
