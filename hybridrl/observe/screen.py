"""Two screens: a terminal, whose last lines are alive, and a log (CI, Slurm) without control characters."""

import threading
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

_LOG_WIDTH = 120
_REFRESHES_PER_S = 4


class Screen(Protocol):
    @property
    def live(self) -> bool:
        """Whether what is shown can be seen."""
        ...

    @property
    def width(self) -> int:
        """Characters of a line."""
        ...

    def line(self, text: str, style: str = "") -> None:
        """Print a line, from any thread; it stays."""
        ...

    def show(self, draw: Callable[[], RenderableType] | None) -> None:
        """Keep what `draw` makes below the last line from now on; None: take it away."""
        ...


def open_screen(stream: TextIO) -> Screen:
    console = Console(file=stream, highlight=False)
    return (
        TerminalScreen(console) if console.is_terminal and not console.is_dumb_terminal else LogScreen(stream)
    )


class TerminalScreen:
    live = True

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: Live | None = None

    @property
    def width(self) -> int:
        return self._console.width

    def line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)
        if self._shown:
            self._shown.refresh()  # or the old last lines stand below the new one until the next redraw

    def show(self, draw: Callable[[], RenderableType] | None) -> None:
        if self._shown:
            self._shown.stop()
        self._shown = self._started(draw) if draw else None

    def _started(self, draw: Callable[[], RenderableType]) -> Live:
        live = Live(
            get_renderable=draw, console=self._console, refresh_per_second=_REFRESHES_PER_S, transient=True
        )
        live.start()
        return live


class LogScreen:
    live = False
    width = _LOG_WIDTH

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def line(self, text: str, style: str = "") -> None:
        with self._lock:  # one write a line, or lines of two threads mix
            self._stream.write(text.rstrip() + "\n")
            self._stream.flush()

    def show(self, draw: Callable[[], RenderableType] | None) -> None:
        """A log has no last line."""
