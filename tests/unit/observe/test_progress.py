"""Progress: nothing for what is quick, a line now and then in a file, a renewed one on a terminal."""

import io
import time

import pytest

from hybridrl.observe import progress as module
from hybridrl.observe.progress import Amount, progress, shown


class Screen:
    def __init__(self, *, live: bool) -> None:
        self.live, self.width, self.lines, self.drawn = live, 80, list[str](), list[str]()

    def line(self, text: str, style: str = "") -> None:
        self.lines.append(text)

    def show(self, draw) -> None:
        self.drawn.append("" if draw is None else draw().plain)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_S", 0.02)


def test_what_is_done_at_once_is_not_mentioned() -> None:
    stream = io.StringIO()
    with progress("answers", "a", "prompts", stream=stream) as advance:
        advance(3, 10)
    assert stream.getvalue() == ""


def test_a_file_has_a_line_now_and_then_and_one_at_the_end(quick: None) -> None:
    stream = io.StringIO()
    with progress("answers", "math.jsonl", "prompts", stream=stream) as advance:
        for done in range(30):
            advance(done, 30)
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert 2 <= len(lines) <= 8 and all(line.startswith("answers   math.jsonl: ") for line in lines)
    assert " of 30 prompts (" in lines[0] and lines[-1].startswith("answers   math.jsonl: done in ")
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_a_terminal_has_one_line_that_is_gone_in_the_end(quick: None) -> None:
    screen = Screen(live=True)
    with shown(screen, "download", "Qwen/Qwen3-0.6B", "bytes") as advance:
        advance(4e8, 1.2e9)
        time.sleep(0.06)
    assert screen.drawn[0].startswith("download  Qwen/Qwen3-0.6B: 400 MB of 1.2 GB (33%)")
    assert screen.drawn[-1] == "" and [line.partition("done")[0] for line in screen.lines] == [
        "download  Qwen/Qwen3-0.6B: "
    ]


def test_an_error_passes_through(quick: None) -> None:
    with pytest.raises(KeyError), progress("a", "b", stream=io.StringIO()):
        raise KeyError("c")


def test_the_amount_says_how_much_is_left() -> None:
    amount = Amount("prompts")
    assert str(amount) == ""
    amount.advance(5)
    assert str(amount) == "5 prompts"
    amount.began -= 100.0
    amount.advance(25, 100)
    assert str(amount) == "25 of 100 prompts (25%), 5 min 0 s left"
