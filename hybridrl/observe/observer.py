"""The Observer role: turns what the loop reports into records, and gives them to the sinks of the run."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from hybridrl.batch import Batch, Minibatch
from hybridrl.config.schema import Config
from hybridrl.observe.metrics import Limits, balance_metrics, memory_metrics, step_metrics
from hybridrl.observe.rollouts import ROLLOUTS_FILE, Pieces, RolloutFile, as_numbers, rollout_of
from hybridrl.observe.run_session import Session
from hybridrl.observe.samples import Columns, SampleFile, heldout_samples, samples_of
from hybridrl.observe.summary import closing_lines, summarise
from hybridrl.observe.terminal import Terminal
from hybridrl.types import Group, InspectedTrajectory, StepReport, SwapReport

SAMPLES_FILE = "samples.txt"


class RunObserver(Session):
    """Observes one session of a run. Use it as a context: leaving it ends the live view and closes every
    sink.

    Training time begins with the first span after the first evaluation; in a resumed run, with the first
    span.
    """

    def __init__(
        self,
        cfg: Config,
        terminal: Terminal,
        *,
        resume_step: int | None,
        num_devices: int,
        pieces: Pieces = as_numbers,
    ) -> None:
        """The other arguments, and errors, are those of Session.

        Args:
            num_devices: GPUs that share the work; 1 on a machine without GPUs.
            pieces: the text of each of some token ids.
        """
        super().__init__(cfg, terminal, resume_step=resume_step)
        self._columns = Columns(cfg.data.prompt_field, cfg.reward.answer_field)
        self._num_devices = num_devices
        self._limits = Limits(max_prompt_tokens=cfg.rollout.max_prompt_tokens, num_devices=num_devices)
        self._live = self._stepped = False
        self._warned: set[str] = set()
        self._zero_or_one = True  # every reward so far: their mean is then an accuracy
        self._wall_since: float | None = None
        self._samples = SampleFile(self.folder / SAMPLES_FILE, resume_step=resume_step)
        self._rollouts = RolloutFile(self.folder / ROLLOUTS_FILE, resume_step=resume_step)
        self._pieces = pieces

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_live()
        self._samples.close()
        super().__exit__(kind, error, trace)

    def step(
        self,
        step: int,
        batch: Batch,
        reports: Sequence[StepReport],
        swap: SwapReport | None,
        metrics: Mapping[str, float],
        *,
        minibatches: Sequence[Minibatch] = (),
    ) -> None:
        """Publish policy update `step`; the spans since the last call are its timings, and open spans count
        up to now.

        Args:
            swap: None: the weights of the update were not pushed.
            metrics: what the trainer measured; it replaces what is computed here.
            minibatches: how the batch was partitioned over ranks; empty: there are no metrics of the balance.
        """
        self._begin()
        found = step_metrics(batch, reports, swap, self._clock.take(), self._limits)
        balance = balance_metrics(batch, minibatches) if minibatches else {}
        record = self._publish("step", step, {**found, **balance, **memory_metrics(), **metrics})
        self.terminal.step(record)
        samples = samples_of(batch, self._columns)
        if samples:
            self._samples.write(step, samples)
            self.terminal.sample(samples[0])
        self._stepped = True
        self._zero_or_one &= bool(np.isin(batch.score_N, (0.0, 1.0)).all())

    def rollouts(
        self, batch: Batch, found: Sequence[InspectedTrajectory], why: Mapping[int, Sequence[str]]
    ) -> None:
        """Write trajectories of a step to rollouts.jsonl, token by token.

        Args:
            why: by index in the batch, why a trajectory is worth reading.
        """
        trajectories = list(batch.trajectories)
        self._rollouts.write(
            [
                rollout_of(
                    batch,
                    one,
                    trajectories[one.index],
                    prompt=batch.groups[int(batch.group_N[one.index])].prompt,
                    columns=self._columns,
                    why=[*why.get(one.index, ()), *(["suspicious"] if one.suspicious else [])],
                    pieces=self._pieces,
                )
                for one in found
            ]
        )

    def warn(self, about: str, text: str) -> None:
        """Warn the user of something suspicious, the first time for each value of `about`."""
        if about not in self._warned:
            self._warned.add(about)
            self.terminal.warn(text)

    def heldout(self, step: int, groups: Sequence[Group]) -> None:
        """Write down the answers to held-out prompts that were kept as text."""
        self._samples.write(step, heldout_samples(groups, self._columns))

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Publish a held-out evaluation, and end the span "testing" with it."""
        self._begin()
        testing_s = self._clock.take_one("testing")
        spent = {} if testing_s is None else {"timing_s/testing": testing_s}
        record = self._publish("evaluation", step, {**metrics, **spent})
        self.terminal.evaluation(record)
        if not self._stepped:
            self._wall_since = None

    def finish(
        self,
        files: Mapping[str, str],
        following: Sequence[tuple[str, str]],
        facts: Mapping[str, Any] | None = None,
        stopped_by: str | None = None,
    ) -> dict[str, Any]:
        """The run has ended or was stopped: draw the curve, write summary.json, print the result.

        Args:
            files: further files that the run leaves, as {"model": "runs/a/export/"}.
            following: commands to go on with, and the purpose of each.
            facts: further entries of summary.json, as {"machine": {"cores": 2}}.
            stopped_by: the signal that the run stopped at; None: it came to its end.

        Returns:
            What summary.json holds.
        """
        self._end_live()
        found = summarise(self._records(), self._clock.take())
        summary = self._end({**found, "num_devices": self._num_devices, **(facts or {})}, stopped_by)
        reward_word = "accuracy" if self._stepped and self._zero_or_one else "reward"
        left = self._left({**files, "samples": str(self.folder / SAMPLES_FILE)})
        self.terminal.line()
        for line in closing_lines(summary, reward_word, left, following):
            self.terminal.line(line)
        return summary

    def _begin(self) -> None:
        if not self._live:
            self._live = True
            self.terminal.begin(self._first_step, self._run.steps, lambda: self._clock.running)
        if self._wall_since is None:
            self._wall_since = time.perf_counter()

    def _here_s(self) -> float:
        return time.perf_counter() - self._wall_since if self._wall_since is not None else 0.0

    def _end_live(self) -> None:
        if self._live:
            self._live = False
            self.terminal.end()
