"""Scores answers in child processes with a limit on every single item.

Who waits for whom: score() waits for its children, and for none longer than its current item may take.
    Items are sent in chunks that shrink towards the end, so that a chunk of trivial rewards costs one
    message, and children with slow ones end at about the same time.
"""

import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import DeadlineError, HybridRLError, RewardError, WorkerError
from hybridrl.rewards.answers import Result, read_results
from hybridrl.rewards.children import ABOUT_ROWS, NOT_BEGUN, Asked, Job, Load
from hybridrl.rewards.processes import Child, ForkServer, exit_reason, stack_place, with_hint
from hybridrl.rewards.score import Score, Unjudged
from hybridrl.sandbox.inside.frames import FrameError
from hybridrl.types import HANG_PART

__all__ = ["Score", "Scorer"]


_LATE_S = 60.0
"""Seconds of the owner's clock beyond the limit of an item; then what its process says does not count."""

_BEGIN_S = 600.0
"""Seconds within which a process has to begin a job: the machine may be busy."""


@dataclass(slots=True)
class _Busy:
    """A child that scores items, and the item that the owner last saw it on."""

    child: Child
    span: range
    item: int = NOT_BEGUN
    since: float = field(default_factory=time.monotonic)

    def read(self) -> tuple[int, float]:
        """The item, and seconds since it began: as the child says, or the owner's clock if that says much
        more."""
        item, since_s = self.child.progress.read()
        if not self.item <= item < len(self.span):  # it goes back, or beyond its job: a lie
            item = self.item
        if item > self.item:
            self.item, self.since = item, time.monotonic()
        seen_s = time.monotonic() - self.since
        if item == NOT_BEGUN:
            return item, seen_s - _BEGIN_S
        return item, max(since_s, seen_s - _LATE_S)


@dataclass(slots=True)
class _Work:
    """The items of one call: those to do, those that children score now, and the scores so far."""

    answers: Sequence[str] | Asked
    rows: Sequence[Mapping[str, Any]]
    uids: Sequence[str]
    todo: list[range]
    busy: dict[socket.socket, _Busy] = field(default_factory=dict)
    scores: dict[int, Result] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    """Items on which a process was ended by SIGKILL."""

    def next_job(self, num_workers: int) -> tuple[range, Job]:
        span = self.todo.pop()
        size = -(-len(span) // (2 * num_workers))
        if span[size:]:
            self.todo.append(span[size:])
        span = span[:size]
        pick = slice(span.start, span.stop)
        answers = self.answers if isinstance(self.answers, str) else self.answers[pick]
        return span, Job(answers, self.rows[pick], self.uids[pick])


class Scorer:
    """The reward of a config, in `num_workers` processes. close(), or leaving a `with` block, ends them."""

    def __init__(self, reward: RewardConfig, *, where: str = "reward") -> None:
        """Start the processes and load the reward in them; this process never imports it.

        Args:
            where: the config place, named in errors.

        Raises:
            ConfigError: no such reward, or options that it does not take.
            RewardError: the reward's module raises or dies while it is imported.
            DeadlineError: the module does not finish importing.
        """
        self.reward, self._where = reward, where
        self._scoring, self._over = threading.Lock(), False
        self._bell, self._ring = socket.socketpair()
        """close() rings, and a call that scores in another thread ends."""

        load = Load(reward.name, reward.options, reward.answer_field, reward.memory_gb * 1e9, where)
        self._fork_server = ForkServer(load, variables=reward.variables)
        self._idle: list[Child] = []
        try:
            for _ in range(reward.num_workers):
                self._idle.append(self._fork_server.fork())
        except BaseException:
            self.close()
            raise

    def score(
        self, answers: Sequence[str], rows: Sequence[Mapping[str, Any]], uids: Sequence[str]
    ) -> list[Score]:
        """The score of each answer, in order.

        Args:
            rows: the source row of each answer's prompt.
            uids: names each answer in an error.

        Raises:
            RewardError: the reward raised, returned something that is not a finite number, or its process
                died; or it needed more than memory_gb, and declares no hang_score. A process that was ended
                by SIGKILL, which somebody else may have sent, dies of its answer the second time.
            DeadlineError: it did not return within timeout_s, and declares no hang_score.
            After either, the scorer can be used again.
            WorkerError: the processes are gone, or the scorer was closed meanwhile.
        """
        return [score for score in self._run(answers, rows, uids) if isinstance(score, Score)]

    def judged(
        self, answers: Sequence[str], rows: Sequence[Mapping[str, Any]], uids: Sequence[str]
    ) -> list[Score | Unjudged]:
        """As score(), for rows that hold the replies of judges: an answer whose judge failed has no score."""
        found = self._run(answers, rows, uids)
        return [score for score in found if isinstance(score, (Score, Unjudged))]

    def score_gold(self, rows: Sequence[Mapping[str, Any]], uids: Sequence[str]) -> list[Score | None]:
        """The scores of the rows' own reference answers; None where the reward cannot make an answer from
        one.

        Raises: as score().
        """
        found = self._run("gold", rows, uids)
        return [score for score in found if score is None or isinstance(score, Score)]

    def gold_answers(self, rows: Sequence[Mapping[str, Any]], uids: Sequence[str]) -> list[str | None]:
        """The answers that score_gold() judges.

        Raises: as check_rows().
        """
        found = self._run("gold texts", rows, uids)
        return [text for text in found if text is None or isinstance(text, str)]

    def check_rows(self, rows: Sequence[Mapping[str, Any]], uids: Sequence[str]) -> list[str | None]:
        """Why the reward's method `check_row` refuses each row; None where it does not.

        Raises:
            RewardError: it raised something else than a ValueError, or its process died.
            DeadlineError: it did not return within timeout_s.
        """
        return [why for why in self._run("rows", rows, uids) if why is None or isinstance(why, str)]

    @property
    def hang_score(self) -> float | None:
        """Reward of an answer that was not judged within the limits; None: such an answer ends the run."""
        return self._fork_server.loaded.hang_score

    @property
    def checks_rows(self) -> bool:
        """Whether the reward can say which rows it cannot judge."""
        return self._fork_server.loaded.checks_rows

    @property
    def makes_gold(self) -> bool:
        """Whether the reward itself makes the answer that it should accept from a reference."""
        return self._fork_server.loaded.makes_gold

    @property
    def pids(self) -> list[int]:
        """The processes that wait for answers."""
        return [child.pid for child in self._idle]

    def close(self) -> None:
        """End the processes; a call that scores in another thread fails. A second call does nothing."""
        if self._over:
            return
        self._over = True
        self._ring.close()
        with self._scoring:
            self._fork_server.close()
            for child in self._idle:
                child.close()
            self._idle = []
            self._bell.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(
        self,
        answers: Sequence[str] | Asked,
        rows: Sequence[Mapping[str, Any]],
        uids: Sequence[str],
    ) -> list[Result]:
        if not (len(uids) == len(rows) and (isinstance(answers, str) or len(answers) == len(rows))):
            raise ValueError(f"{len(answers)} answers, {len(rows)} rows and {len(uids)} uids")
        work = _Work(answers, rows, uids, todo=[range(len(rows))] if rows else [])
        with self._scoring:
            try:
                while work.todo or work.busy:
                    self._refuse_if_closed()
                    self._hand_out(work)
                    ready = set(wait([*work.busy, self._bell], timeout=self._patience(work)))
                    self._refuse_if_closed()
                    for jobs in [jobs for jobs in work.busy if jobs in ready]:
                        self._collect(work, jobs)
                    self._end_hanging(work)
            finally:
                self._leave([busy.child for busy in work.busy.values()])
        return [work.scores[i] for i in range(len(rows))]

    def _refuse_if_closed(self) -> None:
        if self._over:
            what = f"the scoring processes of reward {self.reward.name} were ended while they scored"
            raise WorkerError(what)

    def _leave(self, children: Sequence[Child]) -> None:
        """Replace children that still score; those of a scorer that is closed end with the fork server."""
        for child in children:
            if self._over:
                self._idle.append(child)
            else:
                self._replace(child)

    def _hand_out(self, work: _Work) -> None:
        while work.todo and self._idle:
            child = self._idle.pop()
            span, job = work.next_job(self.reward.num_workers)
            work.busy[child.jobs] = _Busy(child, span)
            child.progress.begin(NOT_BEGUN)
            try:
                child.send(job)
            except OSError:  # it died while idle, or does not read; _collect or _end_hanging reports why
                pass

    def _collect(self, work: _Work, jobs: socket.socket) -> bool:
        """Take a child's answer if it is whole; returns whether it was."""
        child, span = work.busy[jobs].child, work.busy[jobs].span
        try:
            frame = child.receive()
            if frame is None:
                return False
            result = read_results(frame, len(span))
        except EOFError as error:
            del work.busy[jobs]
            self._died(child, span, work, error)
            return True
        except FrameError as error:
            del work.busy[jobs]
            self._replace(child)
            raise RewardError(
                f"the process of reward {self.reward.name} answered nonsense: {error}",
                where=self._fork_server.loaded.place,
                fix="something in it writes to descriptors that are not its own",
            ) from error
        del work.busy[jobs]
        self._idle.append(child)
        if isinstance(result, HybridRLError):
            raise with_hint(result, self.reward.variables)
        work.scores.update(zip(span, result, strict=True))
        return True

    def _patience(self, work: _Work) -> float:
        """Seconds until the first of the items that are being scored is overdue, a minute at most: wait()
        takes no time without end."""
        progress = [busy.read() for busy in work.busy.values()]
        since_s = max((since_s for item, since_s in progress if item != NOT_BEGUN), default=0.0)
        return min(max(self.reward.timeout_s - since_s, 0.0), 60.0)

    def _end_hanging(self, work: _Work) -> None:
        for jobs, busy in list(work.busy.items()):
            item, since_s = busy.read()
            if since_s < (0 if item == NOT_BEGUN else self.reward.timeout_s) or self._collect(work, jobs):
                continue
            place = busy.child.stack()
            if busy.read()[0] != item:  # it went on meanwhile: it was slow, not hanging
                continue
            del work.busy[jobs]
            self._replace(busy.child)
            self._give_hang_score(work, busy.span, max(item, 0), place)

    def _give_hang_score(self, work: _Work, span: range, item: int, place: str) -> None:
        if self._fork_server.loaded.hang_score is None or work.answers in ABOUT_ROWS:
            raise DeadlineError(
                f"reward {self.reward.name} did not return for {work.uids[span[item]]} "
                f"within {self.reward.timeout_s:g} s",
                where=place or self._where,
                fix="make it faster, or raise reward.timeout_s",
            )
        work.scores[span[item]] = Score(self._fork_server.loaded.hang_score, {HANG_PART: 1.0})
        work.todo += [part for part in (span[:item], span[item + 1 :]) if part]

    def _died(self, child: Child, span: range, work: _Work, error: EOFError) -> None:
        """Replace a child that died, and score its items again if somebody else may have killed it.

        Raises:
            RewardError: it died of the reward.
        """
        item = span[min(max(child.progress.read()[0], 0), len(span) - 1)]
        place = stack_place(child.progress.stack())
        code = self._replace(child)
        if code == -signal.SIGKILL and item not in work.killed:
            work.killed.add(item)
            work.todo.append(span)
            return
        raise RewardError(
            f"reward {self.reward.name} on {work.uids[item]}: {exit_reason(code)}",
            where=place or self._fork_server.loaded.place,
            fix="let it return or raise; a SIGKILL that nobody sent means that memory ran out",
        ) from error

    def _replace(self, child: Child) -> int:
        """End a child and fork another; returns the exit code of the child."""
        code = self._fork_server.end(child)
        self._idle.append(self._fork_server.fork())
        return code
