"""Checks every row of a data set for what the reward needs to accept any answer to it.

A row without a usable reference would end the run at the step that takes it, or reward an empty answer.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import DataError
from hybridrl.rewards.chosen import ChosenRows, Table, judged_rows
from hybridrl.rewards.parts import Rule, rules_of
from hybridrl.rewards.plugin import LoadedReward, load_reward
from hybridrl.rewards.pool import Scorer
from hybridrl.wording import counted

_NAMED = 5
"""Rows that an error lists by number."""

_AT_ONCE = 1024
"""Rows that code of the user is asked about in one call."""


@runtime_checkable
class ChecksRows(Protocol):
    """A rule that knows which rows it can judge."""

    def columns(self, answer_field: str) -> tuple[str, ...]:
        """The columns that it reads; empty if it can judge any row."""
        ...

    def check_row(self, row: Mapping[str, Any], *, answer_field: str) -> None:
        """
        Raises:
            ValueError: no answer to this row can be right; the message says why.
        """
        ...


def check_rows(
    reward: RewardConfig, table: Table, *, data: str, where: str, scorer: Scorer | None = None
) -> None:
    """Look at every row of a table, as the rules of the reward need it. Code of the user is asked in its
    scoring processes, if it has a method `check_row`.

    It costs one pass over the columns that the rules read: 100,000 rows take about a second.

    Args:
        data: names the table in an error.
        where: the config place, named in errors.
        scorer: of the reward. None: one is made if code of the user is asked.

    Raises:
        DataError: rows that a rule cannot judge, or a column that it needs is missing.
        RewardError, DeadlineError: code of the user fails.
    """
    for rule in rules_of(Rule("reward", reward.name, reward.options, reward.answer_field)):
        judged = judged_rows(rule, table, where=where) if rule.choices else table
        if not len(judged):
            continue
        if ":" in rule.name:
            wrong = _refused_by_code(reward, rule, judged, scorer, where)
        else:
            loaded = load_reward(rule.name, rule.options, where=where)
            wrong = _refused_by_rule(loaded, judged, rule.answer_field or reward.answer_field)
        if found := list(wrong):
            raise _refused(rule, found, judged, data, where)


def _refused_by_rule(rule: LoadedReward, table: Table, answer_field: str) -> Iterator[tuple[int, str]]:
    checker = rule.function
    if isinstance(checker, ChecksRows) and (names := checker.columns(answer_field)):
        yield from _wrong(rule, table, names, answer_field)


def _refused_by_code(
    reward: RewardConfig, rule: Rule, table: Table, scorer: Scorer | None, where: str
) -> Iterator[tuple[int, str]]:
    if scorer is not None and rule.name == reward.name:
        yield from _asked(scorer, table)
        return
    keys = {"answer_field": rule.answer_field, "timeout_s": reward.timeout_s, "memory_gb": reward.memory_gb}
    part = RewardConfig.model_validate(
        {"name": rule.name, "num_workers": reward.num_workers, **keys, **rule.options}
    )
    with Scorer(part, where=where) as own:
        yield from _asked(own, table)


def _asked(scorer: Scorer, table: Table) -> Iterator[tuple[int, str]]:
    """Number and fault of each row that the scorer's check_row refuses."""
    if not scorer.checks_rows:
        return
    for start in range(0, len(table), _AT_ONCE):
        numbers = range(start, min(start + _AT_ONCE, len(table)))
        faults = scorer.check_rows([table[i] for i in numbers], [table.place(i) for i in numbers])
        yield from ((i, fault) for i, fault in zip(numbers, faults, strict=True) if fault is not None)


def _wrong(
    rule: LoadedReward, table: Table, names: tuple[str, ...], answer_field: str
) -> Iterator[tuple[int, str]]:
    """Number and fault of each row that the rule cannot judge."""
    first = table[0]
    names = tuple(dict.fromkeys(name if name in first else name.split(".")[0] for name in names))
    for index, values in enumerate(table.columns(names)):
        fault = rule.fault(dict(zip(names, values, strict=True)), answer_field=answer_field)
        if fault is not None:
            yield index, fault


def _refused(rule: Rule, wrong: list[tuple[int, str]], table: Table, data: str, where: str) -> DataError:
    numbers = [table.number(i) if isinstance(table, ChosenRows) else i for i, _ in wrong]
    rows = ", ".join(str(number + 1) for number in numbers[:_NAMED]) + (", ..." if wrong[_NAMED:] else "")
    own = f" whose {rule.choices[-1].field} is {rule.choices[-1].value}" if rule.choices else ""
    of = counted(len(table), "row", form=",")
    what = f"{len(wrong):,} of {of} in {data}{own} cannot be judged by {rule.name}"
    (first, why), index = wrong[0], numbers[0]
    place = table.place(first).removesuffix(f" of {data}")
    place += f" (index {index} in Python)" if place == f"row {index + 1}" else ""
    return DataError(
        f"{what}: {place}: {why}",
        where=f"{where}; rows {rows}" if wrong[1:] else where,
        fix=f"drop those rows, or set {_owner(rule)}.answer_field to the column of the right answers",
    )


def _owner(rule: Rule) -> str:
    """Key of the section that may have an answer_field for this rule: its own, if a column chooses it."""
    return f"{rule.choices[-1].key}.{rule.choices[-1].value}" if rule.choices else "reward"
