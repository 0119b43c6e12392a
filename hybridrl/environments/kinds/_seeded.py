"""Games that draw from Python's and numpy's global generators: each episode has its own state of both."""

import contextlib
import random
import threading
from collections.abc import Iterator

import numpy as np

_LOCK = threading.Lock()
"""Episodes of a process take turns: the generators are those of the process."""


class OwnRandom:
    """The state of the global generators in one episode."""

    def __init__(self, seed: int) -> None:
        self._state = random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """A context in which the global generators go on where this episode left them."""
        with _LOCK:
            before = random.getstate(), np.random.get_state()
            self._enter(*self._state)
            try:
                yield
            finally:
                self._state = random.getstate(), np.random.get_state()
                self._enter(*before)

    @staticmethod
    def _enter(python: tuple, numpy: tuple | dict) -> None:
        random.setstate(python)
        np.random.set_state(numpy)
