"""What a terminal shows of a run, made of the files of its folder, as an HTML page for a picture.

python docs/pictures/terminal.py runs/quickstart terminal.html
"""

import io
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType
from rich.terminal_theme import TerminalTheme

from hybridrl.config.load import load
from hybridrl.hosts.machine import Machine
from hybridrl.launch.preflight import preflight
from hybridrl.launch.verdict import SCOPES
from hybridrl.observe.rollouts import TRAINED
from hybridrl.observe.samples import Sample
from hybridrl.observe.screen import TerminalScreen
from hybridrl.observe.terminal import Terminal
from hybridrl.report.run_data import RunData, read_run

COLUMNS = 104
ENDS = ("<eos>", "<|im_end|>", "<|endoftext|>")
COLOURS = [(20, 24, 31), (224, 108, 117), (152, 195, 121), (229, 192, 123)]
COLOURS += [(97, 175, 239), (198, 120, 221), (86, 182, 194), (171, 178, 191)]
THEME = TerminalTheme((15, 19, 25), (221, 227, 235), COLOURS, COLOURS)
FORMAT = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>hybridrl launch</title>
<style>{stylesheet} body {{ margin: 0; padding: 18px; background: {background}; color: {foreground}; }}
pre {{ font: 15px/1.35 "DejaVu Sans Mono", monospace; margin: 0; }}</style></head>
<body><main><pre>{code}</pre></main></body></html>
"""


class Recorded(TerminalScreen):
    """A terminal whose live lines are drawn when they are asked for."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.draw: Callable[[], RenderableType] | None = None

    def show(self, draw: Callable[[], RenderableType] | None) -> None:
        self.draw = draw


class RecordedTerminal(Terminal):
    def __init__(self, console: Console) -> None:
        super().__init__(io.StringIO())
        self._screen = self.screen = Recorded(console)


def page(folder: Path, config: Path, share: float = 0.6) -> str:
    """The terminal of a run of a config after a share of its steps."""
    run, loaded = read_run(folder), load(config)
    console = Console(
        record=True, force_terminal=True, width=COLUMNS, color_system="truecolor", file=io.StringIO()
    )
    terminal, steps = RecordedTerminal(console), loaded.config.run.steps
    console.print(f"$ hybridrl launch {config}", style="bold", highlight=False)
    preflight(loaded, SCOPES["plan"], Machine.here(), terminal.say)
    play(run, terminal, max(2, round(share * steps)), steps)
    assert terminal.screen.draw is not None
    console.print(terminal.screen.draw())
    return console.export_html(theme=THEME, code_format=FORMAT)


def play(run: RunData, terminal: Terminal, until: int, steps: int) -> None:
    """Let a run of so many steps come to a step, which ends now."""
    last = next(record for record in run.records if record.kind == "step" and record.step == until)
    shift = time.time() - last.time
    terminal.begin(0, steps, lambda: [("step", 0.4), ("gen", 0.4)])
    for record in run.records:
        shown = replace(record, time=record.time + shift)
        if record.step <= until:
            terminal.evaluation(shown) if record.kind == "evaluation" else terminal.step(shown)
    for sample in samples(run, until)[:1]:
        terminal.sample(sample)


def samples(run: RunData, until: int) -> list[Sample]:
    """Rollouts of the steps up to one that ended by themselves, the best and newest first."""
    found = [one for one in run.rollouts(1000) if one["step"] <= until and one["finish"] == "stop"]
    found.sort(key=lambda one: (-one["reward"], -one["step"]))
    return [
        Sample(
            uid=one["uid"],
            prompt=one["prompt"],
            answer="".join(text for text, kind, *_ in one["tokens"] if kind == TRAINED and text not in ENDS),
            reward=one["reward"],
            advantage=one["advantage"],
            finish=one["finish"],
            response_tokens=one["num_tokens"],
        )
        for one in found
    ]


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(page(Path(sys.argv[1]), Path(sys.argv[2])), encoding="utf-8")
