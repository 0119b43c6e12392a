"""Games of the tasks guess and lookup."""

import pytest

from hybridrl.data.tasks.games import games
from hybridrl.data.tasks.guess import guess
from hybridrl.data.tasks.kuhn_poker import kuhn_poker
from hybridrl.data.tasks.lookup import lookup
from hybridrl.errors import ConfigError

TASKS = {"games": games, "guess": guess, "kuhn_poker": kuhn_poker, "lookup": lookup}


@pytest.mark.parametrize("name", TASKS)
def test_no_game_is_in_both_parts_whatever_the_seeds(name: str) -> None:
    task = TASKS[name]
    games = {
        (part, seed): {row["game"] for row in task(seed, part=part, size=300)}
        for part in ("train", "heldout")
        for seed in (0, 1)
    }
    assert all(len(found) == 300 for found in games.values())
    assert not (games["train", 0] | games["train", 1]) & (games["heldout", 0] | games["heldout", 1])
    assert task(3, part="train", size=5) == task(3, part="train", size=5)


def test_every_digit_is_hidden_about_as_often() -> None:
    answers = [row["answer"] for row in guess(0, part="train", size=2000)]
    assert min(map(answers.count, "0123456789")) > 150


def test_the_answer_is_in_the_register_that_is_asked_for() -> None:
    for row in lookup(0, part="heldout", size=50):
        assert row["prompt"] == f"{row['register']}?" and len(row["registers"]) == 10
        assert row["answer"] == row["registers"][row["register"]]


@pytest.mark.parametrize("name", TASKS)
def test_other_parts_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: part = test"):
        TASKS[name](0, part="test")  # type: ignore[arg-type]


def test_every_pair_of_cards_of_kuhn_poker_is_about_as_frequent() -> None:
    pairs = [row["cards"] for row in kuhn_poker(0, part="train", size=2000)]
    assert sorted(set(pairs)) == ["JK", "JQ", "KJ", "KQ", "QJ", "QK"]
    assert min(map(pairs.count, set(pairs))) > 270
