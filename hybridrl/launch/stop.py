"""SIGTERM and SIGUSR1, and Ctrl-C if the config says so, ask a run to stop where it can be resumed without
loss; a second signal ends it at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

STOPPED = 75
"""Exit code of a run that was asked to stop and can be resumed: EX_TEMPFAIL of sysexits.h."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a run was asked to stop. It is a context of the main thread; leaving it restores the old
    handlers.

    A signal that comes before training begins ends the context at once, without an error.
    """

    def __init__(self, say: Callable[[str], None], *, saves_on_interrupt: bool = False) -> None:
        """
        Args:
            say: tells the user what happens now; called from any thread.
            saves_on_interrupt: during training a first Ctrl-C asks to stop, as the signals do.
        """
        self._say, self._saves_on_interrupt = say, saves_on_interrupt
        self._training = False
        self.signal: str | None = None
        """Name of the first signal that came."""

        self.stopped_by: str | None = None
        """The signal that ended the run before its last step; None: no signal did."""

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGINT)}
        self.listen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        early = kind is KeyboardInterrupt and self.signal is not None and not self._training
        if early:
            self.stopped_by = self.signal
            self._say(f"{self.signal}: stopped before a step began")
        return early

    def listen(self) -> None:
        """Install the handlers. Call it again after a library installed its own, as ray.init does."""
        for number in SIGNALS:
            signal.signal(number, self._asked)

    def begin(self) -> None:
        """Training begins, unless a signal came: from here on a first signal lets the current step end."""
        self._training = self.signal is None
        if self._training and self._saves_on_interrupt:
            signal.signal(signal.SIGINT, self._asked)

    @property
    def has_begun(self) -> bool:
        """Whether training has begun."""
        return self._training

    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return STOPPED if self.stopped_by else 0

    def _asked(self, number: int, frame: FrameType | None) -> None:
        first, self.signal = self.signal is None, self.signal or signal.Signals(number).name
        if first and self._training:
            text = f"{self.signal}: this step ends and is saved; a second signal ends the run at once"
            # In a thread: the interrupted code may hold the lock of the screen.
            threading.Thread(target=self._say, args=(text,), daemon=True).start()
        elif signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, self._asked):
            raise KeyboardInterrupt  # SIGINT is ignored, as in the background of a script, or comes here
        else:  # as Ctrl-C does, which every wait of a run handles
            signal.raise_signal(signal.SIGINT)
