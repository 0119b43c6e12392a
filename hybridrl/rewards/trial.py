"""Tries a reward on right answers, those of other rows, empty, cut, very long and hostile ones, many at once.

What is found are false zeros and false ones, answers that end a run, slow answers, scores that change, and
processes that grow.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import DeadlineError, RewardError
from hybridrl.findings import Finding
from hybridrl.hosts.process_usage import Usage, usage_of
from hybridrl.rewards.gold import Rows, least_accepted, spread
from hybridrl.rewards.hostile import HOSTILE, around
from hybridrl.rewards.pool import Scorer
from hybridrl.rewards.score import Score
from hybridrl.types import HANG_PART
from hybridrl.wording import counted

AT_ONCE = 64
"""Answers that are judged at the same time, each in a process of its own."""

_MOST_ACCEPTED = 0.05
"""Share of wrong answers above which the reward is suspected of accepting anything."""

_SLOW_SHARE = 0.5
"""Share of reward.timeout_s above which an answer is slow: a loaded machine takes twice as long."""

_NAMED = 8
"""Kinds of answers that a finding names."""

_LINE = 120
"""Characters of an error that a finding shows."""

_MOST_FAILURES = 5
"""Hostile answers that may fail before the rest are left out: each may take reward.timeout_s."""

_HANG_S = 2.0
"""Longest that a hostile answer may take if the reward has a hang_score, so that it does not end a run."""

_LEAK_CALLS = 2000
_LEAK_S = 5.0
"""A leak is looked for in so many answers, or in those that are judged in so many seconds."""

_LEAK_BYTES = 1000
"""Growth per answer above which memory leaks; 1,000 bytes are a gigabyte in a million answers."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A row with its right answer, and what the reward gives it."""

    number: int
    row: Mapping[str, Any]
    answer: str
    reward: float
    seconds: float

    @property
    def uid(self) -> str:
        return f"row {self.number + 1}"


def try_reward(reward: RewardConfig, rows: Rows, *, where: str, sample: int = 200) -> Iterator[Finding]:
    """Findings, one after the other; the whole may take minutes if answers hang.

    Args:
        rows: of the training data.
        where: the config place, named in errors.
        sample: rows whose right answers are tried, spread evenly over the data.

    Raises:
        ConfigError, RewardError, DeadlineError: the reward cannot be loaded, or fails on a right answer.
    """
    one_worker = reward.model_copy(update={"num_workers": 1})
    with Scorer(one_worker, where=where) as scorer:
        items = _right_answers(scorer, rows, sample)
        if not items:
            yield Finding(
                "warning", "gold", "no answer can be made from the references: only the form is tried"
            )
        else:
            yield _gold(scorer, items)
            yield _latency(reward, items)
            yield from _wrong_answers(scorer, items)
            yield _again(scorer, items)
        some = items or [_Item(0, rows[0], "", 0.0, 0.0)]
        yield _leaks(scorer, some)
        patient = scorer.hang_score is None
    limit_s = reward.timeout_s if patient else min(reward.timeout_s, _HANG_S)
    with Scorer(one_worker.model_copy(update={"timeout_s": limit_s}), where=where) as scorer:
        yield from _hostile(scorer, next((item for item in some if item.reward > 0), some[0]))
    if items:
        yield _at_once(reward, items, where)


def gold_answers(
    reward: RewardConfig, rows: Rows, *, where: str, sample: int
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Some rows, spread evenly over the data, with their right answers; a text that says so where the reward
    can make none.

    Raises:
        ConfigError, RewardError: the reward cannot be loaded.
    """
    picked = spread(len(rows), sample)
    with Scorer(reward.model_copy(update={"num_workers": 1}), where=where) as scorer:
        found = scorer.gold_answers([rows[i] for i in picked], [f"row {i + 1}" for i in picked])
    return [rows[i] for i in picked], [answer or "an answer" for answer in found]


def _right_answers(scorer: Scorer, rows: Rows, sample: int) -> list[_Item]:
    """The rows that an answer can be made for; judged one by one, for the time that each takes."""
    picked, found = spread(len(rows), sample), []
    answers = scorer.gold_answers([rows[i] for i in picked], [f"row {i + 1}" for i in picked])
    for number, answer in zip(picked, answers, strict=True):
        if answer is not None:
            begun = time.perf_counter()
            (score,) = scorer.score([answer], [rows[number]], [f"the gold answer of row {number + 1}"])
            found.append(_Item(number, rows[number], answer, score.reward, time.perf_counter() - begun))
    return found


def _gold(scorer: Scorer, items: Sequence[_Item]) -> Finding:
    rejected = [item for item in items if item.reward <= 0]
    accepted, least = (len(items) - len(rejected)) / len(items), least_accepted(scorer)
    text = f"accepts {accepted:.0%} of {counted(len(items), 'right answer')}"
    if rejected:
        shown = "; ".join(f"{item.uid}: {_short(item.answer)}" for item in rejected[:3])
        text += f"; a launch asks for {least:.0%}. Rejected: {shown}"
    return Finding("no" if accepted < least else "warning" if rejected else "ok", "gold", text)


def _latency(reward: RewardConfig, items: Sequence[_Item]) -> Finding:
    times = sorted(item.seconds for item in items)
    slowest = max(items, key=lambda item: item.seconds)
    slow = slowest.seconds > _SLOW_SHARE * reward.timeout_s
    p50, p99 = (times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.99))
    text = (
        f"half of them within {_time(p50)}, 99 % within {_time(p99)}, the slowest, {slowest.uid}, in "
        f"{_time(slowest.seconds)}; reward.timeout_s = {reward.timeout_s:g}"
    )
    return Finding("warning" if slow else "ok", "time", text)


def _wrong_answers(scorer: Scorer, items: Sequence[_Item]) -> Iterator[Finding]:
    """Answers that cannot be right: those of other rows, none, and the first half."""
    others = [(item, other.answer) for item, other in _pairs(items)]
    yield _accepted(scorer, "shuffled", ("answer of another row", "answers of another row"), others)
    blanks = [(items[0], text) for text in ("", " ", "\n\n")]
    yield _accepted(scorer, "empty", ("empty answer", "empty answers"), blanks)
    halves = [(item, item.answer[: len(item.answer) // 2]) for item in items if len(item.answer) > 1]
    nouns = ("first half of a right answer", "first halves of right answers")
    yield _accepted(scorer, "truncated", nouns, halves)


def _pairs(items: Sequence[_Item]) -> list[tuple[_Item, _Item]]:
    """Each item with the nearest one after it that has another answer."""
    found = []
    for at, item in enumerate(items):
        others = (items[(at + step) % len(items)] for step in range(1, len(items)))
        other = next((other for other in others if other.answer != item.answer), None)
        found += [(item, other)] if other else []
    return found


def _accepted(
    scorer: Scorer, kind: str, nouns: tuple[str, str], tried: Sequence[tuple[_Item, str]]
) -> Finding:
    """Which of these wrong answers get as much as the right one.

    Args:
        nouns: what one of them is, and what several are.
    """
    wrong, failed = [], []
    for item, answer in tried:
        score = _score(scorer, answer, item)
        if isinstance(score, str):
            failed.append(f"on {_short(answer)} for {item.uid} {score}")
        elif score.reward >= item.reward > 0:
            wrong.append(f"{item.uid}: {_short(answer)}")
        if len(failed) == _MOST_FAILURES:
            break
    if failed:
        return Finding("no", kind, f"{nouns[0]}: {failed[0]}")
    share = len(wrong) / len(tried) if tried else 0.0
    text = f"accepts {share:.0%} of {counted(len(tried), *nouns)}"
    text += f"; as {wrong[0]}" if wrong else ""
    return Finding("warning" if share > _MOST_ACCEPTED else "ok", kind, text)


def _again(scorer: Scorer, items: Sequence[_Item]) -> Finding:
    """The same answers in another order, and one of them many times."""
    mixed = [*reversed(items), *[items[0]] * 20]
    scores = scorer.score([i.answer for i in mixed], [i.row for i in mixed], [i.uid for i in mixed])
    changed = [
        (item, score) for item, score in zip(mixed, scores, strict=True) if score.reward != item.reward
    ]
    if not changed:
        return Finding("ok", "repeat", f"{counted(len(mixed), 'score')} are the same in another order")
    item, score = changed[0]
    text = (
        f"{len(changed)} of {counted(len(mixed), 'score')} change in another order: {item.uid} has "
        f"{item.reward:g}, then {score.reward:g}; it keeps a state, or draws numbers"
    )
    return Finding("warning", "repeat", text)


def _hostile(scorer: Scorer, item: _Item) -> Iterator[Finding]:
    """Answers that a policy finds, or that a parser does not expect, around right ones and alone."""
    tried = {**HOSTILE, **around(item.answer)}
    failed: list[str] = []
    late: list[str] = []
    earning: list[str] = []
    worst, count = (0.0, ""), 0
    for label, answer in tried.items():
        begun = time.perf_counter()
        score = _score(scorer, answer, item)
        worst, count = max(worst, (time.perf_counter() - begun, label)), count + 1
        if isinstance(score, str):
            failed.append(f"{label}: {score}")
        elif HANG_PART in score.parts:
            late.append(label)
        elif score.reward >= item.reward > 0 and label in HOSTILE and answer != item.answer:
            earning.append(label)
        if len(failed) == _MOST_FAILURES:
            break
    done = f"{count} of {counted(len(tried), 'hostile or 100 kB answer')}, the slowest in {_time(worst[0])}"
    yield Finding("no" if failed else "ok", "hostile", "; ".join([f"{done} ({worst[1]})", *failed]))
    if late:
        limit = f"{scorer.reward.timeout_s:g} s and {scorer.reward.memory_gb:g} GB"
        yield Finding("ok", "hang", f"not judged within {limit}, and given the hang_score: {_some(late)}")
    if earning:
        yield Finding("warning", "exploit", f"earn as much as a right answer: {_some(earning)}")


def _leaks(scorer: Scorer, items: Sequence[_Item]) -> Finding:
    """Growth of the process over many answers; the first tenth fills caches and is not counted."""

    def judge(count: int) -> int:
        begun, done = time.perf_counter(), 0
        while done < count and time.perf_counter() - begun < _LEAK_S:
            some = [items[(done + i) % len(items)] for i in range(20)]
            scorer.score([i.answer for i in some], [i.row for i in some], [i.uid for i in some])
            done += len(some)
        return done

    judge(_LEAK_CALLS // 10)
    before = usage_of(scorer.pids[0])
    count = judge(_LEAK_CALLS)
    after = usage_of(scorer.pids[0])
    if before is None or after is None:
        return Finding("ok", "leaks", "cannot be looked for on this system")
    return _grown(before, after, count)


def _grown(before: Usage, after: Usage, count: int) -> Finding:
    grown = (after.memory_bytes - before.memory_bytes) / count
    parts = [f"{grown:,.0f} bytes of memory an answer"] if grown > _LEAK_BYTES else []
    more = [("open files", after.files - before.files), ("threads", after.threads - before.threads)]
    more += [("processes it started", after.children - before.children)]
    parts += [f"{number} {nouns}" for nouns, number in more if number > 1]
    if parts:
        return Finding("warning", "leaks", f"{', '.join(parts)} over {counted(count, 'answer', form=',')}")
    return Finding("ok", "leaks", f"no growth over {counted(count, 'answer', form=',')}")


def _at_once(reward: RewardConfig, items: Sequence[_Item], where: str) -> Finding:
    """64 answers in 64 processes: files, ports and servers that they share show."""
    waits = max(1.0, AT_ONCE / (os.cpu_count() or 1))  # for a core; it is no fault of the reward
    many = reward.model_copy(update={"num_workers": AT_ONCE, "timeout_s": waits * reward.timeout_s})
    picked = [items[at % len(items)] for at in range(4 * AT_ONCE)]
    begun = time.perf_counter()
    try:
        with Scorer(many, where=where) as scorer:
            scores = scorer.score(
                [i.answer for i in picked], [i.row for i in picked], [i.uid for i in picked]
            )
    except (RewardError, DeadlineError) as error:
        return Finding("no", "at once", f"{AT_ONCE} at once: {error}")
    seconds = time.perf_counter() - begun
    changed = [item for item, score in zip(picked, scores, strict=True) if score.reward != item.reward]
    text = f"{len(picked)} answers in {AT_ONCE} processes took {_time(seconds)}"
    if changed:
        text = f"{len(changed)} of {text}, and have another score than alone, as {changed[0].uid}"
    return Finding("no" if changed else "ok", "at once", text)


def _score(scorer: Scorer, answer: str, item: _Item) -> Score | str:
    """The score of an answer, or why there is none."""
    try:
        return scorer.score([answer], [item.row], ["it"])[0]
    except (RewardError, DeadlineError) as error:
        what, where = error.what.removeprefix(f"reward {scorer.reward.name} "), error.where
        return f"{what[:_LINE]}  ({where[:_LINE]})"


def _some(labels: Sequence[str]) -> str:
    more = f", and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return f"{', '.join(labels[:_NAMED])}{more}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:30]}...")


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.0995 else f"{seconds:.2g} s"
