"""`hybridrl data show`: one prompt as the model is given it."""

from pathlib import Path

import pytest

from hybridrl import cli
from hybridrl.models import tiny

TEXT = """\
model: policy
data: {train: rows.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
run: {name: first}
"""


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    Path("my.yaml").write_text(TEXT)
    Path("rows.jsonl").write_text('{"prompt": "1+x=", "answer": "2"}\n')
    tiny.qwen3_arithmetic(Path("policy"), 0)


def test_a_prompt_is_shown_with_its_ids_and_what_is_odd(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "show", "my.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "1+x=" in shown and "1 '1', 10 '+', 15 '<unk>', 12 '='" in shown
    assert "an answer ends with <eos>" in shown and "1 of 4 tokens of the prompt are <unk>" in shown


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=elsewhere", "the model elsewhere is not here, nor is its tokenizer"),
        ("data.chat_template=model", "has no chat template"),
        ("data.train=none.jsonl", "no data file none.jsonl"),
        ("data.prompt_field=question", "no column"),
    ],
)
def test_what_cannot_be_shown_is_a_mistake_with_its_place(
    override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "show", "my.yaml", override]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
