"""Asks the judges of a reward about a few answers, for `hybridrl reward check`.

A service is asked. The language model of the section `judge` is not there without a run: a finding says so.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hybridrl.config.schema import RewardConfig
from hybridrl.findings import Finding
from hybridrl.rewards.judges.asked import Judges
from hybridrl.rewards.judges.replies import REPLIES, Reply
from hybridrl.rewards.parts import rules
from hybridrl.wording import counted

_SHOWN = 160


def try_judges(
    reward: RewardConfig, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> Iterator[Finding]:
    """One finding for each judge of the reward; none if it asks no judge.

    Args:
        rows, answers: what the judges are asked about.
    """
    kinds = {key: name for key, name, _ in rules(reward.name, reward.options) if name in ("http", "judge")}
    if not kinds:
        return
    found, seconds = asyncio.run(_asked(reward, rows, answers)) if "http" in kinds.values() else ({}, 0.0)
    for key, name in kinds.items():
        if name == "judge":
            text = f"{key} asks the language model of the section judge, which only a run starts: not tried"
            yield Finding("warning", "judge", text)
        else:
            yield _service(key, found.get(key, []), seconds, most=reward.max_unjudged)


async def _asked(
    reward: RewardConfig, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> tuple[dict[str, list[Reply]], float]:
    """Replies by the config key of their rule, and the seconds that all took together."""

    async def nobody(messages: Sequence[Mapping[str, str]]) -> Reply:
        return Reply(failure="engine: not started")

    judges, began = Judges(reward, nobody), time.monotonic()
    try:
        asked = await judges.asked(answers, rows)
    finally:
        await judges.close()
    found: dict[str, list[Reply]] = {}
    for row in asked:
        for key, reply in row[REPLIES].items():
            found.setdefault(judges.place(key), []).append(reply)
    return found, time.monotonic() - began


def _service(key: str, replies: Sequence[Reply], seconds: float, *, most: float) -> Finding:
    """What a service did.

    Args:
        most: share of answers without a verdict that ends a run.
    """
    if not replies:
        return Finding("warning", "judge", f"{key}: no row of the first ones needs it: not asked")
    failures = [reply.failure for reply in replies if reply.failure]
    good, total = len(replies) - len(failures), counted(len(replies), "answer")
    text = f"{key} judged {good} of {total} in {seconds:.1f} s"
    if not failures:
        return Finding("ok", "judge", f"{text}; the first reply is {str(replies[0].value):.{_SHOWN}}")
    ((why, _),) = Counter(failures).most_common(1)
    verdict = "no" if len(failures) > most * len(replies) else "warning"
    return Finding(verdict, "judge", f"{text}: {why:.{_SHOWN}}")
