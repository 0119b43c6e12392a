"""Code that runs inside the scoring processes. It imports nothing heavy: a process is up in a tenth of a
second.

    Scorer (any process) --control--> fork server: loads the reward once, then forks a child per worker
           ...one connection per child: Job ->, <- Result

The fork server waits for orders on its control connection; a child waits for jobs on its own. When the owner
ends, the control connection closes, and the fork server kills the children's process groups and ends.

A child writes to shared memory which item it scores and since when, so its owner needs no message to see it
hang. faulthandler writes the stack of a child that hangs or crashes to the same memory.
"""

import ctypes
import faulthandler
import mmap
import os
import signal
import sys
import sysconfig
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from types import TracebackType
from typing import Any, Literal

from hybridrl.errors import HybridRLError, RewardError
from hybridrl.rewards.plugin import LoadedReward, load_reward
from hybridrl.rewards.score import Score, UnreadableScore, read_score

SHARED_BYTES = 2 * mmap.PAGESIZE
STACK_AT = mmap.PAGESIZE
"""The first page holds two int64, item and start time; the second holds what faulthandler writes."""

NOT_BEGUN = -1
"""The item of a child that has not begun the job it was sent: a busy machine is not a hanging reward."""

LOAD_LIMIT_S = 120
"""Seconds within which a reward's module and its imports must be loaded."""

DUMP_SIGNAL = signal.SIGUSR1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Load:
    """Order to a new fork server, which answers with a Loaded or with the error."""

    name: str
    options: Mapping[str, Any]
    answer_field: str
    where: str


@dataclass(frozen=True, slots=True)
class Loaded:
    place: str
    hang_score: float | None


@dataclass(frozen=True, slots=True)
class Job:
    """Items for a child, which answers with list[Score | None] (None: no gold answer) or a RewardError."""

    answers: Sequence[str] | Literal["gold"]
    rows: Sequence[Mapping[str, Any]]
    uids: Sequence[str]


class Progress:
    """The item that a child scores, and since when. The owner writes it before a job, the child during it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, SHARED_BYTES)
        self._words = memoryview(self._map).cast("q")

    def begin(self, item: int) -> None:
        # Time first: a reader reads the item first, so it never sees a new item with an old time.
        self._words[1] = time.monotonic_ns()
        self._words[0] = item

    def read(self) -> tuple[int, float]:
        """The item, and seconds since it began."""
        item = self._words[0]
        return item, (time.monotonic_ns() - self._words[1]) * 1e-9

    def stack(self) -> str:
        """What faulthandler wrote, innermost call first."""
        return os.pread(self.fd, SHARED_BYTES, STACK_AT).rstrip(b"\0").decode(errors="replace")

    def close(self) -> None:
        self._words.release()
        self._map.close()
        os.close(self.fd)


def main(control_fd: int) -> None:
    """The fork server: obey Load, then fork and end children until the control connection closes."""
    control = Connection(control_fd)
    order: Load = control.recv()
    # It ends an orphan: the signal's default action works even if a module hangs while it is imported.
    signal.alarm(2 * LOAD_LIMIT_S)
    try:
        reward = load_reward(order.name, order.options, where=order.where)
        reward.warm_up()
    except BaseException as error:  # a process edge: the owner raises it
        control.send(_load_error(error, order))
        return
    signal.alarm(0)
    control.send(Loaded(reward.place, reward.hang_score))
    children: set[int] = set()
    try:
        while True:
            _obey(control.recv(), control, children, reward, order.answer_field)
    except EOFError:
        for pid in children:
            _end(pid)


def _obey(
    order: Literal["fork"] | int,
    control: Connection,
    children: set[int],
    reward: LoadedReward,
    answer_field: str,
) -> None:
    """Carry out an order. fork: two descriptors follow, and the answer is a pid. A pid: the child is ended,
    and the answer is its wait status."""
    if order != "fork":
        children.remove(order)
        control.send(_end(order))
        return
    jobs_fd, shared_fd = recv_handle(control), recv_handle(control)
    sys.stdout.flush()
    fork_server = os.getpid()
    pid = os.fork()
    if pid == 0:
        control.close()
        _child(jobs_fd, shared_fd, reward, answer_field, fork_server)
    os.close(jobs_fd)
    os.close(shared_fd)
    children.add(pid)
    control.send(pid)


def _end(pid: int) -> int:
    """Kill a child and all that it started; returns its wait status, which says how it died if it was dead
    before."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not reached setsid() yet
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _child(jobs_fd: int, shared_fd: int, reward: LoadedReward, answer_field: str, fork_server: int) -> None:
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != fork_server:  # the fork server ended before prctl
                return
        os.lseek(shared_fd, STACK_AT, os.SEEK_SET)
        faulthandler.register(DUMP_SIGNAL, file=shared_fd, all_threads=False)
        faulthandler.enable(file=shared_fd, all_threads=False)
        jobs, progress = Connection(jobs_fd), Progress(shared_fd)
        while True:
            jobs.send(_work(jobs.recv(), reward, answer_field, progress))
            sys.stdout.flush()
    except EOFError:
        pass
    finally:
        os._exit(0)  # without the fork server's exit handlers


def _work(
    job: Job, reward: LoadedReward, answer_field: str, progress: Progress
) -> list[Score | None] | RewardError:
    scores: list[Score | None] = []
    for item, row in enumerate(job.rows):
        progress.begin(item)
        try:
            gold = job.answers == "gold"
            answer = reward.gold(row, answer_field=answer_field) if gold else job.answers[item]
            if answer is None:
                scores.append(None)
                continue
            returned = reward(answer, row, answer_field=answer_field)
        except BaseException as error:  # a process edge: the owner raises it
            return _raised(error, f"reward {reward.name} raised", f"on {job.uids[item]}")
        try:
            scores.append(read_score(returned))
        except UnreadableScore as error:
            return RewardError(
                f"reward {reward.name} on {job.uids[item]} {error}",
                where=reward.place,
                fix="return a finite number, or a mapping of them with the key 'reward'",
            )
        except BaseException as error:  # methods of what it returned are code of the user too
            return _raised(error, f"what reward {reward.name} returned raised", f"on {job.uids[item]}")
    return scores


def _load_error(error: BaseException, order: Load) -> HybridRLError:
    if isinstance(error, HybridRLError):
        return error
    raised = _raised(error, f"reward {order.name} cannot be loaded:", "")
    return RewardError(raised.what, where=raised.where or order.where)


def _raised(error: BaseException, what: str, on: str) -> RewardError:
    text = _text(error)
    message = f": {text}"[:500] if text else ""
    line = f"{what} {type(error).__name__} {on}".rstrip() + message
    return RewardError(line, where=_frame(error.__traceback__))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a class of the user may fail to write itself
        return ""


def _frame(trace: TracebackType | None) -> str:
    """The place that raised: the innermost call outside Python's own library and these files."""
    ours = (__file__, load_reward.__code__.co_filename)
    frames = [f for f in traceback.extract_tb(trace) if f.filename not in ours]
    named = {innermost([(f.filename, f.lineno or 0, f.name)]): f.line for f in frames}
    place = innermost([(f.filename, f.lineno or 0, f.name) for f in reversed(frames)])
    return f"{place}: {named[place]}" if named.get(place) else place


def innermost(frames: Sequence[tuple[str, int, str]]) -> str:
    """The first of (file, line, function), innermost first, that is not in Python's own library."""
    library = sysconfig.get_path("stdlib")
    own = [f for f in frames if not (f[0].startswith((library, "<")) and "site-packages" not in f[0])]
    return "{}:{} in {}".format(*(own or frames)[0]) if frames else ""
