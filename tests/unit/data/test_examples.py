"""Conversations and pairs: which tokens are learnt, and rows that are refused."""

import pytest

from hybridrl.config.schema import SourceConfig
from hybridrl.config.sft_rm import RMDataConfig, SFTDataConfig
from hybridrl.data.example_source import load_examples
from hybridrl.data.examples import Conversations, Encoded, Pairs, block_of
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.errors import ConfigError, DataError

TRAIN = SourceConfig(path="unused.jsonl")
TWO_TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes?"},
    {"role": "user", "content": "2+2"},
    {"role": "assistant", "content": "4"},
]
FORGETFUL = (  # shows the content of an answer only at the end of a conversation
    "{% for m in messages %}{{ m['role'] }}:{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}"
    "{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def sft(tokenizer, row, **data) -> Encoded:
    form = Conversations(SFTDataConfig(train=TRAIN, **data), tokenizer, "here")
    (example,) = form.encode([row], ["row 0"])
    return example.sequences[0]


def learnt_text(tokenizer, encoded: Encoded) -> str:
    kept = [token for token, trained in zip(encoded.token_ids, encoded.trained, strict=True) if trained]
    return tokenizer.hf.decode(kept)


def test_every_answer_of_a_conversation_is_learnt_up_to_its_end_token(tokenizer) -> None:
    found = sft(tokenizer, {"messages": TWO_TURNS}, messages_field="messages")
    assert learnt_text(tokenizer, found) == "yes?<|im_end|>4<|im_end|>"
    assert tokenizer.hf.decode(found.token_ids) == tokenizer.render(TWO_TURNS, answered=True)


def test_a_prompt_is_tokenised_as_in_a_rollout(tokenizer) -> None:
    found = sft(tokenizer, {"prompt": "2+2", "response": "4"}, system_prompt="Be brief.")
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2"}]
    (prompt,) = tokenizer.encode([tokenizer.render(asked)], add_special_tokens=False)
    assert found.token_ids[: found.trained.index(True)] == prompt
    assert learnt_text(tokenizer, found) == "4<|im_end|>"


def test_plain_text_ends_with_the_end_token(tokenizer) -> None:
    found = sft(tokenizer, {"prompt": "2+2=", "response": "4"}, chat_template="none")
    assert tokenizer.hf.decode(found.token_ids) == "2+2=4<|im_end|>"
    assert learnt_text(tokenizer, found) == "4<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(model_folder) -> None:
    tokenizer = load_tokenizer(model_folder)
    tokenizer.hf.chat_template = FORGETFUL
    with pytest.raises(DataError, match="before answer 2 differently"):
        sft(tokenizer, {"messages": TWO_TURNS}, messages_field="messages")
    found = sft(tokenizer, {"messages": TWO_TURNS[:2]}, messages_field="messages")
    assert learnt_text(tokenizer, found) == "yes?<|im_end|>"


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a"}, "no column 'response'"),
        ({"prompt": "a", "response": " "}, "the answer is empty, not text"),
        ({"prompt": 3, "response": "b"}, "neither text nor a list"),
        ({"prompt": [{"role": "user"}], "response": "b"}, "a role and content"),
    ],
)
def test_a_row_that_is_no_example_is_named(tokenizer, row, message) -> None:
    with pytest.raises(DataError, match=f"row 0.*{message}"):
        sft(tokenizer, row)


def test_a_conversation_without_an_answer_is_refused(tokenizer) -> None:
    with pytest.raises(DataError, match="no message of the assistant"):
        sft(tokenizer, {"m": TWO_TURNS[:1]}, messages_field="m")


def test_messages_need_a_template(tokenizer) -> None:
    with pytest.raises(ConfigError, match="needs a chat template"):
        sft(tokenizer, {"m": TWO_TURNS}, messages_field="m", chat_template="none")


def test_a_pair_is_scored_where_its_answers_end(tokenizer) -> None:
    form = Pairs(RMDataConfig(train=TRAIN, margin_field="gap"), tokenizer, "here")
    row = {"prompt": "2+2", "chosen": "4", "rejected": "22", "gap": 2}
    (example,) = form.encode([row], ["row 0"])
    for encoded, answer in zip(example.sequences, ("4", "22"), strict=True):
        assert encoded.trained == [False] * (len(encoded.token_ids) - 1) + [True]
        assert tokenizer.hf.decode(encoded.token_ids[:-1]).endswith(f"assistant\n{answer}<|im_end|>")
    assert example.margin == 2.0


def test_a_pair_of_conversations_needs_no_prompt(tokenizer) -> None:
    form = Pairs(RMDataConfig(train=TRAIN), tokenizer, "here")
    worse = [*TWO_TURNS[:3], {"role": "assistant", "content": "5"}]
    (whole,) = form.encode([{"chosen": TWO_TURNS, "rejected": worse}], ["row 0"])
    (split,) = form.encode([{"prompt": TWO_TURNS[:3], "chosen": "4", "rejected": "5"}], ["row 0"])
    assert [s.token_ids for s in whole.sequences] == [s.token_ids for s in split.sequences]


def test_equal_answers_are_no_pair(tokenizer) -> None:
    form = Pairs(RMDataConfig(train=TRAIN), tokenizer, "here")
    with pytest.raises(DataError, match="row 7: chosen and rejected are the same"):
        form.encode([{"prompt": "a", "chosen": "b", "rejected": "b"}], ["row 7"])


def test_a_block_has_a_row_for_every_sequence(tokenizer) -> None:
    form = Pairs(RMDataConfig(train=TRAIN), tokenizer, "here")
    examples = form.encode([{"prompt": "a", "chosen": "bc", "rejected": "d"}] * 2, ["x", "y"])
    block = block_of(examples)
    assert len(block) == 4 and block.loss_mask_T.sum() == 4
    assert block.token_T[block.row(1)].tolist() == examples[0].sequences[1].token_ids


def test_a_long_row_is_refused_before_the_run(tokenizer, tmp_path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": "' + "b" * 50 + '"}\n')
    form = Conversations(SFTDataConfig(train=TRAIN), tokenizer, "here")
    options = {"split": "train", "seed": 0, "shuffle": True, "where": "my.yaml:3"}
    source = SourceConfig(path=str(path))
    with pytest.raises(DataError, match="row 2 of .* tokens, more than actor.microbatch_tokens = 64"):
        load_examples(source, form, max_tokens=64, **options)
    examples = load_examples(source, form, max_tokens=128, **options)
    first = examples.take(1)
    state = examples.state_dict()
    second = examples.take(1)
    examples.load_state_dict(state)
    assert examples.take(1) == second != first
