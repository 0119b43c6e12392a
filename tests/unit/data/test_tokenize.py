"""Token ids of prompts and texts of answers, against transformers itself."""

import json

import pytest
from transformers import AutoTokenizer

from hybridrl.config.schema import DataConfig, SourceConfig
from hybridrl.data.prompts import PromptFormat
from hybridrl.data.tokenize import ModelTokenizer, load_tokenizer
from hybridrl.errors import ConfigError, ModelError


def prompt_format(tokenizer, **data):
    return PromptFormat(DataConfig(train=SourceConfig(path="x.jsonl"), **data), tokenizer, "my.yaml:3")


def test_the_chat_template_is_applied_as_transformers_does(model_folder, tokenizer):
    theirs = AutoTokenizer.from_pretrained(model_folder)
    chats = [
        [{"role": "user", "content": "what is 1+1? ☃"}],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    ]
    expected = [
        theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats
    ]
    assert prompt_format(tokenizer).encode(chats, ["row"] * len(chats)) == expected


def test_text_is_a_user_message_and_the_system_prompt_comes_before_it(model_folder, tokenizer):
    theirs = AutoTokenizer.from_pretrained(model_folder)
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert prompt_format(tokenizer, system_prompt="be brief").encode(["hello"], ["row 0"]) == [expected]


def test_without_template_the_text_stays_as_it_is(model_folder, tokenizer):
    theirs = AutoTokenizer.from_pretrained(model_folder)
    found = prompt_format(tokenizer, chat_template="none").encode(["hello there"], ["row 0"])
    assert found == [theirs("hello there")["input_ids"]]
    assert tokenizer.decode_answers(found) == ["hello there"]


def test_answers_are_decoded_exactly_and_without_special_tokens(model_folder, tokenizer):
    texts = ["  two  spaces , and a comma .", "é☃\n", ""]
    stop = tokenizer.stop_token_ids[0]
    ids = [tokens + [stop] for tokens in tokenizer.encode(texts, add_special_tokens=False)]
    assert tokenizer.decode_answers(ids) == texts
    assert tokenizer.decode_answers([]) == []
    theirs = AutoTokenizer.from_pretrained(model_folder)
    assert theirs.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == texts


def test_stop_tokens_are_those_of_the_model_and_of_the_tokenizer(tmp_path, model_folder, tokenizer):
    end, text_end = tokenizer.hf.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert tokenizer.stop_token_ids == tuple(sorted({end, text_end}))
    tokenizer.hf.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).stop_token_ids == (end,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert load_tokenizer(str(tmp_path)).stop_token_ids == tuple(sorted({end, 3}))


def test_a_tokenizer_without_template_says_what_to_do(tokenizer):
    bare = load_tokenizer(tokenizer.hf.name_or_path)
    bare.hf.chat_template = None
    with pytest.raises(ConfigError, match=r"no chat template  \(my.yaml:3\): data.chat_template=none"):
        prompt_format(ModelTokenizer(bare.hf, ()))
    assert prompt_format(bare, chat_template="none").encode(["a"], ["row 0"])


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer can be read from"):
        load_tokenizer(str(tmp_path))


def test_a_broken_tokenizer_file_is_refused(tmp_path, tokenizer):
    tokenizer.hf.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="no tokenizer can be read from"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "not an object"),
        ("7", "not an object"),
        ("{", "is not JSON"),
        ('{"eos_token_id": "x"}', 'eos_token_id = "x" in .* is neither a token id'),
        ('{"eos_token_id": [1, "x"]}', "is neither a token id"),
        ('{"eos_token_id": -1}', "is neither a token id"),
        ('{"eos_token_id": true}', "is neither a token id"),
        ('{"eos_token_id": {"a": 1}}', "is neither a token id"),
    ],
)
def test_a_config_without_usable_stop_tokens_is_named(tmp_path, tokenizer, name, text, said):
    tokenizer.hf.save_pretrained(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=said) as refused:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path / name) in str(refused.value)
