"""Asks the judges of a config about answers, before the rules score them."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hybridrl.config.schema import RewardConfig
from hybridrl.hosts.variables import child_environment
from hybridrl.rewards.judges.replies import Reply, with_replies
from hybridrl.rewards.judges.service import HttpService, Item
from hybridrl.rewards.parts import rules, rules_of_row
from hybridrl.rewards.plugin import load_reward
from hybridrl.rewards.rules.http import HttpJudge
from hybridrl.rewards.rules.judge import EngineJudge

JUDGES = ("http", "judge")
"""Rewards that ask a judge."""


class AskEngine(Protocol):
    """Asks a language model."""

    async def __call__(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        """Its reply to a conversation: a text, or why there is none."""
        ...


def has_judges(reward: RewardConfig, *names: str) -> bool:
    """Whether a reward asks a judge, or one of these kinds of judges."""
    return any(name in (names or JUDGES) for _, name, _ in rules(reward.name, reward.options))


class Judges:
    """The judges of a reward; all calls come from one event loop."""

    def __init__(self, reward: RewardConfig, engine: AskEngine | None = None) -> None:
        """
        Args:
            engine: asks the judge of the run; None: no rule needs it.
        """
        self._reward, self._engine = reward, engine
        self._rules: dict[str, str] = {}
        """Config key of a rule -> key of its replies."""

        self._labels: dict[str, str] = {}
        self._services: dict[str, HttpService] = {}
        self._engine_rules: dict[str, EngineJudge] = {}
        for key, name, options in rules(reward.name, reward.options):
            if name in JUDGES:
                self._add(load_reward(name, options, where=key).function, key, name)

    def _add(self, rule: Any, key: str, name: str) -> None:
        self._rules[key], self._labels[rule.key] = rule.key, key.rpartition(".")[2] if "." in key else name
        if isinstance(rule, HttpJudge):
            listed = child_environment(self._reward.variables, key="reward.variables", where=key)
            self._services[rule.key] = HttpService(rule, listed.get(rule.key_variable, ""))
        elif isinstance(rule, EngineJudge):
            self._engine_rules[rule.key] = rule

    async def asked(
        self, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """The rows, each with the replies about its answer."""
        keys = [self._keys_of(row) for row in rows]
        found: list[dict[str, Reply]] = [{} for _ in rows]
        await asyncio.gather(*(self._ask(key, keys, answers, rows, found) for key in self._labels))
        return [with_replies(row, replies) for row, replies in zip(rows, found, strict=True)]

    def take_counts(self) -> dict[str, float]:
        """What the services did since the last call, as judge/<label>/requests."""
        found = {}
        for key, service in self._services.items():
            taken, service.counts = service.counts, Counter()
            found |= {f"judge/{self._labels[key]}/{name}": float(count) for name, count in taken.items()}
        return found

    def place(self, key: str) -> str:
        """Config key of the rule whose replies have this key."""
        return next(place for place, own in self._rules.items() if own == key)

    async def close(self) -> None:
        for service in self._services.values():
            await service.close()

    def _keys_of(self, row: Mapping[str, Any]) -> set[str]:
        """Keys of the judges that a row needs."""
        own = rules_of_row(self._reward.name, self._reward.options, row)
        return {self._rules[key] for key, _, _ in own if key in self._rules}

    async def _ask(
        self,
        key: str,
        keys: Sequence[set[str]],
        answers: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        found: list[dict[str, Reply]],
    ) -> None:
        """Ask one judge about all answers that need it."""
        needed = [i for i, wanted in enumerate(keys) if key in wanted]
        if key in self._services:
            replies = await self._services[key].ask([Item(answers[i], rows[i]) for i in needed])
        else:
            rule, engine = self._engine_rules[key], self._engine
            assert engine is not None, "a rule that needs the engine is refused without one"
            replies = await asyncio.gather(*(engine(rule.messages(answers[i], rows[i])) for i in needed))
        for i, reply in zip(needed, replies, strict=True):
            found[i][key] = reply
