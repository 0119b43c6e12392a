"""Two screens: a terminal, whose last lines are redrawn, and a log (CI, Slurm) without control characters."""

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
        """Whether the screen shows what `show` draws."""
        ...

    @property
    def width(self) -> int:
        """Number of characters in a line."""
        ...

    def line(self, text: str, style: str = "") -> None:
        """Print a line that stays. It may be called from any thread."""
        ...

    def show(self, draw: Callable[[], RenderableType] | None) -> None:
        """Show what `draw` returns below the last line from now on; None: remove it."""
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
            self._shown.refresh()  # else the old last lines stay below the new line until the next redraw

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
        with self._lock:  # one write per line, else lines of two threads mix
            self._stream.write(text.rstrip() + "\n")
            self._stream.flush()

    def show(self, draw: Callable[[], RenderableType] | None) -> None:
        """A log has no lines that are redrawn."""
