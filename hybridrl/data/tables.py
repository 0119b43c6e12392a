"""Tables that are read row by row: JSONL (rows stay on disk), parquet (Arrow columns), and rows of a task."""

import bisect
import difflib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from hybridrl.config.data_files import kind_of, unpacked_name
from hybridrl.data.text import refuse_broken_text
from hybridrl.errors import DataError
from hybridrl.wording import json_fault, json_kind, row_place

Row = Mapping[str, Any]


class Table(Protocol):
    """A sequence of rows with fast access to some columns. Reading a malformed row raises a DataError that
    names it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def column(self, name: str) -> Iterator[Any]:
        """The column's value in every row; the errors are those of columns()."""
        ...

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """The values of the columns in every row, in one pass.

        Raises:
            DataError: a row lacks one of them; the message lists those it has.
        """
        ...

    def place(self, index: int) -> str:
        """Name of a row in messages: its number and its file."""
        ...

    def source(self, index: int) -> str:
        """Name of a row's data set in metrics, unless the row has a `data_source`: the name of its file."""
        ...


def columns_or_null(table: Table, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """As table.columns(), with null for what a row lacks; from the first such row on whole rows are read,
    which takes longer."""
    done = 0
    try:
        for values in table.columns(names):
            yield values
            done += 1
    except DataError:
        for index in range(done, len(table)):
            yield tuple(map(table[index].get, names))


def no_column(name: str, columns: Sequence[str], place: str) -> DataError:
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"its columns are {', '.join(columns)}"
    return DataError(f"{place} has no column {name!r}", where=f"columns: {', '.join(columns)}", fix=fix)


def _values(row: Row, names: Sequence[str], place: str) -> tuple[Any, ...]:
    for name in names:
        if name not in row:
            raise no_column(name, list(row), place)
    return tuple(row[name] for name in names)


def stem(name: str) -> str:
    """The name of a data file without its folder and its ending; another name as it is."""
    return Path(unpacked_name(name)).stem if kind_of(name) else name


class Rows:
    """A list of rows."""

    def __init__(self, rows: Sequence[Row], name: str) -> None:
        """
        Args:
            name: the task or the file that they are from.
        """
        self._rows, self._name = rows, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def column(self, name: str) -> Iterator[Any]:
        return (value for (value,) in self.columns((name,)))

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for index, row in enumerate(self._rows):
            yield _values(row, names, self.place(index))

    def place(self, index: int) -> str:
        return row_place(index, self._name)

    def source(self, index: int) -> str:
        return stem(self._name)


class Joined:
    """The rows of several tables, one table after the other."""

    def __init__(
        self, tables: Sequence[Table], name: str | None = None, sources: Sequence[str] | None = None
    ) -> None:
        """
        Args:
            name: the tables are parts of one data set of this name, in which their rows are counted.
            sources: the name of each table in metrics; None: its own.
        """
        self._tables, self._name, self._sources = tables, name, sources
        self._starts = [0, *itertools.accumulate(map(len, tables))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Row:
        which, row = self._at(index)
        return self._tables[which][row]

    def column(self, name: str) -> Iterator[Any]:
        return itertools.chain.from_iterable(table.column(name) for table in self._tables)

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return itertools.chain.from_iterable(table.columns(names) for table in self._tables)

    def place(self, index: int) -> str:
        which, row = self._at(index)
        return row_place(index, self._name) if self._name else self._tables[which].place(row)

    def source(self, index: int) -> str:
        which, row = self._at(index)
        named = self._sources[which] if self._sources else self._tables[which].source(row)
        return self._name or named

    def _at(self, index: int) -> tuple[int, int]:
        """Number of a row's table, and of the row in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect.bisect_right(self._starts, index) - 1
        return which, index - self._starts[which]


class JsonLines:
    """One JSON object a line; only where each line starts is kept in memory."""

    def __init__(self, path: str, file: BinaryIO | None = None) -> None:
        """
        Args:
            path: its name in messages.
            file: the file, unpacked; the table closes it. None: it is opened.
        """
        self._path, self._file = path, file or open(path, "rb")
        length_N = np.fromiter((len(line) for line in self._file), np.int64)
        self._start_N = np.concatenate([[0], np.cumsum(length_N)])
        # Blank lines at the end are ignored.
        while len(self) and not self._line(len(self) - 1).strip():
            self._start_N = self._start_N[:-1]

    def __del__(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._start_N) - 1

    def __getitem__(self, index: int) -> Row:
        place = f"{self._path}:{index + 1}"
        line = self._line(index)
        try:
            row = json.loads(line.decode("utf-8-sig" if index == 0 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {index + 1} is not JSON: {json_fault(error)}", where=place) from error
        if not isinstance(row, dict):
            raise DataError(f"line {index + 1} is {json_kind(row)}, not a JSON object", where=place)
        if b"\\ud" in line or b"\\uD" in line:  # raw bytes cannot hold half a pair: decoding refuses it
            refuse_broken_text(row, place)
        return row

    def column(self, name: str) -> Iterator[Any]:
        return (value for (value,) in self.columns((name,)))

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        for index in range(len(self)):
            yield _values(self[index], names, f"{self._path}:{index + 1}")

    def _line(self, index: int) -> bytes:
        start, end = int(self._start_N[index]), int(self._start_N[index + 1])
        return os.pread(self._file.fileno(), end - start, start)

    def place(self, index: int) -> str:
        return row_place(index, self._path)

    def source(self, index: int) -> str:
        return stem(self._path)


class Parquet:
    """An Arrow table; a row becomes Python objects when it is read."""

    def __init__(self, path: str) -> None:
        import pyarrow
        import pyarrow.parquet

        self._path = path
        try:
            self._table = pyarrow.parquet.read_table(path, memory_map=True)
        except (pyarrow.ArrowException, OSError) as error:
            why = next(iter(str(error).splitlines()), "").rstrip(": ")
            why = "".join(c if c.isprintable() else "?" for c in why)  # bytes of the file may be in it
            raise DataError(f"{path} is not a parquet file: {why}", where=path) from error
        self._names: list[str] = self._table.column_names

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> Row:
        try:
            return self._table.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            raise self._no_text(index) from error

    def column(self, name: str) -> Iterator[Any]:
        if name not in self._names:
            raise no_column(name, self._names, self._path)
        at = 0
        for chunk in self._table.column(name).chunks:
            yield from self._read(chunk, at)
            at += len(chunk)

    def _read(self, values: Any, at: int) -> Iterator[Any]:
        """Arrow values as Python's.

        Raises:
            DataError: a text is not UTF-8, which no writer of parquet checks; the message names its row.
        """
        try:
            return iter(values.to_pylist())
        except UnicodeDecodeError as error:
            raise self._no_text(at + next(i for i, v in enumerate(values) if not _is_text(v))) from error

    def _no_text(self, index: int) -> DataError:
        what = f"{self.place(index)} has a text that is not UTF-8"
        return DataError(what, where=self._path, fix="write the file again, or drop the row")

    def columns(self, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        return zip(*map(self.column, names), strict=True)

    def place(self, index: int) -> str:
        return row_place(index, self._path)

    def source(self, index: int) -> str:
        return stem(self._path)


def _is_text(value: Any) -> bool:
    """Whether an Arrow value can be read; one that is no text always can."""
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True
