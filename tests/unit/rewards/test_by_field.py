"""A reward for each kind of row, chosen by a column of the data."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybridrl.config.schema import RewardConfig
from hybridrl.data.tables import JsonLines
from hybridrl.errors import DataError, HybridRLError
from hybridrl.rewards.pool import Scorer
from hybridrl.rewards.rows import check_rows

SEVERAL = {
    "sum": {"name": "exact_match"},
    "word": {"name": "exact_match", "casefold": True, "answer_field": "meta.word"},
    "both": {"name": "weighted_sum", "parts": {"a": {"name": "exact_match", "weight": 2}}},
    "game": "none",
}
SUM, WORD = {"kind": "sum", "answer": "7"}, {"kind": "word", "meta": {"word": "Seven"}}
BOTH, GAME = {"kind": "both", "answer": "8"}, {"kind": "game"}


def reward(several: Any = SEVERAL, field: str = "kind") -> RewardConfig:
    return RewardConfig.model_validate({"name": "by_field", "field": field, "several": several})


def test_each_row_is_judged_by_its_own_reward_which_is_a_part_of_that_name() -> None:
    rows = [SUM, WORD, BOTH, GAME, SUM]
    with Scorer(reward()) as scorer:
        scores = scorer.score(["7", "SEVEN", "8", "7", "8"], rows, ["a", "b", "c", "d", "e"])
        gold = scorer.gold_answers(rows, ["a", "b", "c", "d", "e"])
    assert [(score.reward, score.parts) for score in scores] == [
        (1.0, {"sum": 1.0}),
        (1.0, {"word": 1.0}),
        (2.0, {"both": 2.0, "both/a": 1.0}),
        (0.0, {"game": 0.0}),
        (0.0, {"sum": 0.0}),
    ]
    assert gold == ["7", "Seven", "8", None, "7"]


def check(folder: Path, rows: list[dict[str, Any]], several: Any = SEVERAL) -> None:
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_rows(reward(several), JsonLines(str(folder / "d.jsonl")), data="d.jsonl", where="my.yaml:3")


def test_a_rule_inspects_its_own_rows_which_may_have_columns_of_their_own(tmp_path: Path) -> None:
    check(tmp_path, [SUM, WORD, BOTH, GAME])


@pytest.mark.parametrize(
    ("row", "what", "fix"),
    [
        (
            {"kind": "sum", "answer": ""},
            "1 of 2 rows in d.jsonl whose kind is sum cannot be judged by exact_match: row 3",
            "set reward.several.sum.answer_field to",
        ),
        ({"kind": "word", "meta": {}}, "whose kind is word cannot be judged by exact_match: row 3", "drop"),
        ({"kind": "sum"}, "row 3 of .*d.jsonl has no column 'answer'", ""),
        ({"kind": 3}, "has kind = 3, and reward.several has sum, word, both, game", "add a reward of that"),
        ({"answer": "7"}, "has no column 'kind'", ""),
    ],
)
def test_a_row_that_cannot_be_judged_is_named(
    tmp_path: Path, row: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(DataError, match=what) as refused:
        check(tmp_path, [SUM, WORD, row])
    assert fix in refused.value.fix


def test_code_of_yours_is_asked_about_its_own_rows(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "class Own:\n"
        "    def __call__(self, answer, row): return 1.0\n"
        "    def check_row(self, row, *, answer_field):\n"
        "        if row['kind'] != 'own': raise ValueError('a row of another kind')\n"
        "        if answer_field != 'solution': raise ValueError(answer_field)\n"
    )
    own = {"name": f"{tmp_path}/own.py:Own", "answer_field": "solution"}
    check(tmp_path, [SUM, {"kind": "own", "solution": "x"}], {**SEVERAL, "own": own})


@pytest.mark.parametrize(
    ("several", "said"),
    [
        ({}, "several is empty"),
        ({"a": {"weight": 1}}, "several.a needs the name of a reward"),
        ({"reward": "none"}, "is not called 'reward'"),
        ({"a": "exact_mach"}, "no 'exact_mach'"),
        ({"a": {"name": "exact_match", "casefolds": True}}, "has no option 'casefolds'"),
    ],
)
def test_what_is_no_choice_is_refused(several: Any, said: str) -> None:
    with pytest.raises(HybridRLError, match=said), Scorer(reward(several)):
        pass
