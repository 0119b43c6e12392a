"""Code that runs inside the scoring processes. It imports nothing heavy: a process is up in a tenth of a
second.

    Scorer (any process) --control--> fork server: loads the reward once, then forks a child per worker
           ...one connection per child: Job ->, <- results

Orders and jobs are pickled by the owner, whom these processes trust. Their answers are JSON (answers.py),
since the owner does not trust code of a user that runs here.

The fork server waits for orders on its control connection; a child waits for jobs on its own. When the owner
ends, the control connection closes, and the fork server kills the children's process groups and ends.

A child writes to shared memory which item it scores and since when, so its owner needs no message to see it
hang. faulthandler writes the stack of a child that hangs or crashes to the same memory.
"""

import faulthandler
import mmap
import os
import pickle
import resource
import signal
import socket
import sys
import sysconfig
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from hybridrl.errors import HybridRLError, RewardError
from hybridrl.hosts.processes import ends_with_parent
from hybridrl.rewards.answers import Loaded, Result, error_frame, loaded_frame, pid_frame, results_frame
from hybridrl.rewards.judges.replies import UnjudgedError
from hybridrl.rewards.plugin import LoadedReward, load_reward
from hybridrl.rewards.score import Score, Unjudged, UnreadableScore, read_score
from hybridrl.sandbox.inside.frames import Frame, FrameReader, receive
from hybridrl.types import HANG_PART

SHARED_BYTES = 2 * mmap.PAGESIZE
STACK_AT = mmap.PAGESIZE
"""The first page holds two int64, item and start time; the second holds what faulthandler writes."""

NOT_BEGUN = -1
"""The item of a child that has not begun the job it was sent: a busy machine is not a hanging reward."""

LOAD_LIMIT_S = 120
"""Seconds within which a reward's module and its imports must be loaded."""

DUMP_SIGNAL = signal.SIGUSR1

_NO_LIMIT = 2**62
"""Bytes of a memory limit that no machine reaches; the system takes none above 2**63."""


@dataclass(frozen=True, slots=True)
class Load:
    """Order to a new fork server, which answers with a Loaded or with the error."""

    name: str
    options: Mapping[str, Any]
    answer_field: str
    memory_bytes: float
    """Memory that each child may take beyond its own at the start; infinite where there is no limit."""

    where: str


Asked = Literal["gold", "gold texts", "rows"]
"""What is asked about rows, not about answers."""

ABOUT_ROWS = ("gold texts", "rows")
"""The questions that no score answers, so that a hang_score does not either."""


@dataclass(frozen=True, slots=True)
class Job:
    """Items for a child, which answers with a list of results or a RewardError.

    The result of an answer is its Score. "gold": the Score of the answer that is made from the row's
    reference, None if none can be made. "gold texts": that answer. "rows": why the reward cannot judge the
    row, None if it can.
    """

    answers: Sequence[str] | Asked
    rows: Sequence[Mapping[str, Any]]
    uids: Sequence[str]


JOB_BYTES = 1 << 31
"""Bytes of an order or job, which come from the owner."""


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
    control, reader = socket.socket(fileno=control_fd), FrameReader(JOB_BYTES)
    arrived = _receive_order(control, reader)
    if arrived is None:
        return
    order: Load = arrived[0]
    # It ends an orphan: the signal's default action works even if a module hangs while it is imported.
    signal.alarm(2 * LOAD_LIMIT_S)
    try:
        reward = load_reward(order.name, order.options, where=order.where)
        reward.warm_up()
    except BaseException as error:  # a process edge: the owner raises it
        control.sendall(error_frame(_load_error(error, order)))
        return
    signal.alarm(0)
    loaded = Loaded(reward.place, reward.hang_score, reward.makes_gold, reward.checks_rows)
    control.sendall(loaded_frame(loaded))
    children: set[int] = set()
    while (arrived := _receive_order(control, reader)) is not None:
        _obey(*arrived, control, children, reward, order)
    for pid in children:
        _end(pid)


def _receive_order(control: socket.socket, reader: FrameReader) -> tuple[Any, list[int]] | None:
    """The next order and the descriptors that came with it; None: the owner is gone."""
    found: list[int] = []
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 2)
        except ConnectionError:
            return None
        found += descriptors
        if not data:
            return None
        for frame in reader.feed(data):
            return pickle.loads(frame.parts[0]), found


def _obey(
    order: Literal["fork"] | int,
    descriptors: list[int],
    control: socket.socket,
    children: set[int],
    reward: LoadedReward,
    load: Load,
) -> None:
    """Carry out an order. fork: it has two descriptors, and the answer is a pid. A pid: the child is ended,
    and the answer is its wait status."""
    if order != "fork":
        children.remove(order)
        control.sendall(pid_frame(_end(order)))
        return
    jobs_fd, shared_fd = descriptors
    sys.stdout.flush()
    fork_server = os.getpid()
    pid = os.fork()
    if pid == 0:
        control.close()
        _child(jobs_fd, shared_fd, reward, load, fork_server)
    os.close(jobs_fd)
    os.close(shared_fd)
    children.add(pid)
    control.sendall(pid_frame(pid))


def _end(pid: int) -> int:
    """Kill a child and all that it started; returns its wait status, which says how it died if it was dead
    before."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not reached setsid() yet
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _child(jobs_fd: int, shared_fd: int, reward: LoadedReward, load: Load, fork_server: int) -> None:
    try:
        os.setsid()
        if not ends_with_parent(fork_server):
            return
        os.lseek(shared_fd, STACK_AT, os.SEEK_SET)
        faulthandler.register(DUMP_SIGNAL, file=shared_fd, all_threads=False)
        faulthandler.enable(file=shared_fd, all_threads=False)
        jobs, progress = socket.socket(fileno=jobs_fd), Progress(shared_fd)
        reader = FrameReader(JOB_BYTES)
        _limit_memory(load.memory_bytes)
        while (frame := receive(jobs_fd, reader)) is not None:
            jobs.sendall(_answer(frame, reward, load, progress))
            sys.stdout.flush()
    except ConnectionError:
        pass
    finally:
        os._exit(0)  # without the fork server's exit handlers


def _answer(frame: Frame, reward: LoadedReward, load: Load, progress: Progress) -> bytes:
    found = _work(pickle.loads(frame.parts[0]), reward, load, progress)
    return error_frame(found) if isinstance(found, RewardError) else results_frame(found)


def _limit_memory(num_bytes: float) -> None:
    """Let this process, and each that it starts, allocate so much more memory of its own than it has now."""
    if sys.platform == "linux" and num_bytes < _NO_LIMIT:
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[5]) * mmap.PAGESIZE
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = held + int(num_bytes)
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _work(job: Job, reward: LoadedReward, load: Load, progress: Progress) -> list[Result] | RewardError:
    results: list[Result] = []
    for item, uid in enumerate(job.uids):
        progress.begin(item)
        try:
            results.append(_result(job, item, reward, load.answer_field))
        except UnjudgedError as error:
            results.append(Unjudged(str(error)))
        except UnreadableScore as error:
            return RewardError(
                f"reward {reward.name} on {uid} {error}",
                where=reward.place,
                fix="return a finite number, or a mapping of them with the key 'reward'",
            )
        except _UnreadableResult as error:
            return _raised(error.error, f"what reward {reward.name} returned raised", f"on {uid}")
        except MemoryError as error:
            if reward.hang_score is None or job.answers in ABOUT_ROWS:
                return _too_much_memory(error, reward, uid, load.memory_bytes)
            results.append(Score(reward.hang_score, {HANG_PART: 1.0}))
        except BaseException as error:  # a process edge: the owner raises it
            method = {"rows": "check_row of ", "gold texts": "gold of "}.get(str(job.answers), "")
            return _raised(error, f"{method}reward {reward.name} raised", f"on {uid}")
    return results


class _UnreadableResult(Exception):
    """Methods of what a reward returned, which are code of the user too, raised an error."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def _result(job: Job, item: int, reward: LoadedReward, answer_field: str) -> Result:
    row = job.rows[item]
    if job.answers == "rows":
        return reward.fault(row, answer_field=answer_field)
    gold = isinstance(job.answers, str)
    answer = reward.gold(row, answer_field=answer_field) if gold else job.answers[item]
    if answer is None or job.answers == "gold texts":
        return answer
    returned = reward(answer, row, answer_field=answer_field)
    try:
        return read_score(returned)
    except UnreadableScore:
        raise
    except BaseException as error:
        raise _UnreadableResult(error) from error


def _too_much_memory(error: MemoryError, reward: LoadedReward, uid: str, limit: float) -> RewardError:
    return RewardError(
        f"reward {reward.name} needed more than reward.memory_gb = {limit / 1e9:g} on {uid}",
        where=_frame(error.__traceback__) or reward.place,
        fix="bound what it does with an answer, give it a hang_score, or raise reward.memory_gb",
    )


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
