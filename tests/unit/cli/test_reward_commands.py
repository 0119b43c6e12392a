"""`hybridrl reward list`, `reward check`, and `data list`, as a user types them."""

import json
from pathlib import Path

import pytest

from hybridrl import cli, registry
from hybridrl.rewards import trial

CONFIG = """\
model: nowhere
data: {train: rows.jsonl}
reward: exact_match
run: {name: first}
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "_LEAK_CALLS", 100)
    monkeypatch.setattr(trial, "AT_ONCE", 4)
    Path("my.yaml").write_text(CONFIG)
    rows = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("command", "package", "option"),
    [
        ("reward", "hybridrl.rewards.rules", "extract_reference"),
        ("data", "hybridrl.data.tasks", "operators"),
    ],
)
def test_lists_have_every_plugin_with_its_options(
    capsys: pytest.CaptureFixture[str], command: str, package: str, option: str
) -> None:
    assert cli.main([command, "list"]) == 0
    text = capsys.readouterr().out
    assert not [name for name in registry.names(package) if f"\n{name}\n" not in f"\n{text}"]
    assert option in text
    assert cli.main([command, "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [plugin["name"] for plugin in found] == registry.names(package)
    assert option in {one["name"] for plugin in found for one in plugin["options"]}


def test_a_good_reward_passes_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reward", "check", "my.yaml"]) == 0
    said = capsys.readouterr().out
    assert "ok        rows       20 rows of rows.jsonl" in said
    assert "ok        gold       accepts 100% of 20 right answers" in said
    assert "warning" not in said


def test_a_bad_reward_ends_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.py").write_text("def f(answer, row): return float(int(answer) == int(row['answer']))\n")
    assert cli.main(["reward", "check", "my.yaml", "reward=own.py:f", "--json", "--rows", "5"]) == 2
    found = {finding["kind"]: finding["verdict"] for finding in json.loads(capsys.readouterr().out)}
    assert (found["gold"], found["empty"], found["hostile"]) == ("ok", "no", "no")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("reward=exact_mach", "rules has no 'exact_mach'"),
        ("reward=own.py:f", "there is no file own.py"),
        ("data.train=row.jsonl", "no data file row.jsonl"),
        ("reward.answer_field=label", "has no column 'label'"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    assert cli.main(["reward", "check", "my.yaml", override]) == 2
    assert said in capsys.readouterr().err
