"""Rows that a reward cannot judge are found wherever they stand."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.data.files import open_files
from hybridrl.data.tables import JsonLines, Row, Rows
from hybridrl.errors import DataError, RewardError
from hybridrl.rewards.rows import check_rows


def check(rows: list[dict[str, Any]], name: str = "exact_match", **options: Any) -> None:
    check_rows(RewardConfig(name=name, **options), Rows(rows, "d.jsonl"), data="d.jsonl", where="my.yaml:3")


GOOD = {"prompt": "q", "answer": "7"}
PUZZLE = {"numbers": [1, 2], "target": 3}
GYM = {"prompt": "1 + 1 =", "answer": None, "data_source": "chain_sum", "metadata": {}}
GROUP = {"pattern": "(.)", "group": 1}
MARKED = {"extract_reference": "#### (.+)"}


@pytest.mark.parametrize("name", ["exact_match", "math_verify"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "is null, not text or a number"),
        (float("nan"), "is nan, not a finite number"),
        ("", "is empty"),
        ([1], "is a list, not text or a number"),
    ],
)
def test_one_wrong_reference_among_many_is_named(name: str, value: Any, why: str) -> None:
    rows = [dict(GOOD) for _ in range(700)]
    rows[501]["answer"] = value
    with pytest.raises(DataError) as refused:
        check(rows, name)
    what = f"1 of 700 rows in d.jsonl cannot be judged by {name}"
    what = f"{what}: row 502 (index 501 in Python): the reference 'answer' {why}"
    assert (refused.value.what, refused.value.where) == (what, "my.yaml:3")


@pytest.mark.parametrize(
    ("good", "change", "name", "options", "why"),
    [
        (GOOD, {"answer": None}, "regex", GROUP, "'answer' is null"),
        ({"answer": "#### 7"}, {"answer": "7"}, "math_verify", MARKED, "finds nothing in the reference '7'"),
        ({"answer": "#### 7"}, {"answer": "7"}, "exact_match", MARKED, "finds nothing in the reference '7'"),
        (PUZZLE, {"numbers": None}, "countdown", {}, "'numbers' is None, not a list of numbers"),
        (PUZZLE, {"numbers": []}, "countdown", {}, "'numbers' is empty"),
        (PUZZLE, {"numbers": [1, None]}, "countdown", {}, "not a list of numbers"),
        (PUZZLE, {"target": float("nan")}, "countdown", {}, "'target' is nan, not a number"),
        (PUZZLE, {"target": None}, "countdown", {}, "'target' is None, not a number"),
        (GYM, {"metadata": None}, "reasoning_gym", {}, "'metadata' is None, not an object"),
        (GYM, {"data_source": None}, "reasoning_gym", {}, "'data_source' is None, not text"),
    ],
)
def test_every_rule_looks_at_what_it_reads(
    good: Mapping[str, Any], change: dict[str, Any], name: str, options: dict[str, Any], why: str
) -> None:
    rows = [dict(good) for _ in range(5)]
    check(rows, name, **options)
    with pytest.raises(DataError, match=why):
        check([*rows, dict(good) | change], name, **options)


@pytest.fixture
def plain(tmp_path: Path) -> str:
    """A reward of a user that says nothing about rows."""
    (tmp_path / "plain.py").write_text("def judge(answer, row): return 1.0\n")
    return f"{tmp_path}/plain.py:judge"


def test_a_part_of_a_sum_and_a_column_of_a_struct_are_looked_at_too(plain: str) -> None:
    parts = {"own": {"name": plain, "weight": 1}, "right": {"name": "exact_match", "weight": 1}}
    rows = [{"reward_model": {"ground_truth": "7"}}, {"reward_model": {"ground_truth": None}}]
    with pytest.raises(DataError, match="row 2 .*: the reference 'reward_model.ground_truth' is null"):
        check(rows, "weighted_sum", parts=parts, answer_field="reward_model.ground_truth")
    with pytest.raises(DataError, match="row 1 .*: the row has no 'reward_model.truth'"):
        check(rows, answer_field="reward_model.truth")


def test_several_are_counted_and_the_first_are_listed() -> None:
    with pytest.raises(DataError) as refused:
        check([GOOD] + [{"answer": ""}] * 9)
    assert refused.value.what.startswith("9 of 10 rows in d.jsonl")
    assert refused.value.where == "my.yaml:3; rows 2, 3, 4, 5, 6, ..."


@pytest.mark.parametrize(("name", "options"), [("none", {}), ("regex", {"pattern": "x"}), ("", {})])
def test_a_reward_that_reads_no_reference_takes_any_row(
    plain: str, name: str, options: dict[str, Any]
) -> None:
    check([{"prompt": "q"}, {"prompt": "q", "answer": None}], name or plain, **options)


def test_a_hundred_thousand_rows_take_seconds() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "q", "answer": f"#### {i}"} for i in range(100_000)]
    start_s = time.process_time()
    check(rows, "math_verify", extract_reference="#### (.+)")
    assert time.process_time() - start_s < 3


class CountedLines(JsonLines):
    num_read = 0

    def __getitem__(self, index: int) -> Row:
        self.num_read += 1
        return super().__getitem__(index)


def test_each_line_is_read_once_for_all_columns(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text((json.dumps(PUZZLE) + "\n") * 5)
    table = CountedLines(str(tmp_path / "d.jsonl"))
    check_rows(RewardConfig(name="countdown"), table, data="d.jsonl", where="my.yaml:3")
    assert table.num_read == 5 + 1  # and the first once more, for its columns
    with pytest.raises(DataError, match="no column 'nothing'"):
        list(table.columns(("target", "nothing")))


OWN = """
class Digit:
    def __call__(self, answer, row): return 1.0
    def check_row(self, row, *, answer_field):
        if not row[answer_field].isdigit():
            raise ValueError(f"{row[answer_field]!r} is no digit")
        1 / int(row[answer_field])
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path}/own.py:Digit"


def test_a_reward_of_the_user_may_refuse_rows(own: str) -> None:
    rows = [{"answer": "1"} for _ in range(2500)]
    check(rows, own)
    for index in (7, 1024, 2499):
        rows[index] = {"answer": "x"}
    with pytest.raises(DataError) as refused:
        check(rows, own)
    assert f"3 of 2,500 rows in d.jsonl cannot be judged by {own}: row 8 (index 7" in refused.value.what
    assert refused.value.what.endswith("'x' is no digit") and "rows 8, 1025, 2500" in refused.value.where


def test_a_part_of_a_sum_may_refuse_rows_and_what_it_raises_is_placed(own: str) -> None:
    parts = {"a": {"name": "exact_match", "weight": 1}, "b": {"name": own, "weight": 1}}
    with pytest.raises(DataError, match="1 of 2 rows .*: row 2 .*'x' is no digit"):
        check([{"answer": "1"}, {"answer": "x"}], "weighted_sum", parts=parts)
    with pytest.raises(RewardError, match="check_row of .* raised ZeroDivisionError on row 1 of d.jsonl"):
        check([{"answer": "0"}], own)


def test_rows_of_several_files_are_named_in_their_own(tmp_path: Path) -> None:
    for name, value in (("a", "1"), ("b", "")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"answer": "1"}) + f'\n{{"answer": "{value}"}}\n')
    table = open_files([f"{tmp_path}/*.jsonl"], where="my.yaml:2")
    with pytest.raises(DataError, match=r"1 of 4 rows in d/\*.jsonl .*: row 2 of .*/b.jsonl: the reference"):
        check_rows(RewardConfig(name="exact_match"), table, data="d/*.jsonl", where="my.yaml:3")
