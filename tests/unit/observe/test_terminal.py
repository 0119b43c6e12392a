"""What a person sees, on a terminal and in a log."""

import contextlib
import io
import os
import pty
import re
import threading
import time

import observe_values as values
import pytest

from hybridrl.observe import progress
from hybridrl.observe.samples import Columns, samples_of
from hybridrl.observe.terminal import Terminal, _phase

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def play(terminal: Terminal) -> None:
    """A run of three steps with one evaluation before it."""
    terminal.say("model", "tiny Qwen3")
    with terminal.working("engines", "starting 1 SGLang engine"):
        terminal.warn("port 30000 is taken")
    terminal.begin(0, 3, lambda: [("step", 2.0), ("gen", 1.5)])
    terminal.evaluation(values.heldout(0, 0.25))
    for step in (1, 2, 3):
        metrics = {"critic__score__mean": 0.5, "timing_s__gen": 1.9, "timing_s__step": 3.0}
        terminal.step(values.record(step, **metrics))
        packed = values.batch([[values.trajectory(1.0, text="\x1b[31m2\n" + "long " * 100)]], step=step)
        terminal.sample(samples_of(packed, Columns("prompt", "answer"))[0])
    terminal.evaluation(values.heldout(3, 0.75))
    terminal.end()
    terminal.line("done")


def played_log() -> str:
    stream = io.StringIO()
    play(Terminal(stream))
    return stream.getvalue()


@pytest.fixture
def on_a_terminal(monkeypatch) -> str:
    """Everything that a run writes to a pseudo-terminal of 80 columns."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    ours, theirs = pty.openpty()
    parts: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(ours, parts))
    reader.start()
    with os.fdopen(theirs, "w") as stream:
        play(Terminal(stream))
    reader.join()
    os.close(ours)
    return b"".join(parts).decode()


def read_all(descriptor: int, parts: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # Linux ends a pseudo-terminal with an error
        while part := os.read(descriptor, 65536):
            parts.append(part)


def test_a_log_has_no_control_characters() -> None:
    assert CONTROL.findall(played_log()) == []


def test_a_log_tells_the_whole_run() -> None:
    lines = played_log().splitlines()
    assert lines[0] == "model     tiny Qwen3"
    assert lines[1:3] == ["engines   starting 1 SGLang engine ...", "warning   port 30000 is taken"]
    assert re.fullmatch(r"engines   done in [0-9.]+ m?s", lines[3])
    table = [line.split() for line in lines if re.match(r" +\d", line)]
    assert [row[0] for row in table] == ["0", "1", "2", "3"]
    assert table[3][:3] == ["3", "0.50", "0.75"] and table[0] == ["0", "0.25"]
    assert lines[-1] == "done"


def test_a_long_answer_stays_on_one_line_with_its_end() -> None:
    (line, *_) = (line for line in played_log().splitlines() if line.startswith("  sample"))
    assert len(line) <= 120 and '"7+5=" -> "' in line and "..." in line and line.endswith("advantage +0.00")


def test_a_terminal_shows_the_rows_and_where_the_run_is(on_a_terminal: str) -> None:
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_a_terminal).splitlines()
    assert ["3", "0.50", "0.75"] in [line.split()[:3] for line in lines]
    assert [line for line in lines if "2/3" in line and "generating 1.5 s" in line]
    assert max(map(len, lines)) <= 80


def test_the_cursor_is_back_at_the_end(on_a_terminal: str) -> None:
    assert on_a_terminal.rindex("\x1b[?25h") > on_a_terminal.rindex("\x1b[?25l")


def test_what_a_model_samples_does_not_drive_the_terminal(on_a_terminal: str) -> None:
    assert "\x1b[31m" not in on_a_terminal


def test_a_slow_start_says_how_far_it_is(monkeypatch) -> None:
    monkeypatch.setattr(progress, "FIRST_S", 0.01)
    stream = io.StringIO()
    with Terminal(stream).working("ray", "3 worker starts", "workers ready") as advance:
        advance(1, 3)
        time.sleep(0.1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "ray       3 worker starts ..." and lines[-1].startswith("ray       done in ")
    assert lines[1].startswith("ray       3 worker starts  1 of 3 workers ready (33%)")


def test_an_evaluation_says_how_far_it_is_and_other_phases_do_not() -> None:
    assert _phase([("step", 9.0), ("testing", 3.0)], "256 of 1,000") == "evaluating 256 of 1,000 3.0 s"
    assert _phase([("step", 9.0), ("gen", 3.0)], "256 of 1,000") == "generating 3.0 s"
    terminal = Terminal(io.StringIO())
    terminal.advance(256, 1000)
    assert terminal._far == "256 of 1,000"
    terminal.advance(1000, 1000)
    assert terminal._far == ""
