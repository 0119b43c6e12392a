"""Checks every row of a data set for what the reward needs to accept any answer to it.

A row without a usable reference would end the run at the step that takes it, or reward an empty answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import DataError
from hybridrl.rewards.parts import rules
from hybridrl.rewards.plugin import LoadedReward, load_reward
from hybridrl.rewards.pool import Scorer
from hybridrl.wording import counted

_NAMED = 5
"""Rows that an error lists by number."""

_AT_ONCE = 1024
"""Rows that code of the user is asked about in one call."""


class Table(Protocol):
    """Rows with fast access to some columns; columns() raises a DataError that names a row without one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def columns(self, names: Sequence[str], /) -> Iterator[tuple[Any, ...]]: ...

    def place(self, index: int, /) -> str: ...


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
    for _, name, options in rules(reward.name, reward.options):
        if ":" in name:
            wrong = _refused_by_code(reward, name, options, table, scorer, where)
        else:
            wrong = _refused_by_rule(load_reward(name, options, where=where), table, reward.answer_field)
        if found := list(wrong):
            raise _refused(name, found, table, data, where)


def _refused_by_rule(rule: LoadedReward, table: Table, answer_field: str) -> Iterator[tuple[int, str]]:
    checker = rule.function
    if isinstance(checker, ChecksRows) and (names := checker.columns(answer_field)):
        yield from _wrong(rule, table, names, answer_field)


def _refused_by_code(
    reward: RewardConfig,
    name: str,
    options: Mapping[str, Any],
    table: Table,
    scorer: Scorer | None,
    where: str,
) -> Iterator[tuple[int, str]]:
    if scorer is not None and name == reward.name:
        yield from _asked(scorer, table)
        return
    keys = {"answer_field": reward.answer_field, "timeout_s": reward.timeout_s, "memory_gb": reward.memory_gb}
    part = RewardConfig.model_validate({"name": name, "num_workers": reward.num_workers, **keys, **options})
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


def _refused(rule: str, wrong: list[tuple[int, str]], table: Table, data: str, where: str) -> DataError:
    rows = ", ".join(str(index + 1) for index, _ in wrong[:_NAMED]) + (", ..." if wrong[_NAMED:] else "")
    what = f"{len(wrong):,} of {counted(len(table), 'row', form=',')} in {data} cannot be judged by {rule}"
    index, why = wrong[0]
    place = table.place(index).removesuffix(f" of {data}")
    place += f" (index {index} in Python)" if place == f"row {index + 1}" else ""
    return DataError(
        f"{what}: {place}: {why}",
        where=f"{where}; rows {rows}" if wrong[1:] else where,
        fix="drop those rows, or set reward.answer_field to the column of the right answers",
    )
