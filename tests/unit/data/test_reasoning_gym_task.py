"""Rows of reasoning-gym puzzles."""

import pytest

from hybridrl.config.schema import DataConfig, SourceConfig
from hybridrl.data.source import load_source, make_rows
from hybridrl.data.tasks.reasoning_gym import reasoning_gym
from hybridrl.errors import ConfigError


def test_one_seed_gives_one_set_of_rows():
    one, same, other = (reasoning_gym(seed, dataset="chain_sum", size=5) for seed in (1, 1, 2))
    assert one == same != other
    assert {"prompt", "answer", "data_source", "metadata"} == set(one[0])


def test_several_datasets_take_turns_and_get_their_own_options():
    rows = reasoning_gym(
        1, dataset=["chain_sum", "gcd"], size=5, config={"chain_sum": {"min_terms": 2, "max_terms": 2}}
    )
    assert [row["data_source"] for row in rows] == ["chain_sum", "gcd"] * 2 + ["chain_sum"]
    assert all(row["metadata"]["num_terms"] == 2 for row in rows[::2])


def test_train_and_heldout_are_different_rows_unless_a_seed_is_given():
    options = {"dataset": "chain_sum", "size": 20}

    def rows(split, **more):
        return make_rows("reasoning_gym", options | more, split=split, seed=0, where="")

    assert rows("train") != rows("heldout")
    assert rows("train") == rows("train")
    assert rows("train", seed=5) == rows("heldout", seed=5)


def test_a_puzzle_becomes_a_prompt_named_after_its_dataset(tokenizer):
    source = SourceConfig.model_validate({"task": "reasoning_gym", "dataset": "leg_counting", "size": 3})
    found = load_source(
        source,
        DataConfig(train=source),
        tokenizer,
        split="train",
        seed=0,
        max_prompt_tokens=4096,
        where="",
    ).all()
    assert [p.source for p in found] == ["leg_counting"] * 3
    assert all(p.row["prompt"] in tokenizer.decode_answers([p.token_ids])[0] for p in found)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dataset": "chain_sums", "size": 2}, "no dataset 'chain_sums': use one of chain_sum"),
        ({"dataset": "chain_sum", "size": 0}, "size = 0"),
        ({"dataset": [], "size": 2}, "dataset is empty"),
        (
            {"dataset": "chain_sum", "size": 2, "config": {"max_term": 3}},
            "no option 'max_term': use one of max_terms",
        ),
        (
            {"dataset": "chain_sum", "size": 2, "config": {"min_terms": 9, "max_terms": 2}},
            "refuses its config",
        ),
        ({"dataset": ["chain_sum"], "size": 2, "config": {"gcd": {}}}, "config is for gcd"),
    ],
)
def test_a_mistake_is_named(options, why):
    with pytest.raises(ConfigError, match=why):
        reasoning_gym(0, **options)


SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def test_parts_have_no_question_in_common_whatever_the_seeds():
    def questions(seed, part, size):
        return {
            row["prompt"]
            for row in reasoning_gym(seed, dataset="chain_sum", size=size, part=part, config=SMALL)
        }

    train, heldout = questions(1, "train", 300), questions(2, "heldout", 60)
    assert len(train) > 100 and len(heldout) > 15
    assert not train & heldout
    assert train & questions(2, "train", 300)


def test_a_part_keeps_the_size_and_the_order_of_a_seed():
    one, same = (reasoning_gym(3, dataset=["gcd", "lcm"], size=7, part="heldout") for _ in range(2))
    assert one == same and len(one) == 7
    assert [row["data_source"] for row in one[:2]] == ["gcd", "lcm"]
