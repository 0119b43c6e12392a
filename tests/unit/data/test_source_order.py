"""The stream of prompts: order, epochs, resume."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from hybridrl.config.schema import DataConfig, SourceConfig
from hybridrl.data.source import load_source
from hybridrl.errors import CheckpointError

ROWS = [{"prompt": f"question {i}?", "answer": str(i), "level": i % 3} for i in range(11)]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path, tokenizer, *, seed=3, shuffle=True, split="train", max_prompt_tokens=100, **data):
    source = SourceConfig(path=path)
    config = DataConfig(train=source, shuffle=shuffle, **data)
    return load_source(
        source,
        config,
        tokenizer,
        split=split,
        seed=seed,
        max_prompt_tokens=max_prompt_tokens,
        where="my.yaml:3",
    )


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "math_train.jsonl")


def uids(prompts):
    return [prompt.uid for prompt in prompts]


def test_an_epoch_holds_every_row_once_and_the_next_one_in_another_order(path, tokenizer):
    source = load(path, tokenizer)
    first, second = uids(source.take(11)), uids(source.take(11))
    assert sorted(first) == sorted(second) == sorted(f"train/{i}" for i in range(11))
    assert first != second
    assert (source.order.epoch, source.order.position) == (2, 0)


def test_the_stream_does_not_depend_on_how_it_is_cut_into_takes(path, tokenizer):
    whole = uids(load(path, tokenizer).take(37))
    cut = load(path, tokenizer)
    assert uids(cut.take(5)) + uids(cut.take(26)) + uids(cut.take(6)) == whole


def test_resume_in_the_middle_of_an_epoch_equals_no_interruption(path, tokenizer):
    one = load(path, tokenizer)
    one.take(16)
    state = json.loads(json.dumps(one.state_dict()))
    rest = one.take(20)
    other = load(path, tokenizer)
    other.take(2)
    other.load_state_dict(state)
    assert other.take(20) == rest


def test_a_state_at_the_end_of_an_epoch_begins_the_next(path, tokenizer):
    one = load(path, tokenizer)
    one.take(11)
    other = load(path, tokenizer)
    other.load_state_dict(one.state_dict())
    assert other.take(11) == one.take(11)


def test_without_shuffle_the_order_is_that_of_the_rows_at_every_epoch(path, tokenizer):
    assert uids(load(path, tokenizer, shuffle=False).take(22)) == [f"train/{i}" for i in range(11)] * 2


def test_seeds_give_different_orders_and_one_seed_one_order(path, tokenizer):
    orders = [uids(load(path, tokenizer, seed=seed).take(11)) for seed in (3, 3, 4)]
    assert orders[0] == orders[1] != orders[2]


def test_all_gives_the_rows_in_order_and_moves_nothing(path, tokenizer):
    source = load(path, tokenizer, split="heldout")
    source.take(4)
    before = source.state_dict()
    assert uids(source.all()) == [f"heldout/{i}" for i in range(11)]
    assert source.state_dict() == before


def test_a_prompt_carries_its_row_and_the_name_of_its_data(path, tokenizer):
    prompt = load(path, tokenizer).all()[7]
    assert prompt.row == ROWS[7]
    assert prompt.source == "math_train"


def test_a_row_names_its_own_data_set(tmp_path, tokenizer):
    path = write_jsonl(
        tmp_path / "mix.jsonl",
        [{"prompt": "a", "data_source": "algebra"}, {"prompt": "b"}, {"prompt": "c", "data_source": None}],
    )
    assert [p.source for p in load(path, tokenizer).all()] == ["algebra", "mix", "mix"]


def test_parquet_and_jsonl_give_the_same_prompts(path, tmp_path, tokenizer):
    parquet = tmp_path / "math_train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet, row_group_size=4)
    assert load(str(parquet), tokenizer).take(30) == load(path, tokenizer).take(30)


def test_chat_messages_in_parquet_and_jsonl_give_the_same_prompts(tmp_path, tokenizer):
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    rows = [{"chat": chat, "answer": 1}, {"chat": chat[1:], "answer": None}]
    parquet = tmp_path / "chats.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    jsonl = write_jsonl(tmp_path / "chats.jsonl", rows)
    found = load(str(parquet), tokenizer, prompt_field="chat").all()
    assert found == load(jsonl, tokenizer, prompt_field="chat").all()
    assert found[0].token_ids != found[1].token_ids


@pytest.mark.parametrize("change", [{"seed": 4}, {"shuffle": False}])
def test_a_state_of_another_order_is_refused(path, tokenizer, change):
    state = load(path, tokenizer).state_dict()
    with pytest.raises(CheckpointError, match=f"has {next(iter(change))}"):
        load(path, tokenizer, **change).load_state_dict(state)


def test_a_state_of_other_data_is_refused(path, tmp_path, tokenizer):
    state = load(path, tokenizer).state_dict()
    with pytest.raises(CheckpointError, match="num_rows = 10, in the checkpoint it is 11"):
        load(write_jsonl(tmp_path / "less.jsonl", ROWS[:10]), tokenizer).load_state_dict(state)


def test_prompts_at_places_in_the_stream_are_those_that_are_taken_there(path, tokenizer):
    source = load(path, tokenizer)
    taken = source.take(30)
    assert source.position == 30
    ahead = load(path, tokenizer)
    assert ahead.at([29, 0, 11, 12]) == [taken[29], taken[0], taken[11], taken[12]]
    assert ahead.position == 0
