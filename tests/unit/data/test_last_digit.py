"""The quickstart's task: right answers, and parts that share no sum."""

import pytest

from hybridrl.data.tasks.last_digit import last_digit
from hybridrl.errors import ConfigError


def test_answers_are_the_last_digits_of_the_sums() -> None:
    for row in last_digit(0, part="train"):
        a, b = row["prompt"].removesuffix("=").split("+")
        assert int(row["answer"]) == (int(a) + int(b)) % 10


def test_the_parts_share_no_sum_and_are_all_there_is() -> None:
    train, heldout = ({row["prompt"] for row in last_digit(1, part=part)} for part in ("train", "heldout"))
    assert not train & heldout
    assert len(train) + len(heldout) == 900
    assert 120 < len(heldout) < 240


def test_the_seed_gives_the_order_only() -> None:
    first, again, other = (last_digit(seed, part="train") for seed in (3, 3, 4))
    assert first == again != other
    assert sorted(map(str, first)) == sorted(map(str, other))


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="use train or heldout"):
        last_digit(0, part="test")
