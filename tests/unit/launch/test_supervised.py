"""What training on examples does before its workers start."""

import json
from pathlib import Path

import pytest

from hybridrl.config.load import load_as
from hybridrl.config.sft_rm import SFTConfig
from hybridrl.launch import supervised_run
from hybridrl.models import hub

CONFIG = """\
model: {path: models/tiny, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: rows.jsonl, chat_template: none}
batch: {examples_per_step: 2}
run: {name: x, steps: 1}
"""


def test_a_model_that_a_program_makes_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "fetch_spec", lambda *_, **__: pytest.fail("the hub was asked"))
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1+1=", "response": "2"}) + "\n")
    loaded = load_as(SFTConfig, tmp_path / "my.yaml", [])
    _, spec, folder, data = supervised_run._checked(
        supervised_run.SFT, loaded, lambda *_: None, dry_run=False
    )
    assert (spec.family, folder) == ("qwen3", Path("models/tiny"))
    assert data is not None and len(data.train) == 1
