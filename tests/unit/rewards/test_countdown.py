"""The reward of Countdown: what solves a puzzle, what only looks like it, and what is no expression."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.errors import ConfigError
from hybridrl.rewards.plugin import load_reward
from hybridrl.rewards.rules.countdown import Countdown

ROW = {"numbers": [3, 5, 5, 2], "target": 11}


def judged(answer, row=ROW, **options):
    return Countdown(**options)(answer, row)["reward"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("3 * 5 - 2 * (5 - 3)", 0.1),  # 3 twice
        ("(5 + 5 * 2) - 3", 0.1),  # another value
        ("5 + 5 + 3 - 2", 1.0),
        (" 5+5+3-2\n", 1.0),
        ("-2 + 5 + (5 + 3)", 1.0),
        ("5 + 5 + 3 - 2 = 11", 0.1),
        ("11", 0.1),
        ("5 + 3 * 2", 0.1),  # not all numbers
        ("5 / (5 - 5) + 3 - 2", 0.1),
        ("5 5 3 2", 0.1),
        ("", 0.1),
    ],
)
def test_an_expression_in_its_tags(expression, expected) -> None:
    assert judged(f"<think>...</think> <answer>{expression}</answer>") == expected


def test_exact_fractions() -> None:
    row = {"numbers": [1, 3, 3, 9], "target": 1}
    assert judged("<answer>1 / 3 * 9 / 3</answer>", row) == 1.0


def test_division_is_no_rounding() -> None:
    assert judged("<answer>7 / 2</answer>", {"numbers": [7, 2], "target": 3}) == 0.1


def test_some_numbers_are_enough_if_that_is_asked() -> None:
    assert judged("<answer>5 + 3 * 2</answer>", use="some") == 1.0
    assert judged("<answer>3 + 3 + 5</answer>", use="some") == 0.1, "3 is there once"


def test_the_last_answer_counts() -> None:
    right, wrong = "<answer>5 + 5 + 3 - 2</answer>", "<answer>5 + 5</answer>"
    assert judged(f"{wrong} no: {right}") == 1.0
    assert judged(f"{right} no: {wrong}") == 0.1
    assert judged(f"<answer> {right}") == 1.0


@pytest.mark.parametrize("answer", ["5 + 5 + 3 - 2", "<answer>5 + 5 + 3 - 2", "", "</answer><answer>"])
def test_without_tags_there_is_no_answer(answer) -> None:
    assert judged(answer) == 0.0


def test_the_format_score_is_an_option() -> None:
    assert judged("<answer>5</answer>", format_score=0.0) == 0.0
    assert judged("<answer>5</answer>", format_score=0.5) == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "9**9**9**9",
        "1 // 2",
        "[5, 5][0]",
        "5 if 5 else 3",
        "1e5",
        "5.0",
        "0x5",
        "\x00",
        "\u0665 + 5",  # a digit of another script
        "(" * 120 + "5" + ")" * 120,
        "-" * 250 + "5",
        "5 +" * 100_000 + "5",
    ],
)
def test_nothing_but_arithmetic_is_read(text) -> None:
    assert judged(f"<answer>{text}</answer>") == 0.1


@given(st.text(alphabet="0123456789+-*/() \n<>answer[]._", max_size=60))
def test_no_answer_breaks_it(text) -> None:
    assert judged(f"<answer>{text}</answer>") in (0.1, 1.0)


def test_parquet_columns_are_read() -> None:
    import numpy as np

    row = {"numbers": np.array([3, 5, 5, 2]), "target": np.int64(11)}
    assert judged("<answer>5 + 5 + 3 - 2</answer>", row) == 1.0


def test_other_columns() -> None:
    row = {"nums": [3, 5, 5, 2], "goal": 11}
    answer = "<answer>5 + 5 + 3 - 2</answer>"
    assert judged(answer, row, numbers_field="nums", target_field="goal") == 1.0
    with pytest.raises(ValueError, match="the row has no 'numbers'; it has nums, goal"):
        judged(answer, row)


@pytest.mark.parametrize("options", [{"use": "most"}, {"format_score": 1.0}, {"format_score": -0.1}])
def test_wrong_options_are_refused(options) -> None:
    with pytest.raises(ConfigError):
        load_reward("countdown", options, where="reward")
