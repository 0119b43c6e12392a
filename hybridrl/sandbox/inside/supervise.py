"""Watches a program in a box until it ends or passes a limit, and takes what it writes."""

import math
import os
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from hybridrl.sandbox.inside.limits import Limits

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CHUNK = 1 << 16
_CPUCLOCK_SCHED = 2
"""The clock of a process's id: clock_getcpuclockid(3)."""

_LOOK_S = 0.02
"""Seconds between two looks at memory and files."""


@dataclass(slots=True)
class Output:
    """What was read of a stream: no more than a limit is kept."""

    fd: int
    limit: int
    kept: bytearray = field(default_factory=bytearray)
    over: bool = False
    open: bool = True

    def read(self) -> None:
        """Take what is there; the descriptor does not block."""
        try:
            data = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal or pipe whose other end is gone
            data = b""
        self.open = bool(data)
        room = self.limit - len(self.kept)
        self.kept += data[:room]
        self.over = self.over or len(data) > room

    def take(self) -> bytes:
        """What was read since the last call."""
        found, self.kept, self.over = bytes(self.kept), bytearray(), False
        return found


class Guard:
    """Says which limit the processes of a box have passed."""

    def __init__(
        self, limits: Limits, outputs: Iterable[Output], pid: int, cpu_s: float | None, folder: str | None
    ) -> None:
        """
        Args:
            pid, cpu_s: the program, and seconds of processor time that it may take from now on.
            folder: the one whose size nothing else limits; None where the file system does.
        """
        self._limits, self._outputs, self._folder = limits, tuple(outputs), folder
        self._pid, self._cpu_s, self._cpu_before = pid, cpu_s, cpu_seconds(pid)
        self._cpu_now = self._cpu_before
        self._next_look = 0.0

    @property
    def cpu_s(self) -> float:
        """Processor time of the program since this guard began."""
        self._cpu_now = max(self._cpu_now, cpu_seconds(self._pid))
        return self._cpu_now - self._cpu_before

    def passed(self) -> str | None:
        """output, memory, cpu or disk; None if all is well."""
        if any(output.over for output in self._outputs):
            return "output"
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + _LOOK_S
        if resident_bytes() > self._limits.memory_bytes:
            return "memory"
        if self.cpu_s > (self._cpu_s or math.inf):
            return "cpu"
        if self._folder and folder_bytes(self._folder, self._limits.disk_bytes) > self._limits.disk_bytes:
            return "disk"
        return None


class Children:
    """The processes of a box, seen from their first one."""

    def __init__(self, *, owns_all: bool) -> None:
        """`owns_all`: this process is the first of its PID namespace, and all others are the box's."""
        self._owns_all = owns_all
        self._ended: dict[int, int] = {}
        self._expected: set[int] = set()

    def add(self, pid: int) -> None:
        self._expected.add(pid)

    def status(self, pid: int) -> int | None:
        """Wait status of a child, None while it lives. Orphans that have ended are reaped on the way."""
        while True:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if ended == 0:
                break
            if ended in self._expected:
                self._ended[ended] = status
        return self._ended.get(pid)

    def end(self, pid: int) -> int:
        """Kill a child, and all else in the box; returns the child's wait status once all are gone."""
        self.signal(pid, signal.SIGKILL)
        while (status := self.status(pid)) is None or (self._owns_all and has_children()):
            time.sleep(0.001)
        self._expected.discard(pid)
        self._ended.pop(pid, None)
        return status

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to all processes of the box, or to the child if others share its processes."""
        if not self._owns_all and pid in self._ended:
            return
        try:
            os.kill(-1 if self._owns_all else pid, number)
        except ProcessLookupError:
            pass


def has_children() -> bool:
    """Whether children live; those that have ended are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def poll(outputs: Iterable[Output], writes: Iterable[int], reads: Iterable[int], wait_s: float) -> set[int]:
    """Wait for descriptors, and read the outputs that have something. Returns the other ready ones."""
    watched = {output.fd: output for output in outputs if output.open}
    asked = dict.fromkeys((*watched, *reads), select.POLLIN)
    for fd in writes:
        asked[fd] = asked.get(fd, 0) | select.POLLOUT
    poller = select.poll()  # select() takes no descriptor above 1023
    for fd, events in asked.items():
        poller.register(fd, events)
    ready = {fd for fd, _ in poller.poll(math.ceil(wait_s * 1000))}
    for fd in ready & watched.keys():
        watched[fd].read()
    return ready - watched.keys()


def drain(outputs: Iterable[Output]) -> None:
    """Read what the streams still hold."""
    for output in outputs:
        before = -1
        while output.open and len(output.kept) != before and not output.over:
            before = len(output.kept)
            output.read()


def cpu_seconds(pid: int) -> float:
    """Processor time of a process; 0 if it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def resident_bytes() -> int:
    """Memory of all processes but this one, as /proc shows them; 0 where there is no /proc of the box."""
    total, own = 0, str(os.getpid())
    if own != "1":
        return 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != own:
            try:
                with open(f"/proc/{name}/statm") as file:
                    total += int(file.read().split()[1]) * _PAGE
            except OSError:  # it has ended
                pass
    return total


def folder_bytes(folder: str, enough: int) -> int:
    """Bytes of all files below a folder, or more than `enough` once they are; links are not followed."""
    total, waiting = 0, [folder]
    while waiting and total <= enough:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    total += max(entry.stat(follow_symlinks=False).st_blocks * 512, 512)
        except OSError:  # removed meanwhile, or unreadable by the program's own doing
            pass
    return total
