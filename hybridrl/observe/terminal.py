"""What the user watches: the start of a run, the table, where the run is now, and the end."""

import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TextIO

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hybridrl.observe.progress import Advance, Amount, reported, shown
from hybridrl.observe.record import Record
from hybridrl.observe.samples import Sample, printable, verdict
from hybridrl.observe.screen import open_screen
from hybridrl.observe.slow_phases import SlowPhases
from hybridrl.observe.table import ETA, Layout, Rows
from hybridrl.observe.units import duration

_LABEL_WIDTH = 10
_LEADER_WIDTH = 72
"""Column up to which dots fill a line that ends in a time."""

_WIDEST = 110
_ROWS_PER_HEADER = 20
_PACE_STEPS = 20
"""Number of last steps whose pace gives the remaining time."""

_MARKS = "▁▂▃▄▅▆▇█"

_DOING = {
    "gen": "generating",
    "reward": "scoring",
    "adv": "advantages",
    "old_log_prob": "logprobs",
    "update_actor": "training",
    "update_weights": "swapping weights",
    "testing": "evaluating",
    "save_checkpoint": "saving",
    "export": "exporting",
}
"""Span name -> its name on the screen."""


class Terminal:
    """Prints a run on the terminal. Lines may be printed from any thread, everything else from one."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._screen = open_screen(stream or sys.stdout)
        self._layout: Layout | None = None
        self._rows_since_header = 0
        self._far = ""
        self._slow: SlowPhases | None = None

    def say(self, label: str, text: str) -> None:
        """Print a labelled line: "doctor    2 cores, 23 GiB, no GPU"."""
        self._labelled(label, text)

    def line(self, text: str = "") -> None:
        self._screen.line(text)

    def warn(self, text: str) -> None:
        self._labelled("warning", text, "yellow")

    @contextmanager
    def working(self, label: str, text: str, unit: str = "") -> Iterator[Advance]:
        """Print that something slow has begun, how far it is, and how long it took once it is done.

        Args:
            unit: what is counted, as "workers ready".

        Yields:
            A function that says how far it is.
        """
        amount = Amount(unit)

        def line() -> str:
            took = duration(time.monotonic() - amount.began)
            return f"{label:<{_LABEL_WIDTH}}{text}  {', '.join(filter(None, [str(amount), took]))}"

        with ExitStack() as opened:
            if self._screen.live:
                self._screen.show(lambda: Text(line(), "dim"))
                opened.callback(self._screen.show, None)
            else:
                self.say(label, f"{text} ...")
                opened.enter_context(reported(self._screen, line))
            yield amount.advance
        took = duration(time.monotonic() - amount.began)
        leader = "." * max(3, _LEADER_WIDTH - _LABEL_WIDTH - len(text) - len(took) - 2)
        self.say(label, f"{text} {leader} {took}" if self._screen.live else f"done in {took}")

    def progress(self, label: str, text: str) -> AbstractContextManager[Advance]:
        """Say what goes on inside if it takes long; before the live view begins."""
        return shown(self._screen, label, text)

    def advance(self, done: float, total: float | None = None) -> None:
        """Say how far the phase is that goes on. It may be called from any thread."""
        self._far = f"{done:,.0f} of {total:,.0f}" if total and done < total else ""

    def begin(self, first_step: int, steps: int, doing: Callable[[], Sequence[tuple[str, float]]]) -> None:
        """The run starts: from now on the last lines show where it is.

        Args:
            first_step: policy updates that were done before.
            doing: returns the spans that are open now and their age in seconds; called from any thread.
        """
        self._steps, self._doing, self._rows = steps, doing, Rows(steps)
        self._pace = deque([(first_step, time.time())], maxlen=_PACE_STEPS + 1)
        self._sample: Sample | None = None
        self._rewards: list[float] = []
        self._screen.line("")
        self._screen.show(self._now)
        if not self._screen.live:
            self._slow = SlowPhases(self._slow_phase, self._screen.line)

    def step(self, record: Record) -> None:
        self._print(self._rows.step(record))
        self._pace.append((record.step, record.time))
        self._rewards.append(record.metrics["critic/score/mean"])

    def evaluation(self, record: Record) -> None:
        self._print(self._rows.evaluation(record))

    def sample(self, sample: Sample) -> None:
        self._sample = sample
        if not self._screen.live:
            self._screen.line(_sample_line(sample, self._screen.width))

    def end(self) -> None:
        """The run is over: nothing is redrawn any more."""
        self._print(self._rows.last())
        self._screen.show(None)
        if self._slow:
            self._slow.close()
            self._slow = None

    def _labelled(self, label: str, text: str, style: str = "") -> None:
        """Print a text next to its label: wrapped on a live screen, on one line in a log, for grep."""
        room = max(20, self._screen.width - _LABEL_WIDTH)
        for part in textwrap.wrap(text, room) if self._screen.live else [text]:
            self._screen.line(f"{label:<{_LABEL_WIDTH}}{part}", style)
            label = ""

    def _print(self, rows: Sequence[Mapping[str, float]]) -> None:
        for metrics in rows:
            layout = Layout.fit(self._screen.width, live=self._screen.live)
            if layout != self._layout or self._rows_since_header == _ROWS_PER_HEADER:
                self._screen.line(layout.header, "dim")
                self._layout, self._rows_since_header = layout, 0
            eta_s = self._eta_s()
            self._screen.line(layout.row({**metrics, ETA: eta_s} if eta_s else metrics))
            self._rows_since_header += 1

    def _slow_phase(self) -> tuple[str, float, str]:
        """The present phase, as SlowPhases asks for it."""
        for name, seconds in reversed(self._doing()):
            if name in _DOING:
                text = f"  {self._pace[-1][0]}/{self._steps}   {_phase([(name, seconds)], self._far)}"
                return name, seconds, text
        return "", 0.0, ""

    def _eta_s(self) -> float:
        """Seconds until the last step is done, at the pace of recent steps; 0 before the first."""
        (first, start), (last, now) = self._pace[0], self._pace[-1]
        return (now - start) / (last - first) * (self._steps - last) if last > first else 0.0

    def _now(self) -> RenderableType:
        """The lines that are redrawn; called by the screen's own thread."""
        width = min(self._screen.width, _WIDEST)
        waiting = self._rows.waiting
        row = [Text(Layout.fit(self._screen.width, live=True).row(waiting), "dim")] if waiting else []
        curve = [_reward_line(self._rewards, width)] if len(self._rewards) > 1 else []
        sample = [Text(_sample_line(self._sample, width), "dim")] if self._sample else []
        return Group(*row, Text(""), self._progress(width), *curve, *sample)

    def _progress(self, width: int) -> RenderableType:
        done, when = self._pace[-1]
        left_s = max(1.0, self._eta_s() - (time.time() - when))
        eta = f"eta {duration(left_s)}" if done > self._pace[0][0] else ""
        words = f"{done}/{self._steps}   {eta:<15}   {_phase(self._doing(), self._far):<23}"
        bar = ProgressBar(total=self._steps, completed=done, width=max(10, width - len(words) - 5))
        line = Table.grid(padding=(0, 3, 0, 0))
        line.add_row(Padding(bar, (0, 0, 0, 2)), words)
        return line


def _phase(open_spans: Sequence[tuple[str, float]], far: str = "") -> str:
    """The current phase, how far it is, and for how long it has run if that is a second or more."""
    for name, seconds in reversed(open_spans):
        if name in _DOING:
            took = [duration(seconds)] if seconds >= 1 else []
            return " ".join([_DOING[name], *([far] if far and name == "testing" else []), *took])
    return ""


def _reward_line(rewards: Sequence[float], width: int) -> Text:
    """The rewards so far as a small curve."""
    # most rewards live in [0, 1]: on that scale noise looks like noise
    low, high = min(0.0, *rewards), max(1.0, *rewards)
    columns = min(len(rewards), max(10, width - 28))
    edges = [i * len(rewards) // columns for i in range(columns + 1)]
    level = [sum(rewards[a:b]) / (b - a) for a, b in zip(edges, edges[1:])]
    top = len(_MARKS) - 1
    marks = "".join(_MARKS[round((x - low) / (high - low) * top)] for x in level)
    return Text.assemble(
        ("  reward  ", "dim"), (marks, "cyan"), (f"  {level[0]:.2f} -> {level[-1]:.2f}", "dim")
    )


def _sample_line(sample: Sample, width: int) -> str:
    end = f"   {verdict(sample)}"
    room = max(20, width - len(end) - 20)
    answer = _one_line(sample.answer, room * 2 // 3)
    prompt = _one_line(sample.prompt, max(10, room - len(answer)))
    return f'  sample  "{prompt}" -> "{answer}"{end}'


def _one_line(text: str, length: int) -> str:
    """The text, without its middle if it is longer than `length`: the end of an answer holds its result."""
    text = printable(" ".join(text.split()))
    if len(text) <= length:
        return text
    head = (length - 3) // 3
    return f"{text[:head]}...{text[-(length - 3 - head) :]}"
