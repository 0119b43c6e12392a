"""SIGTERM and SIGUSR1 ask a run to stop where it can be resumed without loss; a second ends it."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

STOPPED = 75
"""Exit code of a run that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """What a run was asked. A context of the main thread: leaving it puts the old handlers back."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """
        Args:
            say: tells a person what happens now; called in a thread of its own.
        """
        self._say, self._training = say, False
        self.signal: str | None = None
        """Name of the first signal that came."""

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals, again if a library took them meanwhile: ray.init does."""
        for number in SIGNALS:
            signal.signal(number, self._asked)

    def begin(self) -> None:
        """Training begins: from here on a first signal lets the step that runs come to its end."""
        self._training = True

    def requested(self) -> bool:
        return self.signal is not None

    @property
    def came_early(self) -> bool:
        """Whether a signal came while no step was there to be saved."""
        return self.signal is not None and not self._training

    def _asked(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or signal.Signals(number).name
        if first and self._training:
            text = f"{self.signal}: this step ends and is saved; a second signal ends the run at once"
            # In a thread: what was interrupted here may hold the lock of the screen.
            threading.Thread(target=self._say, args=(text,), daemon=True).start()
        elif signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
            raise KeyboardInterrupt
        else:  # the way of Ctrl-C, which every wait of a run knows
            signal.raise_signal(signal.SIGINT)
