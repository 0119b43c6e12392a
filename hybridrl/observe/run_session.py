"""One session of a run, from a start to its end or failure, and the files that it leaves: metrics.jsonl,
summary.json, and what its sinks make of the same. What it trains on makes no difference here."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hybridrl.config.files import atomic_write_json
from hybridrl.config.schema import Config
from hybridrl.config.secrets import masked
from hybridrl.config.sft_rm import SupervisedConfig
from hybridrl.observe.clock import Clock
from hybridrl.observe.doing import Doing
from hybridrl.observe.jsonl import JsonLines, read
from hybridrl.observe.names import safe
from hybridrl.observe.record import Kind, Record
from hybridrl.observe.sink import SinkRun, load_sinks
from hybridrl.observe.sink_thread import SinkThreads
from hybridrl.observe.summary import SUMMARY_FILE, versions
from hybridrl.observe.terminal import Terminal

METRICS_FILE = "metrics.jsonl"

_AFTER_STEP = {"testing", "save_checkpoint", "inspect", "export"}
"""Spans that follow a step which is published already."""

WHY_FILE = "why.txt"
"""What a run was doing when it failed; launch/autopsy.py writes it."""
WHY_BEFORE_FILE = "why.before.txt"
"""The same of the last failure from which the run went on."""


class Session:
    """A context: leaving it closes every sink, and tells it how the session ended."""

    def __init__(
        self, cfg: Config | SupervisedConfig, terminal: Terminal, *, resume_step: int | None
    ) -> None:
        """Opens the files of the run folder, which exists already; sinks start up in threads meanwhile.

        Args:
            resume_step: update of the checkpoint from which the run is resumed; None: a new run.

        Raises:
            RunFolderError: the run is new, but its folder has metrics already.
            ConfigError, UserCodeError: a sink cannot be made as the config says.
        """
        self.terminal, self._run, self._since = terminal, cfg.run, time.perf_counter()
        self.folder = Path(cfg.run.folder) / cfg.run.name
        self._first_step, self._clock = resume_step or 0, Clock()
        self._stopped_by: str | None = None
        self._lines = JsonLines(self.folder / METRICS_FILE, resume_step=resume_step, warn=terminal.warn)
        self._before_s = max((record.wall_s for record in self._records()), default=0.0)
        config = masked(cfg.model_dump(mode="json", by_alias=True))
        run = SinkRun(folder=self.folder.resolve(), resume_step=resume_step, config=config)
        self._sinks = SinkThreads(load_sinks(cfg.observe.sinks), run, terminal.warn)
        self._step_done, self._failed_in = self._first_step, list[tuple[str, float]]()
        if (self.folder / WHY_FILE).exists():
            (self.folder / WHY_FILE).replace(self.folder / WHY_BEFORE_FILE)
        self._doing = Doing(self.folder, lambda: self.running, lambda: self.step_now, lambda: self._step_done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = self._stopped_by is not None or (kind is not None and not issubclass(kind, Exception))
        self._doing.close("finished" if kind is None else "interrupted" if interrupted else _named(error))
        self._lines.close()
        self._sinks.close("KILLED" if interrupted else "FAILED" if kind else "FINISHED")

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the time spent inside to timing_s/<name> of the current step."""
        self._begin()
        with self._clock.span(name):
            try:
                yield
            except BaseException:
                self._failed_in = self._failed_in or self._clock.running  # the spans around this one end too
                raise

    @property
    def running(self) -> list[tuple[str, float]]:
        """Open spans and their age in seconds, the oldest first; after an error, those that it went through.
        It may be read from any thread."""
        return self._failed_in or self._clock.running

    @property
    def step_now(self) -> int:
        """The step that the run works on; evaluation and checkpoint are of the step before them."""
        names = {name for name, _ in self.running}
        return self._step_done + (not names or not names <= _AFTER_STEP)

    def note(self) -> None:
        """Write down what the run is doing now, for whoever reads that next."""
        self._doing.note()

    def give_up(self, end: str) -> None:
        """Write down how the run ends, before its process is ended without anything else. Any thread may call
        it."""
        self._doing.close(end)

    def keep(self, path: Path) -> None:
        """Let every sink keep a file of the run folder as well."""
        self._sinks.keep(path)

    def _publish(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> Record:
        named = {safe(name): float(value) for name, value in metrics.items()}
        wall_s = self._before_s + self._here_s()
        self._step_done = step if kind == "step" else self._step_done
        record = Record(kind=kind, step=step, time=time.time(), wall_s=wall_s, metrics=named)
        if self._lines.write(record):
            self._sinks.write(record)
        return record

    def _begin(self) -> None:
        """A hook that is called when a span is entered."""

    def _here_s(self) -> float:
        """Seconds of training in this session."""
        return time.perf_counter() - self._since

    def _records(self) -> list[Record]:
        """All records of the run, of earlier sessions too."""
        return read(self.folder / METRICS_FILE)

    def _end(self, summary: Mapping[str, Any], stopped_by: str | None) -> dict[str, Any]:
        """Write summary.json.

        Args:
            stopped_by: the signal that the run stopped at; None: it came to its end.

        Returns:
            What the file holds: the summary, and the entries that every run has.
        """
        self._stopped_by = stopped_by
        of_every_run = {"stopped_by": stopped_by, "seed": self._run.seed, "versions": versions()}
        whole = {**summary, **of_every_run}
        atomic_write_json(self.folder / SUMMARY_FILE, whole)
        self.keep(self.folder / SUMMARY_FILE)
        return whole

    def _left(self, files: Mapping[str, str]) -> dict[str, str]:
        """Label -> place of the curve (if it can be drawn), of `files`, and of the metrics."""
        # Imported here: matplotlib takes a second, for which the start of a run should not wait.
        from hybridrl.observe.curve import draw

        curve = draw(self.folder)
        if curve:
            self.keep(curve)
        views = self._sinks.views(self.folder) or {"metrics": str(self.folder / METRICS_FILE)}
        if len(views) == 1:
            views = {"metrics": next(iter(views.values()))}
        return ({"curve": str(curve)} if curve else {}) | dict(files) | views


def _named(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]
