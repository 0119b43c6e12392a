"""A run from Python: `hybridrl.open("my.yaml")`."""

import atexit
import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hybridrl.config.load import load
from hybridrl.config.schema import Config
from hybridrl.controller.goodput import Goodput
from hybridrl.controller.roles import Roles
from hybridrl.controller.verbs import TrainedStep, Verbs
from hybridrl.launch import start
from hybridrl.launch.local import RLRun
from hybridrl.launch.stop import StopRequest
from hybridrl.library.run_thread import RunThread
from hybridrl.observe.metrics import Limits, group_metrics, length_metrics, reward_metrics, update_metrics
from hybridrl.observe.terminal import Terminal
from hybridrl.types import Group, Prompt, SwapReport
from hybridrl.workers.trainer import RayTrainer

_REQUEST: dict[str, Any] = {"on": "local", "dry_run": False, "submit": False, "wait": False}


def open_run(config: str | Path, changes: Mapping[str, Any], *, resume: bool, quiet: bool) -> "Run":
    """Check a config and start its run; returns once the workers are up. See hybridrl.open."""
    loaded = load(config, list(overrides_of(changes)))
    terminal = QuietTerminal() if quiet else Terminal()
    request = start.Request(**_REQUEST, resume="required" if resume else "never")

    def enter() -> RLRun:
        checked = start.checked(loaded, request, terminal.say)
        return RLRun(checked, terminal, NoSignals(terminal.warn), on="local", resume=request.resume)

    with loaded.located():
        return Run(RunThread(enter, lambda run: run.workers()))


class Run:
    """A run that goes on until it is closed. Use it as a context, or call close().

    Its verbs are those of controller/verbs.py. They may be called from any thread; one waits for the other.
    """

    def __init__(self, thread: RunThread[RLRun, tuple[RayTrainer, Roles]]) -> None:
        """
        Raises:
            HybridRLError: what `hybridrl launch` refuses or fails at.
        """
        self._thread = thread
        self._run, (self._trainer, self._roles) = thread.open()
        self._verbs = Verbs(self._run.cfg, self._roles)
        self._goodput, self._open_step = Goodput(), contextlib.ExitStack()
        self._unpublished: TrainedStep | None = None
        self._is_stepping = False
        self._thread.call(self._begin)
        atexit.register(self.close)

    @property
    def config(self) -> Config:
        """The config, with every default."""
        return self._run.cfg

    @property
    def folder(self) -> Path:
        """The folder of the run, with what a run of `hybridrl launch` leaves there."""
        return self._run.files.folder

    @property
    def step(self) -> int:
        """Policy updates that are done."""
        return self._verbs.version

    def prompts(self, count: int | None = None) -> list[Prompt]:
        """The next training prompts; by default those of one step."""
        return self._verbs.prompts(count)

    def sample(self, prompts: Sequence[Prompt]) -> list[Group]:
        """Answers of the policy that was pushed last: one group per prompt, in order."""

        async def sample() -> list[Group]:
            self._enter_step()
            return await self._verbs.sample(prompts)

        return self._thread.call(sample)

    def score(self, groups: Sequence[Group]) -> None:
        """Give every answer its reward by the config, in place; or set Trajectory.reward yourself."""
        self._thread.call(lambda: self._verbs.score(groups))

    def train_step(self, groups: Sequence[Group]) -> dict[str, float]:
        """One policy update on scored groups; returns its metrics, by the names of docs/metrics.md.

        Raises:
            VersionError: the answers are older than batch.max_lag allows: push_weights comes before sample.
        """

        async def train() -> dict[str, float]:
            await self._publish(None)
            self._enter_step()
            trained = await self._verbs.train_step(groups)
            self._goodput.train(trained.batch)
            self._unpublished = trained
            return self._metrics(trained)

        return self._thread.call(train)

    def push_weights(self) -> SwapReport:
        """Put the trainer's weights into every engine; the next sample comes from them."""

        async def push() -> SwapReport:
            swap = await self._verbs.push_weights()
            await self._publish(swap)
            return swap

        return self._thread.call(push)

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics of the weights that were pushed last; {} if the config has no held-out data."""

        async def evaluate() -> dict[str, float]:
            await self._publish(None)
            return await self._verbs.evaluate() or {}

        return self._thread.call(evaluate)

    def save(self) -> None:
        """Write a checkpoint, from which `hybridrl.open(..., resume=True)` and `launch --resume` go on."""

        async def save() -> None:
            await self._publish(None)
            await self._verbs.save()

        self._thread.call(save)

    def export(self) -> Path:
        """Write the policy in Hugging Face format; returns the folder."""

        async def export() -> None:
            shutil.rmtree(self._run.files.export, ignore_errors=True)
            await self._trainer.export(self._run.files.export)

        self._thread.call(export)
        return self._run.files.export

    def fit(self) -> dict[str, Any]:
        """The loop of `hybridrl launch`, from here to run.steps, with its evaluations and checkpoints.

        Returns:
            What summary.json holds.
        """

        async def fit() -> None:
            await self._publish(None)
            await self._run.train(self._roles)

        self._thread.call(fit)
        if self.config.run.export:
            self.export()
        self.close()
        return json.loads((self.folder / "summary.json").read_text("utf-8"))

    def close(self) -> None:
        """End the workers, and write summary, curve and report. A second call does nothing."""
        self._close(finishes=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(finishes=kind is None)

    def _close(self, *, finishes: bool) -> None:
        atexit.unregister(self.close)
        if self._thread.is_closed:
            return

        async def end() -> None:
            await self._publish(None)
            if finishes and self.step:
                self._run.finish()

        try:
            self._thread.call(end)
        finally:
            self._thread.close()

    async def _begin(self) -> None:
        self._run.stop.begin()
        await self._verbs.push_weights()

    def _enter_step(self) -> None:
        """A step begins with the first verb after the last one was published."""
        if not self._is_stepping:
            self._open_step.enter_context(self._roles.observe.span("step"))
            self._is_stepping = True

    async def _publish(self, swap: SwapReport | None) -> None:
        """Write down the step that is trained, if it is not written yet."""
        trained, self._unpublished = self._unpublished, None
        if trained is not None:
            self._open_step.close()
            self._is_stepping = False
            used = self._goodput.report(await self._roles.engine.usage())
            await self._verbs.publish(trained, swap, used)

    def _metrics(self, trained: TrainedStep) -> dict[str, float]:
        limits = Limits(max_prompt_tokens=self.config.rollout.max_prompt_tokens, num_devices=1)
        return {
            **reward_metrics(trained.batch),
            **group_metrics(trained.batch),
            **length_metrics(trained.batch, limits),
            **update_metrics(trained.reports),
            **trained.metrics,
        }


class QuietTerminal(Terminal):
    """Prints nothing; warnings go to Python's logging."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())

    def warn(self, text: str) -> None:
        logging.getLogger("hybridrl").warning(text)


class NoSignals(StopRequest):
    """A stop that nobody asks for: signals are the business of the program that opened the run."""

    def listen(self) -> None:
        """Install nothing."""


def overrides_of(changes: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Nested changes as KEY=VALUE: {"run": {"steps": 50}} is run.steps=50. An empty mapping is a value."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from overrides_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(value)}"
