"""Checks every row of a data set for what the reward needs to accept any answer to it.

A row without a usable reference would end the run at the step that takes it, or reward an empty answer.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import DataError
from hybridrl.rewards.parts import rules
from hybridrl.rewards.plugin import LoadedReward, load_reward
from hybridrl.wording import counted

_NAMED = 5
"""Rows that an error lists by number."""


class Table(Protocol):
    """Rows with fast access to some columns; columns() raises a DataError that names a row without one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def columns(self, names: Sequence[str], /) -> Iterator[tuple[Any, ...]]: ...


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


def check_rows(reward: RewardConfig, table: Table, *, data: str, where: str) -> None:
    """Look at every row of a table, as the rules of the reward need it. Code of the user is not asked.

    It costs one pass over the columns that the rules read: 100,000 rows take about a second.

    Args:
        data: names the table in an error.
        where: the config place, named in errors.

    Raises:
        DataError: rows that a rule cannot judge, or a column that it needs is missing.
    """
    for _, name, options in rules(reward.name, reward.options):
        if ":" in name:
            continue
        rule = load_reward(name, options, where=where)
        checker = rule.function
        if isinstance(checker, ChecksRows) and (names := checker.columns(reward.answer_field)):
            wrong = list(_wrong(rule, table, names, reward.answer_field))
            if wrong:
                raise _refused(rule.name, wrong, len(table), data, where)


def _wrong(
    rule: LoadedReward, table: Table, names: tuple[str, ...], answer_field: str
) -> Iterator[tuple[int, str]]:
    """Number and fault of each row that the rule cannot judge."""
    first = table[0]
    names = tuple(dict.fromkeys(name if name in first else name.split(".")[0] for name in names))
    for index, values in enumerate(table.columns(names)):
        try:
            rule.check_row(dict(zip(names, values, strict=True)), answer_field=answer_field)
        except ValueError as error:
            yield index, str(error)


def _refused(rule: str, wrong: list[tuple[int, str]], num_rows: int, data: str, where: str) -> DataError:
    rows = ", ".join(str(index + 1) for index, _ in wrong[:_NAMED]) + (", ..." if wrong[_NAMED:] else "")
    what = f"{len(wrong):,} of {counted(num_rows, 'row', form=',')} in {data} cannot be judged by {rule}"
    index, why = wrong[0]
    return DataError(
        f"{what}: row {index + 1} (index {index} in Python): {why}",
        where=f"{where}; rows {rows}" if wrong[1:] else where,
        fix="drop those rows, or set reward.answer_field to the column of the right answers",
    )
