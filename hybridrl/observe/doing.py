"""What a run is doing, in a file of its folder, so that `hybridrl why` can tell it of a run that was killed.

A thread of the driver writes the file every few seconds, so its time is that of the last sign of life.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hybridrl.config.files import atomic_write_json

DOING_FILE = "doing.json"

Spans = Sequence[tuple[str, float]]
"""Open spans and their age in seconds, the oldest first."""


def read(folder: Path) -> dict[str, Any] | None:
    """What the run of a folder did when it last wrote it; None: it wrote nothing."""
    try:
        return json.loads((folder / DOING_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def last_step(folder: Path) -> int:
    """The step that the run of a folder worked on last; -1: none."""
    found = read(folder)
    return -1 if found is None else found["step"]


def last_done(folder: Path) -> int:
    """The last step that the run of a folder had done; -1: none was."""
    found = read(folder)
    return -1 if found is None else found["done"]


class Doing:
    def __init__(
        self,
        folder: Path,
        running: Callable[[], Spans],
        step: Callable[[], int],
        done: Callable[[], int],
        *,
        every_s: float = 2.0,
    ) -> None:
        """
        Args:
            running, step, done: what the run is doing now, the step that it works on, and the last one that
                is done, whose evaluation or checkpoint it may work on; called in a thread.
        """
        self._path, self._running, self._every_s = folder / DOING_FILE, running, every_s
        self._step, self._done = step, done
        self._over, self._writing = threading.Event(), threading.Lock()
        self._write()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True, name="doing")
        self._thread.start()

    def note(self) -> None:
        """Write the file now."""
        self._write()

    def close(self, end: str) -> None:
        """
        Args:
            end: how the session ended: "finished", "interrupted", or the error.
        """
        self._over.set()
        self._thread.join()
        self._write(end)

    def _keep_writing(self) -> None:
        while not self._over.wait(self._every_s):
            self._write()

    def _write(self, end: str | None = None) -> None:
        found: dict[str, Any] = {
            "time": round(time.time(), 3),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self._step(),
            "done": self._done(),
            "doing": [[name, round(age_s, 1)] for name, age_s in self._running()],
            "end": end,
        }
        with (
            self._writing,
            contextlib.suppress(OSError),
        ):  # a full disk is the business of what the run needs to write
            atomic_write_json(self._path, found)
