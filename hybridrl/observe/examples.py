"""The observer of training on examples: lines for a person, metrics.jsonl, sinks, a curve of the loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from hybridrl.batch import Batch
from hybridrl.config.sft_rm import SupervisedConfig
from hybridrl.observe.metrics import memory_metrics
from hybridrl.observe.run_session import Session
from hybridrl.observe.summary import end_lines
from hybridrl.observe.terminal import Terminal
from hybridrl.observe.units import duration
from hybridrl.types import StepReport
from hybridrl.wording import counted

_SHOWN = {"loss": "{:.4f}", "accuracy": "{:.3f}", "reward_gap": "{:+.3f}"}


class ExampleRunObserver(Session):
    """Observes one session of a run."""

    def __init__(self, cfg: SupervisedConfig, terminal: Terminal, *, resume_step: int | None) -> None:
        """The arguments and errors are those of Session."""
        super().__init__(cfg, terminal, resume_step=resume_step)
        self._stepping_s = 0.0

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
        steps = self._run.steps
        if report.version % max(1, steps // 20) == 0 or report.version in (self._first_step + 1, steps):
            speed = f"{metrics['perf/throughput']:,.0f} tokens/s"
            self._say(
                report.version,
                "train",
                metrics,
                f"lr {report.lr:.1e}   {speed}   {self._eta(report.version)}",
            )

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Publish the metrics of the held-out examples."""
        spent_s = self._clock.take_one("testing")
        spent = {"timing_s/testing": spent_s} if spent_s else {}
        self._publish("evaluation", step, {**metrics, **spent})
        self._say(step, "val", metrics, "held out")

    def finish(
        self,
        files: Mapping[str, str],
        following: Sequence[tuple[str, str]] = (),
        facts: Mapping[str, Any] | None = None,
        stopped_by: str | None = None,
    ) -> dict[str, Any]:
        """The run has ended or was stopped: draw the curve, write summary.json, print where the files are.

        Args: those of RunObserver.finish.

        Returns:
            What summary.json holds.
        """
        records = self._records()
        heldout = [r.metrics["val/loss"] for r in records if "val/loss" in r.metrics]
        steps = [r for r in records if r.kind == "step"]
        found = {
            "steps": steps[-1].step if steps else 0,
            "train_wall_s": steps[-1].wall_s if steps else 0.0,
            "train_loss": steps[-1].metrics["train/loss"] if steps else None,
            "heldout_before": heldout[0] if heldout else None,
            "heldout_after": heldout[-1] if heldout else None,
            "tokens": int(sum(r.metrics["perf/total_num_tokens"] for r in steps)),
        }
        summary = self._end({**found, **(facts or {})}, stopped_by)
        took = f"{counted(summary['steps'], 'step')}, {duration(summary['train_wall_s'])}"
        moved = f"held-out loss {heldout[0]:.4f} -> {heldout[-1]:.4f} in " if heldout else "done in "
        for line in end_lines(summary, [moved + took], self._left(files), following):
            self.terminal.line(line)
        return summary

    def _say(self, step: int, prefix: str, metrics: Mapping[str, float], rest: str) -> None:
        found = [
            f"{n} {form.format(metrics[f'{prefix}/{n}'])}"
            for n, form in _SHOWN.items()
            if f"{prefix}/{n}" in metrics
        ]
        self.terminal.line(f"  {step:>6}/{self._run.steps}   {'   '.join(found)}   {rest}")

    def _eta(self, step: int) -> str:
        each_s = self._stepping_s / (step - self._first_step)
        left = self._run.steps - step
        return f"eta {duration(each_s * left)}" if left else ""
