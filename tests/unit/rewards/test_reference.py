"""References of a column of numbers, and those that no answer could match."""

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from hybridrl.rewards.plugin import LoadedReward, load_reward
from hybridrl.rewards.reference import number_text, plain_text, reference


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (18, "18"),
        (18.0, "18"),
        (-3.0, "-3"),
        (-0.0, "0"),
        (5e-05, "0.00005"),
        (1.5e-7, "0.00000015"),
        (1e16, "10000000000000000"),
        (1e22, "1" + "0" * 22),
        (100.0, "100"),
        (0.1, "0.1"),
        (18.5, "18.5"),
        (Decimal("18.50"), "18.5"),
        (Decimal("1E+3"), "1000"),
        (np.float64(2.5), "2.5"),
    ],
)
def test_a_number_reads_as_people_write_it(value: float | Decimal, text: str) -> None:
    assert number_text(value) == text
    assert reference({"answer": value}, "answer") == text
    assert plain_text(value) == text


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "'answer' is null, not text or a number"),
        (float("nan"), "'answer' is nan, not a finite number"),
        (float("-inf"), "'answer' is -inf, not a finite number"),
        (Decimal("nan"), "'answer' is NaN, not a finite number"),
        ("", "'answer' is empty"),
        (" \n", "'answer' is empty"),
        ({"a": 1}, "'answer' is an object, not text or a number"),
        ([7], "'answer' is a list, not text or a number"),
    ],
)
def test_what_no_answer_could_match_is_no_reference(value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        reference({"answer": value}, "answer")


_REGEX = {"pattern": r"= (\S+)", "group": 1}
_SUM = {"parts": {"right": {"name": "exact_match", "weight": 1.0}}}


@pytest.mark.parametrize(
    ("name", "options", "form"),
    [
        ("exact_match", {}, "{}"),
        ("exact_match", {"extract": r"= (\S+)"}, "x = {}"),
        ("regex", _REGEX, "x = {}"),
        ("math_verify", {}, "\\boxed{{{}}}"),
        ("weighted_sum", _SUM, "{}"),
    ],
)
@pytest.mark.parametrize(("value", "text"), [(18.0, "18"), (5e-05, "0.00005"), (1e16, "10000000000000000")])
def test_every_rule_takes_numbers_of_a_column(
    name: str, options: dict[str, Any], form: str, value: float, text: str
) -> None:
    reward = load_reward(name, options, where="")
    assert _reward(reward, form.format(text), value) == 1
    assert _reward(reward, form.format("19"), value) == 0


def test_the_gold_answer_of_a_number_is_written_so_too() -> None:
    row = {"prompt": "q", "answer": 18.0, "data_source": "chain_sum", "metadata": {}}
    tagged = load_reward("reasoning_gym", {"extract_tag": "answer"}, where="")
    assert tagged.gold(row, answer_field="answer") == "<answer>18</answer>"
    countdown = load_reward("countdown", {}, where="")
    assert countdown.gold(row, answer_field="answer") == "<answer>18</answer>"
    own = load_reward("operator:contains", {}, where="")
    assert own.gold(row, answer_field="answer") == "18"


def _reward(reward: LoadedReward, answer: str, value: float) -> float:
    scored = reward(answer, {"answer": value}, answer_field="answer")
    return scored["reward"] if isinstance(scored, dict) else scored
