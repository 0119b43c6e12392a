"""What the teacher of self-distillation reads: the hint of a row, before its prompt."""

import json

import pytest

from hybridrl.config.schema import DataConfig, SourceConfig
from hybridrl.config.signals import HintConfig
from hybridrl.data.source import load_source
from hybridrl.errors import DataError, HybridRLError

ROWS = [{"prompt": "1+1=", "extra": {"solution": "It is 2."}}, {"prompt": "2+2=", "extra": {"solution": "4"}}]
FIELD = "extra.solution"


def prompts(tokenizer, folder, rows=ROWS, *, template="model", **hint):
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = SourceConfig.model_validate(str(path))
    return load_source(
        source,
        DataConfig(train=source, shuffle=False, chat_template=template),
        tokenizer,
        split="train",
        seed=0,
        max_prompt_tokens=200,
        where="my.yaml:3",
        hint=HintConfig(**({"field": FIELD} | hint)),
    ).take(len(rows))


def test_a_hint_is_a_message_of_the_system_after_the_token_that_begins_a_text(tokenizer, tmp_path):
    first, second = prompts(tokenizer, tmp_path, text="See: {hint}")
    decode = tokenizer.hf.decode
    assert decode(first.token_ids).startswith("<|begin|><|im_start|>user\n1+1=")
    assert first.hint.after == 1
    assert decode(first.hint.token_ids) == "<|im_start|>system\nSee: It is 2.<|im_end|>\n"
    assert decode(second.hint.token_ids) == "<|im_start|>system\nSee: 4<|im_end|>\n"


def test_without_a_chat_template_a_hint_is_plain_text(tokenizer, tmp_path):
    first, _ = prompts(tokenizer, tmp_path, template="none", text="{hint}\n")
    whole = [
        *first.token_ids[: first.hint.after],
        *first.hint.token_ids,
        *first.token_ids[first.hint.after :],
    ]
    assert tokenizer.hf.decode(whole, skip_special_tokens=True) == "It is 2.\n1+1="


def test_prompts_without_hints_have_none(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n")
    source = SourceConfig.model_validate(str(path))
    found = load_source(
        source, DataConfig(train=source), tokenizer, split="train", seed=0, max_prompt_tokens=99, where="x"
    )
    assert found.take(1)[0].hint is None


@pytest.mark.parametrize(
    "row,options,message",
    [
        ({"prompt": "a"}, {}, "train.jsonl: the hint is not there"),
        ({"prompt": "a", "extra": {"solution": " "}}, {}, "train.jsonl: the hint is empty"),
        ({"prompt": "a", "extra": {"solution": 4}}, {}, "train.jsonl: the hint is a number"),
        (
            {"prompt": "a", "extra": {"solution": "b" * 80}},
            {"max_tokens": 90},
            "more than algorithm.hint.max_tokens",
        ),
    ],
)
def test_a_row_whose_hint_cannot_be_used_is_refused(tokenizer, tmp_path, row, options, message):
    with pytest.raises(DataError, match="algorithm.hint.field = extra.solution") as caught:
        prompts(tokenizer, tmp_path, [*ROWS, row], text="{hint}", **options)
    assert message in str(caught.value)


def test_a_template_that_knows_no_system_is_refused(with_template, tmp_path):
    strict = with_template(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    with pytest.raises(DataError, match="no system") as caught:
        prompts(strict, tmp_path)
    assert "algorithm.hint.text" in str(caught.value)


def test_a_text_without_the_hint_is_refused():
    with pytest.raises((ValueError, HybridRLError), match="text has no {hint}"):
        HintConfig(field="x", text="Think.")
