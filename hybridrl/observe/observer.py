"""The Observer role: turns what the loop tells into records, and gives them to the sinks of the run."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hybridrl.batch import Batch, Minibatch
from hybridrl.config.schema import Config
from hybridrl.observe.clock import Clock
from hybridrl.observe.files import atomic_write_json
from hybridrl.observe.jsonl import JsonLines, read
from hybridrl.observe.metrics import Limits, balance_metrics, memory_metrics, step_metrics
from hybridrl.observe.mlflow_sink import MlflowSink, Status, store_uri
from hybridrl.observe.names import safe
from hybridrl.observe.record import Kind, Record
from hybridrl.observe.samples import SampleFile, samples_of
from hybridrl.observe.summary import SUMMARY_FILE, closing_lines, summarise, versions
from hybridrl.observe.terminal import Terminal
from hybridrl.types import StepReport, SwapReport

METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.txt"


class RunObserver:
    """Of one session of a run. Use it as a context: leaving it ends the live view and closes every sink.

    Training time begins with the first span after the first evaluation; of a resumed run, with the first.
    """

    def __init__(self, cfg: Config, terminal: Terminal, *, resume_step: int | None, num_devices: int) -> None:
        """Opens the files of the run folder, which exists already; MLflow starts up in a thread meanwhile.

        Args:
            resume_step: policy updates of the checkpoint that the run goes on from; None: a new run.
            num_devices: GPUs that share the work; 1 on a machine without.

        Raises:
            RunFolderError: a new run, and its folder has metrics already.
        """
        self.terminal, self._cfg = terminal, cfg
        self.folder = Path(cfg.run.folder) / cfg.run.name
        self._limits = Limits(max_prompt_tokens=cfg.rollout.max_prompt_tokens, num_devices=num_devices)
        self._first_step = resume_step or 0
        self._clock = Clock()
        self._live = self._stepped = False
        self._warned: set[str] = set()
        self._stopped_by: str | None = None
        self._zero_or_one = True  # every reward so far: then their mean is an accuracy
        self._wall_since: float | None = None
        self._lines = JsonLines(self.folder / METRICS_FILE, resume_step=resume_step, warn=terminal.warn)
        self._samples = SampleFile(self.folder / SAMPLES_FILE, resume_step=resume_step)
        self._wall_before_s = max((r.wall_s for r in read(self.folder / METRICS_FILE)), default=0.0)
        self._mlflow = self._open_mlflow(resume_step is not None) if cfg.run.mlflow else None

    def __enter__(self) -> "RunObserver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        interrupted = self._stopped_by is not None or (kind is not None and not issubclass(kind, Exception))
        self._close("KILLED" if interrupted else "FAILED" if kind else "FINISHED")

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self._begin()
        with self._clock.span(name):
            yield

    def step(
        self,
        step: int,
        batch: Batch,
        reports: Sequence[StepReport],
        swap: SwapReport,
        metrics: Mapping[str, float],
        *,
        minibatches: Sequence[Minibatch] = (),
    ) -> None:
        """Publish policy update `step`; spans since the last call are its timings, open ones up to now.

        Args:
            metrics: what the trainer measured; wins over what is computed here.
            minibatches: how the batch was dealt to ranks; none: nothing is said about their balance.
        """
        self._begin()
        found = step_metrics(batch, reports, swap, self._clock.take(), self._limits)
        balance = balance_metrics(batch, minibatches) if minibatches else {}
        record = self._record("step", step, {**found, **balance, **memory_metrics(), **metrics})
        self._publish(record)
        self.terminal.step(record)
        samples = samples_of(batch, self._cfg.data.prompt_field)
        if samples:
            self._samples.write(step, samples)
            self.terminal.sample(samples[0])
        self._stepped = True
        self._zero_or_one &= bool(np.isin(batch.score_N, (0.0, 1.0)).all())

    def warn(self, about: str, text: str) -> None:
        """Show a person something suspicious, the first time for each thing that it is about."""
        if about not in self._warned:
            self._warned.add(about)
            self.terminal.warn(text)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Publish a held-out evaluation, and end the span "testing" with it."""
        self._begin()
        testing_s = self._clock.take_one("testing")
        spent = {} if testing_s is None else {"timing_s/testing": testing_s}
        record = self._record("evaluation", step, {**metrics, **spent})
        self._publish(record)
        self.terminal.evaluation(record)
        if not self._stepped:
            self._wall_since = None

    def keep(self, path: Path) -> None:
        """Keep a file of the run folder with the MLflow run as well."""
        if self._mlflow:
            self._mlflow.keep(path)

    def finish(
        self,
        files: Mapping[str, str],
        following: Sequence[tuple[str, str]],
        facts: Mapping[str, Any] | None = None,
        stopped_by: str | None = None,
    ) -> dict[str, Any]:
        """The run came to its end, or to a stop: draw the curve, write summary.json, tell the result.

        Args:
            files: what else the run has left, as {"model": "runs/a/export/"}.
            following: commands to go on with, and what each is for.
            facts: what summary.json shall say besides, as {"machine": {"cores": 2}}.
            stopped_by: the signal that the run stopped at; None: it came to its end.

        Returns:
            What summary.json holds.
        """
        self._end_live()
        self._stopped_by = stopped_by
        summary = {
            **summarise(read(self.folder / METRICS_FILE), self._clock.take()),
            "stopped_by": stopped_by,
            "seed": self._cfg.run.seed,
            "num_devices": self._limits.num_devices,
            "versions": versions(),
            **(facts or {}),
        }
        atomic_write_json(self.folder / SUMMARY_FILE, summary)
        self.keep(self.folder / SUMMARY_FILE)
        reward_word = "accuracy" if self._stepped and self._zero_or_one else "reward"
        samples = {"samples": str(self.folder / SAMPLES_FILE)}
        left = self._drawn() | dict(files) | samples | self._metrics_place()
        self.terminal.line()
        for line in closing_lines(summary, reward_word, left, following):
            self.terminal.line(line)
        return summary

    def _begin(self) -> None:
        if self._wall_since is None:
            self._wall_since = time.perf_counter()
        if not self._live:
            self._live = True
            self.terminal.begin(self._first_step, self._cfg.run.steps, lambda: self._clock.running)

    def _record(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> Record:
        here_s = time.perf_counter() - self._wall_since if self._wall_since is not None else 0.0
        named = {safe(name): float(value) for name, value in metrics.items()}
        return Record(
            kind=kind, step=step, time=time.time(), wall_s=self._wall_before_s + here_s, metrics=named
        )

    def _publish(self, record: Record) -> None:
        self._lines.write(record)
        if self._mlflow:
            self._mlflow.write(record)

    def _open_mlflow(self, resume: bool) -> MlflowSink:
        params = self._cfg.model_dump(mode="json", by_alias=True)
        return MlflowSink(self.folder, resume=resume, params=params, warn=self.terminal.warn)

    def _drawn(self) -> dict[str, str]:
        # imported here: matplotlib takes a second, which no run should begin with
        from hybridrl.observe.curve import draw

        path = draw(self.folder)
        if path is None:
            return {}
        self.keep(path)
        return {"curve": str(path)}

    def _metrics_place(self) -> dict[str, str]:
        if self._mlflow is None:
            return {"metrics": str(self.folder / METRICS_FILE)}
        return {"metrics": f"mlflow ui --backend-store-uri {store_uri(Path(self._cfg.run.folder))}"}

    def _end_live(self) -> None:
        if self._live:
            self._live = False
            self.terminal.end()

    def _close(self, status: Status) -> None:
        self._end_live()
        self._lines.close()
        self._samples.close()
        if self._mlflow:
            self._mlflow.close(status)
