"""What is suspicious about data as a whole is said before a run starts, for every kind of run."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridrl import cli
from hybridrl.data.overlap import in_both
from hybridrl.data.tables import Rows
from hybridrl.models import tiny

RUN = "model: {model}\nrun: {{name: x, steps: 1}}\n"
KINDS = {
    "launch": (
        "reward: exact_match\nrollout: {max_prompt_tokens: 16, max_response_tokens: 4}\n"
        "batch: {prompts_per_step: 4}\n",
        lambda n: {"prompt": f"{n}+1=", "answer": str(n + 1)},
    ),
    "sft": ("batch: {examples_per_step: 4}\n", lambda n: {"prompt": f"{n}+1=", "response": str(n + 1)}),
    "rm": (
        "batch: {examples_per_step: 4}\n",
        lambda n: {"prompt": f"{n}+1=", "chosen": str((n + 1) % 10), "rejected": str((n + 2) % 10)},
    ),
}

Said = Callable[..., list[str]]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """The warnings of a check, of data with these numbers of rows."""
    monkeypatch.chdir(tmp_path)
    tiny.qwen3_arithmetic(tmp_path / "here", 0)

    def run(kind: str, model: str, train: range, heldout: range, *overrides: str) -> list[str]:
        text, row = KINDS[kind]
        for name, numbers in (("train", train), ("heldout", heldout)):
            Path(f"{name}.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in numbers))
        data = "data: {train: train.jsonl, heldout: heldout.jsonl, chat_template: none}\n"
        where = "here" if model == "here" else "{path: made, make: 'hybridrl.models.tiny:qwen3_arithmetic'}"
        Path("my.yaml").write_text(RUN.format(model=where) + data + text)
        code = cli.main(["config", "check", "my.yaml", "--for", kind, *overrides])
        out = capsys.readouterr()
        assert code == 0, out.err
        lines = [line for line in out.out.splitlines() if line.startswith("warning")]
        return [line.removeprefix("warning").strip() for line in lines]

    return run


@pytest.mark.parametrize("model", ["here", "not made"])
@pytest.mark.parametrize("kind", KINDS)
def test_held_out_rows_that_are_trained_on_are_counted(said: Said, kind: str, model: str) -> None:
    noun = "prompt" if kind == "launch" else "example"
    assert said(kind, model, range(10, 20), range(20, 30)) == []
    [warning] = said(kind, model, range(10, 20), range(18, 28))
    assert warning.startswith(
        f"2 of 10 held-out {noun}s are in the training data too, as row 1 of heldout.jsonl"
    )
    [warning] = said(kind, model, range(10, 20), range(12, 15))
    assert warning.startswith(f"all of 3 held-out {noun}s are in the training data too")


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_that_is_larger_than_the_data_is_named(said: Said, kind: str) -> None:
    key = "batch.prompts_per_step" if kind == "launch" else "batch.examples_per_step"
    [warning] = said(kind, "not made", range(10, 20), range(20, 22), f"{key}=64")
    assert warning.startswith(f"{key} = 64 is more than the 10 ")
    assert warning.endswith("of data.train: a step takes each 6.4 times on average")


def test_rows_are_compared_by_value() -> None:
    messages = [{"role": "user", "content": "a"}]
    train = Rows([{"p": messages, "a": 1}, {"p": "b", "a": 2}], "t")
    heldout = Rows(
        [{"p": [dict(reversed(messages[0].items()))], "a": 1}, {"p": "b", "a": 3}, {"p": "c", "a": 1}], "h"
    )
    assert in_both(train, heldout, ["p"]) == [0, 1]
    assert in_both(train, heldout, ["p", "a"]) == [0]


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_that_only_some_rows_have_is_compared_where_it_is(first: int) -> None:
    rows = [{"p": "a", "c": 1}, {"c": 1}, {"p": "b", "c": 1}]
    train = Rows([rows[first], rows[1 - first]], "t")
    assert in_both(train, Rows(rows[::-1], "h"), ["p", "c"]) == [1, 2]
    assert in_both(train, Rows([{"c": 1}], "h"), ["p", "c"]) == [0]
