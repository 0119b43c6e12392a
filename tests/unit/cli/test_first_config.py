"""`hybridrl init` and `hybridrl import verl` as a person meets them."""

import io
import json
import sys
from pathlib import Path

import pytest

from hybridrl import cli
from hybridrl.config.load import load

Captured = pytest.CaptureFixture[str]

SCRIPT = (
    "python -m verl.trainer.main_ppo data.train_files=t.parquet actor_rollout_ref.model.path=m trainer.x=1\n"
)


class Terminal(io.StringIO):
    """Somebody who types these lines."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    (tmp_path / "run.sh").write_text(SCRIPT)
    return tmp_path


def run(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_flags_alone_write_a_config(capsys: Captured) -> None:
    code, out, _ = run(capsys, "init", "dapo", "--model", "m", "--data", "t.parquet")
    assert code == 0 and "hybridrl config check dapo.yaml" in out
    assert load("dapo.yaml").config.algorithm.preset == "dapo"


@pytest.mark.parametrize(
    ("given", "asked"),
    [([], "hybridrl init grpo"), (["grpo"], "--model"), (["grpo", "--model", "m"], "--data")],
)
def test_without_a_terminal_a_missing_flag_is_named(capsys: Captured, given: list[str], asked: str) -> None:
    code, _, err = run(capsys, "init", *given)
    assert code == 2 and asked in err and not Path("grpo.yaml").exists()


def test_a_terminal_is_asked(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("grpo\nmy/model\nmine.jsonl\n"))
    code, out, _ = run(capsys, "init")
    made = load("grpo.yaml").config
    assert code == 0 and "model folder" in out
    assert (made.model.path, made.data.train.path) == ("my/model", "mine.jsonl")


@pytest.mark.parametrize(
    "command", [("init", "grpo", "--model", "m", "--data", "d"), ("import", "verl", "run.sh")]
)
def test_no_file_is_overwritten(capsys: Captured, command: tuple[str, ...]) -> None:
    Path("mine.yaml").write_text("mine")
    code, _, err = run(capsys, *command, "-o", "mine.yaml")
    assert code == 2 and "mine.yaml exists" in err and Path("mine.yaml").read_text() == "mine"


def test_a_folder_that_is_not_there_is_said(capsys: Captured) -> None:
    code, _, err = run(capsys, "import", "verl", "run.sh", "-o", "nowhere/a.yaml")
    assert code == 2 and "cannot write nowhere/a.yaml" in err


def test_an_import_reports_three_lists_and_writes_a_config(capsys: Captured) -> None:
    code, out, _ = run(capsys, "import", "verl", "run.sh")
    headings = ["translated", "no counterpart", "ignored, the result is the same"]
    assert code == 0 and [line for line in out.splitlines() if line in headings] == headings
    assert "trainer.x=1" in out and load("run.yaml").config.model.path == "m"


def test_an_import_for_programs_writes_no_file(capsys: Captured) -> None:
    code, out, _ = run(capsys, "import", "verl", "run.sh", "--json")
    assert code == 0 and json.loads(out)["config"]["batch"]["prompts_per_step"] == 1024
    assert not Path("run.yaml").exists()


def test_a_script_that_is_not_there_is_said(capsys: Captured) -> None:
    code, _, err = run(capsys, "import", "verl", "no.sh")
    assert code == 2 and "no file at no.sh" in err
