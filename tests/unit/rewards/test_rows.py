"""Rows that a reward cannot judge are found wherever they stand."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.data.tables import JsonLines, Row, Rows
from hybridrl.errors import DataError
from hybridrl.rewards.rows import check_rows


def check(rows: list[dict[str, Any]], name: str = "exact_match", **options: Any) -> None:
    check_rows(RewardConfig(name=name, **options), Rows(rows, "d"), data="d.jsonl", where="my.yaml:3")


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


def test_a_part_of_a_sum_and_a_column_of_a_struct_are_looked_at_too() -> None:
    parts = {"own": {"name": "lab:f", "weight": 1}, "right": {"name": "exact_match", "weight": 1}}
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


@pytest.mark.parametrize(("name", "options"), [("none", {}), ("regex", {"pattern": "x"}), ("lab:judge", {})])
def test_a_reward_that_reads_no_reference_takes_any_row(name: str, options: dict[str, Any]) -> None:
    check([{"prompt": "q"}, {"prompt": "q", "answer": None}], name, **options)


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
