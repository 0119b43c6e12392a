"""The rows of a table that a rule judges, where a column says which rule that is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from hybridrl.errors import DataError
from hybridrl.rewards.parts import Rule
from hybridrl.types import in_row


class Table(Protocol):
    """Rows with fast access to some columns; columns() raises a DataError that names a row without one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...

    def columns(self, names: Sequence[str], /) -> Iterator[tuple[Any, ...]]: ...

    def place(self, index: int, /) -> str: ...


class ChosenRows:
    """Some rows of a table, as a Table. The other rows may have other columns."""

    def __init__(self, table: Table, indices: Sequence[int]) -> None:
        self._table, self._indices = table, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return self._table[self._indices[index]]

    def columns(self, names: Sequence[str], /) -> Iterator[tuple[Any, ...]]:
        for index, row in enumerate(map(self._table.__getitem__, self._indices)):
            for name in names:
                if name not in row:
                    raise DataError(
                        f"{self.place(index)} has no column {name!r}", where=f"columns: {', '.join(row)}"
                    )
            yield tuple(row[name] for name in names)

    def place(self, index: int, /) -> str:
        return self._table.place(self._indices[index])

    def number(self, index: int) -> int:
        """Number of a row in the whole table."""
        return self._indices[index]


def judged_rows(rule: Rule, table: Table, *, where: str) -> ChosenRows:
    """The rows that a rule judges.

    Args:
        where: the config place, named in errors.

    Raises:
        DataError: a row that no rule judges, or without the column that says which one does.
    """
    found = ChosenRows(table, range(len(table)))
    for choice in rule.choices:
        kept = []
        for index, value in enumerate(_values(found, choice.field)):
            if value not in choice.among:
                raise DataError(
                    f"{found.place(index)} has {choice.field} = {value[:60]}, and {choice.key} has "
                    f"{', '.join(choice.among)}",
                    where=where,
                    fix="add a reward of that name, or correct the row",
                )
            if value == choice.value:
                kept.append(found.number(index))
        found = ChosenRows(table, kept)
    return found


def _values(table: Table, field: str) -> Iterator[str]:
    """A column of a table, or a field inside one, as texts."""
    head = field if len(table) and field in table[0] else field.split(".")[0]
    return (str(in_row({head: value}, field)) for (value,) in table.columns([head]))
