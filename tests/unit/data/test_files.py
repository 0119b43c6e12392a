"""Data files of every kind, packed or not, alone and several together: the same rows, and what is refused."""

import csv
import gzip
import io
import json
import time
from pathlib import Path

import pytest

from hybridrl.config.schema import SourceConfig
from hybridrl.data.files import open_files
from hybridrl.data.source import open_rows
from hybridrl.data.tables import Table
from hybridrl.errors import DataError

ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": 'say "x, y"\nand é', "answer": "80%"}]


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_list(rows: list[dict]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def table(rows: list[dict]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode()


def parquet(rows: list[dict]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


FILES = {
    "a.jsonl": jsonl,
    "a.JSONL": jsonl,
    "a.json": as_list,
    "b.json": jsonl,
    "a.csv": table,
    "a.parquet": parquet,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.json.gz": lambda rows: gzip.compress(as_list(rows)),
    "a.csv.gz": lambda rows: gzip.compress(table(rows)),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(*paths: str) -> Table:
    return open_files(paths, where="my.yaml:2")


def rows_of(found: Table) -> list[dict]:
    return [dict(found[index]) for index in range(len(found))]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_has_the_same_rows(name: str) -> None:
    Path(name).write_bytes(FILES[name](ROWS))
    found = opened(name)
    assert rows_of(found) == ROWS
    assert list(found.column("answer")) == ["2", "80%"]
    assert list(found.columns(("answer", "prompt"))) == [(row["answer"], row["prompt"]) for row in ROWS]
    assert found.place(1) == f"row 2 of {name}" and found.source(0) in "ab"


def test_several_files_are_one_table_whose_rows_know_their_file() -> None:
    Path("part").mkdir()
    for name, number in (("part/b.jsonl", 2), ("part/a.jsonl", 1), ("c.json", 3), ("part/empty.jsonl", 0)):
        content = jsonl([{"prompt": f"{name} {n}", "answer": n} for n in range(number)])
        Path(name).write_bytes(content)
    found = opened("c.json", "part/*.jsonl")
    assert list(found.column("answer")) == [0, 1, 2, 0, 0, 1] == [row["answer"] for row in rows_of(found)]
    assert [found.place(index) for index in (2, 3, 5)] == [
        "row 3 of c.json",
        "row 1 of part/a.jsonl",
        "row 2 of part/b.jsonl",
    ]
    assert [found.source(index) for index in range(6)] == ["c", "c", "c", "a", "b", "b"]


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    for folder in ("gsm8k", "math"):
        Path(folder).mkdir()
        Path(folder, "test.jsonl").write_bytes(jsonl(ROWS[:1]))
    Path("aime.jsonl").write_bytes(jsonl(ROWS[:1]))
    found = opened("gsm8k/test.jsonl", "math/test.jsonl", "aime.jsonl")
    assert [found.source(index) for index in range(3)] == ["gsm8k/test", "math/test", "aime"]


@pytest.mark.parametrize("written", ["data/*.jsonl", ["data/a.jsonl", "data/b.jsonl"], "data/**/*.jsonl"])
def test_a_config_names_files_by_a_pattern_or_a_list(written: str | list[str]) -> None:
    Path("data").mkdir()
    for name in "ab":
        Path(f"data/{name}.jsonl").write_bytes(jsonl(ROWS))
    source = SourceConfig.model_validate(written)
    assert len(open_rows(source, split="train", seed=0, where="my.yaml:2")[1]) == 4


def test_files_without_rows_are_no_data() -> None:
    Path("a.jsonl").write_text("")
    Path("b.csv").write_text("prompt,answer\n")
    with pytest.raises(DataError, match=r"a.jsonl and 1 more has no rows  \(my.yaml:2\)"):
        open_rows(SourceConfig.model_validate(["a.jsonl", "b.csv"]), split="train", seed=0, where="my.yaml:2")


def test_the_time_to_open_a_list_grows_with_its_rows_only() -> None:
    rows = [{"prompt": "x" * 1000, "answer": str(n)} for n in range(6000)]
    Path("a.json").write_bytes(as_list(rows))
    since = time.process_time()
    assert len(opened("a.json")) == 6000
    assert time.process_time() - since < 2


WRONG = {
    "no such": (("b.jsonl",), {}, r"no data file b.jsonl .*there is a.jsonl"),
    "no match": (("*.csv",), {}, r"no data file \*.csv .*there is a.jsonl"),
    "folder": (("data",), {"data/x.json.gz": b""}, "no data file data .*give its files: data/.*json.gz"),
    "twice": (("a.jsonl", "*.jsonl"), {}, "a.jsonl is named twice"),
    "kind": (("a.txt",), {"a.txt": b"x"}, "a.txt is no data file .*give .jsonl, .json, .csv or .parquet"),
    "packed parquet": (("a.parquet.gz",), {"a.parquet.gz": b""}, "a.parquet.gz is no data file"),
    "not packed": (
        ("b.jsonl.gz",),
        {"b.jsonl.gz": b'{"a": 1}\n'},
        "b.jsonl.gz cannot be unpacked: Not a gzip",
    ),
    "cut": (("b.csv.gz",), {"b.csv.gz": gzip.compress(b"a" * 99)[:-9]}, "b.csv.gz cannot be unpacked"),
    "list": (("b.json",), {"b.json": b"[1]"}, "row 1 of b.json is a number, not a JSON object"),
    "open list": (("b.json",), {"b.json": b'[{"a": 1}'}, "b.json is not JSON"),
    "deep": (("b.json",), {"b.json": b"[" * 99_999}, "b.json is not JSON"),
    "surrogate": (("b.json",), {"b.json": rb'[{"a": "\ud800"}]'}, "row 1 of b.json: a has .ud800 without"),
    "fields": (
        ("b.csv",),
        {"b.csv": b"a,b\n1,2\n1,2,3\n"},
        r"line 3 has 3 fields, the first line 2  \(b.csv:3",
    ),
    "columns": (("b.csv",), {"b.csv": b"a,b,a\n1,2,3\n"}, "b.csv has two columns 'a'"),
    "quotes": (("b.csv",), {"b.csv": b'a,b\n1,"2\n'}, "line 2 is not CSV: unexpected end of data"),
    "bytes": (("b.csv",), {"b.csv": b"a,b\n1,\xff\n"}, "is not CSV: 'utf-8' codec"),
    "no parquet": (("b.parquet",), {"b.parquet": b"PAR1 and more"}, "b.parquet is not a parquet file"),
}


@pytest.mark.parametrize("paths, files, said", WRONG.values(), ids=WRONG)
def test_what_is_no_data_is_refused_by_name(
    paths: tuple[str, ...], files: dict[str, bytes], said: str
) -> None:
    Path("a.jsonl").write_bytes(jsonl(ROWS))
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        opened(*paths)
