"""What a row holds in place of text or messages: refused by row and key, or read as it was meant."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from hybridrl.config.schema import DataConfig, SourceConfig
from hybridrl.config.sft_rm import RMDataConfig, SFTDataConfig
from hybridrl.data.examples import Conversations, Pairs
from hybridrl.data.source import TablePrompts, load_source
from hybridrl.data.text import holds_messages, without_nulls
from hybridrl.data.tokenize import ModelTokenizer
from hybridrl.errors import DataError

ASKED = [{"role": "user", "content": "hi"}]
TOLD = [*ASKED, {"role": "assistant", "content": "yes"}]
FAILING = {
    "refuses": "{{ raise_exception('no system role here') }}",
    "undefined": "{{ nothing.there }}",
    "type": "{{ messages[0].content + 1 }}",
    "zero": "{{ 1 // 0 }}",
    "syntax": "{% for m in messages %}",
}


def load(tokenizer: ModelTokenizer, path: object, **data: object) -> TablePrompts:
    source = SourceConfig(path=str(path))
    return load_source(
        source,
        DataConfig.model_validate({"train": source, **data}),
        tokenizer,
        split="train",
        seed=0,
        max_prompt_tokens=200,
        where="my.yaml:3",
    )


@pytest.mark.parametrize("template", FAILING.values(), ids=FAILING)
@pytest.mark.parametrize("prompt", ["hi", ASKED], ids=["text", "messages"])
def test_a_template_that_fails_names_row_and_key(with_template, tmp_path, template, prompt) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prompt": prompt}) + "\n")
    with pytest.raises(DataError, match="row 1 of .*the chat template fails: .*data.prompt_field = prompt"):
        load(with_template(template), path)


def test_a_template_that_fails_on_the_system_prompt_names_it(with_template, tmp_path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "1+1="}\n')
    refuses = "{% if messages[0]['role'] == 'system' %}" + FAILING["refuses"] + "{% endif %}"
    load(with_template(refuses), path)
    with pytest.raises(DataError, match="no system role here.*data.system_prompt"):
        load(with_template(refuses), path, system_prompt="Be brief.")


def test_the_row_on_which_a_template_fails_is_named(with_template, tmp_path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"prompt": ASKED}, {"prompt": [{"role": "critic", "content": "x"}, *ASKED]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    strict = "{% if messages[0]['role'] == 'critic' %}{{ raise_exception('who?') }}{% endif %}"
    with pytest.raises(DataError, match="row 2 of .*who?"):
        load(with_template(strict), path)


def test_a_template_that_fails_in_supervised_training_names_the_row(with_template) -> None:
    train = SourceConfig(path="unused.jsonl")
    tokenizer = with_template(FAILING["refuses"])
    form = Conversations(SFTDataConfig(train=train), tokenizer, "here")
    with pytest.raises(DataError, match="row 5 of x: the chat template fails: .*no system role here"):
        form.encode([{"prompt": "a", "response": "b"}], ["row 5 of x"])


NULLS = [
    ({"tool_calls": None}, {}),
    ({"name": None, "tools": [{"id": None, "kind": "f"}]}, {"tools": [{"kind": "f"}]}),
    ({"meta": {"a": None, "b": 1}}, {"meta": {"b": 1}}),
    ({"weight": 0, "note": ""}, {"weight": 0, "note": ""}),
]


@pytest.mark.parametrize(("extra", "kept"), NULLS)
def test_a_null_field_is_an_absent_field(extra, kept) -> None:
    assert without_nulls([{**ASKED[0], **extra}]) == [{**ASKED[0], **kept}]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_template_does_not_see_null_fields(with_template, tmp_path, kind) -> None:
    asks = (
        "{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls | length }}{% endif %}{% endfor %}"
    )
    path, rows = tmp_path / f"train.{kind}", [{"prompt": [{**ASKED[0], "tool_calls": None}]}]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows[0]) + "\n")
    tokenizer = with_template(asks)
    [prompt] = load(tokenizer, path).all()
    assert "hi" in tokenizer.hf.decode(prompt.token_ids)
    form = Conversations(
        SFTDataConfig(train=SourceConfig(path="x"), messages_field="prompt"), tokenizer, "here"
    )
    told = [{**message, "tool_calls": None} for message in TOLD]
    form.encode([{"prompt": told}], ["row 0"])


HALF = "x \ud83d y"
BROKEN = [
    ({"prompt": HALF}, "prompt has"),
    ({"prompt": [{"role": "user", "content": HALF}]}, r"prompt\[0\].content has"),
    ({"prompt": "a", "answer": HALF}, "answer has"),
    ({"prompt": "a", "extra": {"k": ["b", HALF]}}, r"extra.k\[1\] has"),
    ({"prompt": "a", HALF: 1}, "a column's name has"),
    ({"prompt": "\udc00"}, r"prompt has \\udc00 .* at character 1"),
]


@pytest.mark.parametrize(("row", "said"), BROKEN)
def test_half_a_character_names_line_and_key(tokenizer, tmp_path, row, said) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a"}\n' + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"{path}:2: {said}"):
        load(tokenizer, path)


def test_a_whole_pair_is_one_character(tokenizer, tmp_path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(r'{"prompt": "\ud83d\ude00"}' + "\n")
    [prompt] = load(tokenizer, path).all()
    assert prompt.row["prompt"] == "\U0001f600"


def test_half_a_character_of_a_task_names_its_row(tokenizer, tmp_path, monkeypatch) -> None:
    (tmp_path / "lab_halves.py").write_text(r"def one(seed): return [{'prompt': 'a'}, {'prompt': '\ud83d'}]")
    monkeypatch.syspath_prepend(tmp_path)
    source = SourceConfig(task="lab_halves:one")
    with pytest.raises(DataError, match="row 2 of lab_halves:one: prompt has"):
        load_source(
            source,
            DataConfig(train=source),
            tokenizer,
            split="train",
            seed=0,
            max_prompt_tokens=9,
            where="here",
        )


WRITTEN = [json.dumps(ASKED), json.dumps(ASKED, indent=1), str(ASKED), "\n " + json.dumps(ASKED[0])]


@pytest.mark.parametrize("text", WRITTEN)
def test_messages_written_as_text_are_refused_by_row_and_key(tokenizer, tmp_path, text) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a"}\n' + json.dumps({"prompt": text}) + "\n")
    with pytest.raises(DataError, match="row 2 of .*: prompt holds chat messages written as JSON text"):
        load(tokenizer, path)


@pytest.mark.parametrize(
    "text", ["[1, 2] role", '{"role": "x"}', "[role]", '[{"role": "user"}]', "[]", "[" * 9999 + "role"]
)
def test_other_text_in_brackets_is_text(text) -> None:
    assert not holds_messages(text)


@pytest.mark.parametrize("field", ["messages", "prompt", "response"])
def test_examples_refuse_messages_written_as_text(tokenizer, field) -> None:
    train = SourceConfig(path="x")
    row = {"prompt": "a", "response": "b", field: json.dumps(TOLD)}
    data = SFTDataConfig(train=train, messages_field="messages" if field == "messages" else None)
    with pytest.raises(DataError, match=f"row 3: {field} holds chat messages"):
        Conversations(data, tokenizer, "here").encode([row], ["row 3"])


@pytest.mark.parametrize("field", ["chosen", "rejected", "prompt"])
def test_pairs_refuse_messages_written_as_text(tokenizer, field) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", field: json.dumps(TOLD)}
    with pytest.raises(DataError, match=f"row 3: {field} holds chat messages"):
        Pairs(RMDataConfig(train=SourceConfig(path="x")), tokenizer, "here").encode([row], ["row 3"])


def test_a_row_nested_too_deeply_is_named(tokenizer, tmp_path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": ' + "[" * 50_000 + "}\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        load(tokenizer, path)


def test_a_parquet_file_damaged_inside_is_named(tokenizer, tmp_path) -> None:
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [f"{i} and more" for i in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a parquet file"):
        load(tokenizer, path)
