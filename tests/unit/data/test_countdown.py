"""Countdown puzzles: solvable, all different, of the difficulty that was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrl.data.tasks.countdown import countdown
from hybridrl.errors import ConfigError
from hybridrl.rewards.rules.countdown import Countdown


@given(st.integers(0, 999), st.sampled_from(["train", "heldout"]), st.integers(2, 4), st.integers(0, 2))
def test_every_puzzle_is_of_its_kind_and_solved_by_its_answer(seed, part, least, more) -> None:
    reward = Countdown()
    rows = countdown(seed, part=part, size=5, min_numbers=least, max_numbers=least + more, max_value=30)
    for row in rows:
        assert least <= len(row["numbers"]) <= least + more
        assert all(1 <= number <= 30 for number in row["numbers"]) and 10 <= row["target"] <= 100
        gold = reward.gold(row, answer_field="answer")
        assert reward(gold, row) == {"reward": 1.0, "solved": 1.0}
        assert all(str(number) in row["prompt"] for number in [*row["numbers"], row["target"]])


@given(st.sampled_from("+-*/"))
def test_solutions_have_the_operators_that_were_asked_for(operator) -> None:
    size = 3 if operator == "/" else 20
    options = {"min_numbers": 2, "max_numbers": 2, "min_target": 1, "max_target": 99, "operators": [operator]}
    for row in countdown(0, part="train", size=size, **options):
        assert row["answer"].split()[1] == operator


def puzzles(rows) -> set[str]:
    return {f"{sorted(row['numbers'])} {row['target']}" for row in rows}


def test_puzzles_differ_and_the_parts_share_none() -> None:
    easy = {"size": 100, "min_numbers": 2, "max_numbers": 2, "min_target": 1, "max_value": 30}
    train, heldout = (countdown(seed, part=part, **easy) for seed, part in ((1, "train"), (2, "heldout")))
    assert len(puzzles(train)) == len(puzzles(heldout)) == 100
    assert not puzzles(train) & puzzles(heldout)


def test_the_seed_makes_the_puzzles() -> None:
    first, again, other = (countdown(seed, part="train", size=20) for seed in (3, 3, 4))
    assert first == again
    assert not puzzles(first) & puzzles(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "test"}, "use train or heldout"),
        ({"operators": ["^"]}, r"operators = \['\^'\]"),
        ({"operators": []}, r"operators = \[\]"),
        ({"min_numbers": 1}, "min_numbers = 1, max_numbers = 4: at least 2"),
        ({"min_numbers": 5}, "min_numbers = 5, max_numbers = 4"),
        ({"min_target": 200}, "min_target = 200, max_target = 100"),
        ({"max_value": 0}, "max_value = 0"),
        ({"max_value": 2, "max_numbers": 3, "size": 1000}, "only .* puzzles of this kind"),
    ],
)
def test_what_cannot_be_made_is_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        countdown(0, **{"part": "train", "size": 5} | options)
