"""What --data names: files, data sets of the hub, tasks, whole sections."""

import json
from pathlib import Path

import pytest

from hybridrl.config.load import parse_as
from hybridrl.config.schema import Config
from hybridrl.serve.sets import heldout_override

CONFIG = """
model: m
data: {train: t.jsonl, heldout: {task: last_digit, part: heldout}}
reward: exact_match
run: {name: a}
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/math*.jsonl", {"path": "data/math*.jsonl"}),
        ("openai/gsm8k", {"hub": "openai/gsm8k"}),
        (
            "reasoning_gym:chain_sum",
            {"task": "reasoning_gym", "dataset": "chain_sum", "size": 100, "part": "heldout"},
        ),
        ("last_digit", {"task": "last_digit"}),
        ("{task: last_digit, part: train}", {"task": "last_digit", "part": "train"}),
        ("[a.jsonl, b.jsonl]", {"path": ["a.jsonl", "b.jsonl"]}),
        ("no/such/file.txt", {"path": "no/such/file.txt"}),
    ],
)
def test_a_set_replaces_the_held_out_data(text: str, expected: dict[str, object]) -> None:
    loaded = parse_as(Config, CONFIG, "c.yaml", [heldout_override(text)])
    source = loaded.config.data.heldout
    assert source is not None
    found = json.loads(source.model_dump_json(exclude_none=True))
    assert found == expected
    assert loaded.where("data.heldout") == "command line"


def test_a_file_with_a_name_of_the_hub_is_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "gsm8k").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    assert heldout_override("openai/gsm8k") == 'data.heldout="openai/gsm8k"'
