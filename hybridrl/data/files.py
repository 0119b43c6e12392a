"""Opens data files: .jsonl, .json, .csv and .parquet, packed with gzip or not, one or several of them."""

import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from hybridrl.config import data_files
from hybridrl.data.tables import Joined, JsonLines, Parquet, Row, Rows, Table, stem
from hybridrl.data.text import refuse_broken_text
from hybridrl.errors import AbsentDataError, DataError
from hybridrl.wording import counted, json_fault, json_kind, row_place

_LONGEST_FIELD = 1 << 27
"""Bytes of a CSV field; Python's own limit is shorter than many prompts."""


def open_files(paths: Sequence[str], *, where: str) -> Table:
    """The rows of files and of those that patterns match, one after the other. Files without rows are left
    out, unless none has any.

    Args:
        where: the config place, named in errors.

    Raises:
        DataError: there is no such file (the message names the nearest), it is of another kind, is damaged,
            or is named twice.
    """
    files = [file for path in paths for file in _matched(path, where)]
    if twice := {file for file in files if files.count(file) > 1}:
        what = f"{min(twice)} is named twice: its rows would be taken twice in an epoch"
        raise DataError(what, where=where, fix="name it once")
    tables = {file: open_table(file, where=where) for file in files}
    filled = {file: table for file, table in tables.items() if len(table)}
    if len(filled) < 2:
        return next(iter((filled or tables).values()))
    return Joined(list(filled.values()), sources=_sources(list(filled)))


def open_table(path: str, *, where: str) -> Table:
    """The rows of one file; the arguments and errors are those of open_files()."""
    kind = data_files.kind_of(path)
    if not Path(path).is_file():
        raise AbsentDataError(f"no data file {path}", where=where, fix=data_files.nearest(path))
    if kind is None:
        raise DataError(f"{path} is no data file", where=where, fix=f"give {data_files.NAMED}")
    if kind == ".parquet":
        return Parquet(path)
    file = _unpacked(path)
    if kind == ".csv":
        with file:
            return Rows(list(_of_csv(path, file)), path)
    return _of_json(path, file) if kind == ".json" else JsonLines(path, file)


def _sources(files: Sequence[str]) -> list[str]:
    """Names of files in metrics: without folder, unless two have the same; gsm8k/test and math/test."""
    stems = [stem(file) for file in files]
    folders = [Path(file).absolute().parent.name for file in files]
    return [
        f"{folder}/{name}" if stems.count(name) > 1 else name
        for folder, name in zip(folders, stems, strict=True)
    ]


def _matched(path: str, where: str) -> list[str]:
    if files := data_files.matched(path):
        return files
    raise AbsentDataError(f"no data file {path}", where=where, fix=data_files.nearest(path))


def _unpacked(path: str) -> BinaryIO:
    """The file; of a packed one a copy without a name, which is gone when it is closed."""
    if not data_files.is_packed(path):
        return open(path, "rb")
    copy = tempfile.TemporaryFile()
    try:
        with gzip.open(path, "rb") as file:
            shutil.copyfileobj(file, copy)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        copy.close()
        raise DataError(f"{path} cannot be unpacked: {error}", where=path, fix="write it again") from error
    copy.seek(0)
    return copy  # type: ignore[return-value]


def _of_json(path: str, file: BinaryIO) -> Table:
    """A list of objects, or one object a line as in .jsonl."""
    head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    if not head.startswith(b"["):
        return JsonLines(path, file)
    with file:
        data = file.read()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {json_fault(error)}", where=path) from error
    may_be_broken = b"\\ud" in data or b"\\uD" in data  # only an escape can be half a character
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            what = f"{row_place(index, path)} is {json_kind(row)}, not a JSON object"
            raise DataError(what, where=path, fix="write a list of objects")
        if may_be_broken:
            refuse_broken_text(row, row_place(index, path))
    return Rows(rows, path)


def _of_csv(path: str, file: BinaryIO) -> Iterator[Row]:
    """Rows under the names of the first line; every value is text."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{path} has two columns {twice!r}", where=f"{path}:1", fix="name each column once"
            )
        for fields in reader:
            if len(fields) != len(names) and fields:
                what = (
                    f"line {reader.line_num} has {counted(len(fields), 'field')}, the first line {len(names)}"
                )
                fix = "put a text with commas or line ends in double quotes"
                raise DataError(what, where=f"{path}:{reader.line_num}", fix=fix)
            if fields:
                yield dict(zip(names, fields, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"line {reader.line_num} is not CSV: {error}", where=f"{path}:{reader.line_num}"
        ) from error
