"""The observer of training on examples: lines for a person, metrics.jsonl, MLflow, a curve of the loss."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybridrl.batch import Batch
from hybridrl.config.supervised import SupervisedConfig
from hybridrl.observe.clock import Clock
from hybridrl.observe.curve import LOSS, draw
from hybridrl.observe.files import atomic_write_json
from hybridrl.observe.jsonl import JsonLines, read
from hybridrl.observe.metrics import memory_metrics
from hybridrl.observe.mlflow_sink import MlflowSink, store_uri
from hybridrl.observe.names import safe
from hybridrl.observe.record import Kind, Record
from hybridrl.observe.summary import SUMMARY_FILE, versions
from hybridrl.observe.terminal import Terminal
from hybridrl.observe.units import duration
from hybridrl.types import StepReport

METRICS_FILE = "metrics.jsonl"
_SHOWN = {"loss": "{:.4f}", "accuracy": "{:.3f}", "reward_gap": "{:+.3f}"}


class ExampleRunObserver:
    """Of one session of a run. Use it as a context: leaving it closes every sink."""

    def __init__(self, cfg: SupervisedConfig, terminal: Terminal, *, resume_step: int | None) -> None:
        """
        Args:
            resume_step: updates of the checkpoint that the run goes on from; None: a new run.

        Raises:
            RunFolderError: a new run, and its folder has metrics already.
        """
        self.terminal, self._cfg = terminal, cfg
        self.folder = Path(cfg.run.folder) / cfg.run.name
        self._clock, self._since = Clock(), time.perf_counter()
        self._lines = JsonLines(self.folder / METRICS_FILE, resume_step=resume_step, warn=terminal.warn)
        self._before_s = max((r.wall_s for r in read(self.folder / METRICS_FILE)), default=0.0)
        self._mlflow = self._open_mlflow(resume_step is not None) if cfg.run.mlflow else None
        self._first_step, self._stepping_s, self._finished = resume_step or 0, 0.0, False

    def __enter__(self) -> "ExampleRunObserver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        failed = kind is not None and issubclass(kind, Exception)
        self._lines.close()
        if self._mlflow:
            self._mlflow.close("FAILED" if failed else "FINISHED" if self._finished else "KILLED")

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        with self._clock.span(name):
            yield

    def step(self, report: StepReport, batch: Batch) -> None:
        """Publish update `report.version`; the spans since the last call are its timings."""
        spent_s = self._clock.take()
        self._stepping_s += spent_s["step"]
        tokens = float(batch.length_N.sum())
        metrics = {
            **report.metrics,
            "train/grad_norm": report.grad_norm,
            "train/lr": report.lr,
            "train/learnt_tokens": float(batch.trained_N.sum()),
            "perf/total_num_tokens": tokens,
            "perf/throughput": tokens / spent_s["step"],
            **{f"timing_s/{name}": seconds for name, seconds in spent_s.items()},
            **memory_metrics(),
        }
        self._publish("step", report.version, metrics)
        steps = self._cfg.run.steps
        if report.version % max(1, steps // 20) == 0 or report.version in (self._first_step + 1, steps):
            speed = f"{metrics['perf/throughput']:,.0f} tokens/s"
            self._say(
                report.version,
                "train",
                metrics,
                f"lr {report.lr:.1e}   {speed}   {self._eta(report.version)}",
            )

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Publish what was found on the held-out examples."""
        spent_s = self._clock.take_one("testing")
        self._publish("evaluation", step, {**metrics, **({"timing_s/testing": spent_s} if spent_s else {})})
        self._say(step, "val", metrics, "held out")

    def finish(self, model: str | None, *, stopped_by: str | None, facts: Mapping[str, Any]) -> None:
        """Draw the curve, write summary.json, tell what lies where.

        Args:
            model: where the exported model is.
            stopped_by: the signal that the run stopped at; None: it came to its end.
            facts: what summary.json shall say besides.
        """
        records = read(self.folder / METRICS_FILE)
        heldout = [r.metrics["val/loss"] for r in records if "val/loss" in r.metrics]
        steps = [r for r in records if r.kind == "step"]
        summary = {
            "steps": steps[-1].step if steps else 0,
            "train_wall_s": steps[-1].wall_s if steps else 0.0,
            "train_loss": steps[-1].metrics["train/loss"] if steps else None,
            "heldout_before": heldout[0] if heldout else None,
            "heldout_after": heldout[-1] if heldout else None,
            "tokens": int(sum(r.metrics["perf/total_num_tokens"] for r in steps)),
            "stopped_by": stopped_by,
            "seed": self._cfg.run.seed,
            "versions": versions(),
            **facts,
        }
        atomic_write_json(self.folder / SUMMARY_FILE, summary)
        curve = draw(self.folder, LOSS)
        self._finished = stopped_by is None
        took = f"{summary['steps']} steps, {duration(summary['train_wall_s'])}"
        if stopped_by:
            self.terminal.line(f"stopped at step {summary['steps']} by {stopped_by}, --resume continues")
        moved = f"held-out loss {heldout[0]:.4f} -> {heldout[-1]:.4f} in " if heldout else "done in "
        self.terminal.line(moved + took)
        left = {"curve": curve, "model": model, "metrics": self._metrics_place()}
        for label, place in left.items():
            if place:
                self.terminal.line(f"  {label:<8} {place}")

    def _publish(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> None:
        wall_s = self._before_s + time.perf_counter() - self._since
        named = {safe(name): float(value) for name, value in metrics.items()}
        record = Record(kind=kind, step=step, time=time.time(), wall_s=wall_s, metrics=named)
        self._lines.write(record)
        if self._mlflow:
            self._mlflow.write(record)

    def _say(self, step: int, prefix: str, metrics: Mapping[str, float], rest: str) -> None:
        found = [
            f"{n} {form.format(metrics[f'{prefix}/{n}'])}"
            for n, form in _SHOWN.items()
            if f"{prefix}/{n}" in metrics
        ]
        self.terminal.line(f"  {step:>6}/{self._cfg.run.steps}   {'   '.join(found)}   {rest}")

    def _eta(self, step: int) -> str:
        each_s = self._stepping_s / (step - self._first_step)
        left = self._cfg.run.steps - step
        return f"eta {duration(each_s * left)}" if left else ""

    def _open_mlflow(self, resume: bool) -> MlflowSink:
        params = self._cfg.model_dump(mode="json", by_alias=True)
        return MlflowSink(self.folder, resume=resume, params=params, warn=self.terminal.warn)

    def _metrics_place(self) -> str:
        if self._mlflow is None:
            return str(self.folder / METRICS_FILE)
        return f"mlflow ui --backend-store-uri {store_uri(Path(self._cfg.run.folder))}"
