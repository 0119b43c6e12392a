"""Lines in a log about phases of a step that take long, which on a terminal the live view shows."""

import threading
from collections.abc import Callable

FIRST_S = 10.0
"""Age at which a phase is mentioned; then at each age that is twice as large."""

Current = Callable[[], tuple[str, float, str]]
"""Name of the present phase, its age in seconds, and a line about it; "", 0.0, "" if there is none."""


class SlowPhases:
    """A thread that looks once a second."""

    def __init__(self, current: Current, line: Callable[[str], None], *, every_s: float = 1.0) -> None:
        self._current, self._line, self._every_s = current, line, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="slow phases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        last, last_s, limit_s = "", 0.0, FIRST_S
        while not self._over.wait(self._every_s):
            name, age_s, text = self._current()
            if name != last or age_s < last_s:  # another phase, or the same of a later step
                limit_s = FIRST_S
            last, last_s = name, age_s
            if name and age_s >= limit_s:
                self._line(text)
                while limit_s <= age_s:
                    limit_s *= 2
