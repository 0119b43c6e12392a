"""Everything that can be wrong with prompt data is refused before any work, with the place and the change."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from hybridrl.config.schema import DataConfig, SourceConfig
from hybridrl.data.source import load_source
from hybridrl.data.tables import Parquet
from hybridrl.errors import ConfigError, DataError


def load(tokenizer, source, *, max_prompt_tokens=100, split="train", seed=0, **data):
    source = SourceConfig.model_validate(source)
    return load_source(
        source,
        DataConfig(train=source, **data),
        tokenizer,
        split=split,
        seed=seed,
        max_prompt_tokens=max_prompt_tokens,
        where="my.yaml:3",
    )


def write(folder, *rows, name="train.jsonl"):
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def refusal(error, call, *args, **options):
    with pytest.raises(error) as caught:
        call(*args, **options)
    return str(caught.value)


def test_a_missing_file_names_the_nearest(tokenizer, tmp_path):
    there = write(tmp_path, {"prompt": "a"}, name="math_train.jsonl")
    message = refusal(DataError, load, tokenizer, there.replace("train", "trian"))
    assert message.startswith("no data file") and "(my.yaml:3)" in message
    assert message.endswith(f"there is {there}")


def test_a_missing_folder_is_named(tokenizer, tmp_path):
    message = refusal(DataError, load, tokenizer, str(tmp_path / "dta" / "train.jsonl"))
    assert message.endswith(f"there is no folder {tmp_path / 'dta'}")


def test_another_kind_of_file_is_refused(tokenizer, tmp_path):
    path = write(tmp_path, {"prompt": "a"}, name="train.txt")
    assert "is no data file" in refusal(DataError, load, tokenizer, path)


@pytest.mark.parametrize("text", ["", "\n", "\n\n  \n"])
def test_a_file_without_rows_is_refused(tokenizer, tmp_path, text):
    (tmp_path / "train.jsonl").write_text(text)
    assert "has no rows  (my.yaml:3)" in refusal(DataError, load, tokenizer, str(tmp_path / "train.jsonl"))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{'prompt': 'a'}", "is not JSON"),
        ("", "is not JSON"),
        ('{"prompt": "a"', "is not JSON"),
        ('["a"]', "is a list, not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tokenizer, tmp_path, bad, why):
    path = write(tmp_path, {"prompt": "a"}, {"prompt": "b"}, bad, {"prompt": "d"})
    message = refusal(DataError, load, tokenizer, path)
    assert message.startswith("line 3 ") and why in message and f"({path}:3)" in message


def test_bytes_that_are_no_text_are_named(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    assert refusal(DataError, load, tokenizer, str(path)).startswith("line 2 is not JSON")


def test_a_byte_order_mark_and_blank_lines_at_the_end_are_nobodys_mistake(tokenizer, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b"}\n\n\n')
    assert [p.row["prompt"] for p in load(tokenizer, str(path)).all()] == ["a", "b"]


def test_a_file_that_is_no_parquet_is_refused(tokenizer, tmp_path):
    path = write(tmp_path, {"prompt": "a"}, name="train.parquet")
    assert "is not a parquet file" in refusal(DataError, load, tokenizer, path)


def test_a_missing_column_says_which_there_are(tokenizer, tmp_path):
    path = write(tmp_path, {"question": "a", "answer": "1"})
    message = refusal(DataError, load, tokenizer, path, prompt_field="questions")
    assert "no column 'questions'" in message and "columns: question, answer" in message
    assert message.endswith("did you mean question?")


def test_a_column_that_one_row_lacks_names_the_row(tokenizer, tmp_path):
    path = write(tmp_path, {"prompt": "a"}, {"text": "b"})
    assert f"{path}:2 has no column 'prompt'" in refusal(DataError, load, tokenizer, path)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (7, "is a number, neither text nor a list"),
        (None, "is null"),
        (" \n", "is empty"),
        ([], "is an empty list"),
        (["a"], "a message without a role"),
        ([{"role": "user"}], "content is not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content is not text"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "ends with an answer"),
    ],
)
def test_a_prompt_that_is_none_names_its_row(tokenizer, tmp_path, prompt, why):
    path = write(tmp_path, {"prompt": "a"}, {"prompt": prompt})
    message = refusal(DataError, load, tokenizer, path)
    assert message.startswith(f"row 2 of {path}: the prompt") and why in message


def test_messages_need_the_chat_template(tokenizer, tmp_path):
    path = write(tmp_path, {"prompt": [{"role": "user", "content": "a"}]})
    assert "plain text only" in refusal(DataError, load, tokenizer, path, chat_template="none")


def test_two_system_messages_are_refused(tokenizer, tmp_path):
    path = write(tmp_path, {"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]})
    assert "begins with a system message" in refusal(DataError, load, tokenizer, path, system_prompt="z")


def test_a_system_prompt_needs_the_chat_template(tokenizer, tmp_path):
    path = write(tmp_path, {"prompt": "a"})
    message = refusal(ConfigError, load, tokenizer, path, system_prompt="z", chat_template="none")
    assert message.endswith("data.chat_template=model")


@pytest.mark.parametrize("form", [str, lambda text: [{"role": "user", "content": text}]])
def test_prompts_that_are_too_long_are_counted_and_the_longest_named(tokenizer, tmp_path, form):
    path = write(tmp_path, *({"prompt": form("é" * n)} for n in (1, 40, 60, 50)))
    lengths = [len(p.token_ids) for p in load(tokenizer, path, max_prompt_tokens=1000).all()]
    load(tokenizer, path, max_prompt_tokens=lengths[2])
    message = refusal(DataError, load, tokenizer, path, max_prompt_tokens=lengths[1])
    assert message.startswith(
        f"2 of 4 prompts in {path} are longer than rollout.max_prompt_tokens = {lengths[1]}"
    )
    assert f"row 3 of {path}, has {lengths[2]} tokens" in message
    assert message.endswith(f"rollout.max_prompt_tokens={lengths[2]}, or drop those rows")


def test_one_token_less_than_the_longest_is_refused(tokenizer, tmp_path):
    path = write(tmp_path, {"prompt": "abc"})
    [prompt] = load(tokenizer, path).all()
    message = refusal(DataError, load, tokenizer, path, max_prompt_tokens=len(prompt.token_ids) - 1)
    assert message.startswith("1 of 1 prompt ")


def test_the_nearest_task_and_the_nearest_option_are_named(tokenizer):
    assert "reasoning_gym" in refusal(ConfigError, load, tokenizer, {"task": "reasoning_gim"})
    options = {"task": "reasoning_gym", "dataset": "chain_sum", "sizes": 3}
    message = refusal(ConfigError, load, tokenizer, options)
    assert message == "task reasoning_gym has no option 'sizes'  (my.yaml:3): did you mean size?"
    assert "needs the option size" in refusal(
        ConfigError, load, tokenizer, {"task": "reasoning_gym", "dataset": "x"}
    )


def test_what_a_task_itself_refuses_names_the_config_place(tokenizer):
    options = {"task": "reasoning_gym", "dataset": "chain_sums", "size": 2}
    message = refusal(ConfigError, load, tokenizer, options)
    assert "no dataset 'chain_sums'  (my.yaml:3): use one of chain_sum" in message


def test_an_option_of_another_type_is_refused(tokenizer):
    options = {"task": "reasoning_gym", "dataset": "chain_sum", "size": "many"}
    assert "size = many is not an integer" in refusal(ConfigError, load, tokenizer, options)


def test_a_task_must_return_rows(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "lab_no_rows.py").write_text(
        "def one(seed): return {'prompt': 'a'}\ndef none(seed): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "did not return a list of dicts" in refusal(
        DataError, load, tokenizer, {"task": "lab_no_rows:one"}
    )
    assert "lab_no_rows:none has no rows" in refusal(DataError, load, tokenizer, {"task": "lab_no_rows:none"})


def test_a_parquet_text_that_is_not_utf8_names_its_row(tokenizer, tmp_path):
    path = tmp_path / "train.parquet"
    rows = pyarrow.table({"prompt": [f"row{i}" for i in range(1000, 3000)]})
    pyarrow.parquet.write_table(rows, path, compression="none")
    path.write_bytes(path.read_bytes().replace(b"row2499", b"row\xff\xfe99"))
    message = refusal(DataError, load, tokenizer, str(path), chat_template="none")
    assert message.startswith(f"row 1500 of {path} has a text that is not UTF-8")
    table = Parquet(str(path))
    assert table[1498] == {"prompt": "row2498"}
    assert "row 1500 of" in refusal(DataError, table.__getitem__, 1499)
