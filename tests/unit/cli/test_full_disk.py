"""A disk without space ends a command with one line, and leaves no half of a file."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridrl import cli
from hybridrl.config.load import load
from hybridrl.config.run_folder import RunFolder
from hybridrl.errors import RunFolderError

CONFIG = """\
model: {path: model, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
run: {name: first, folder: out}
"""
VERL = "python3 -m verl.trainer.main_ppo data.train_files=a.parquet actor_rollout_ref.model.path=q\n"


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Files can be made, and nothing be written to them, as where no space is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "old.yaml").write_text(CONFIG.replace("folder: out", "mlflow: false"))
    (tmp_path / "run.sh").write_text(VERL)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["init", "grpo", "--model", "m", "--data", "prompts.jsonl"], "cannot write grpo.yaml: File too"),
        (["import", "verl", "run.sh", "--prompts", "10"], "cannot write run.yaml: File too"),
        (["config", "migrate", "old.yaml"], "old.yaml: File too large"),
    ],
)
def test_what_writes_a_file_says_so_and_can_be_tried_again(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with full_disk():
        code = cli.main(arguments)
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert cli.main(arguments) == 0


def test_a_run_folder_is_not_taken_and_can_be_taken_later(folder: Path) -> None:
    loaded = load("my.yaml")
    with full_disk(), pytest.raises(RunFolderError, match="cannot write out/first: File too large"):
        RunFolder.create(loaded)
    assert not (folder / "out/first/resolved.yaml").exists()
    RunFolder.create(loaded).release()


def test_a_traceback_that_cannot_be_kept_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with full_disk():
        assert cli.show_error(RuntimeError("ours")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: a failure of hybridrl itself; its traceback is\n")
    assert "RuntimeError: ours" in said


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_without_space_is_said(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "hybridrl", "--version"]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: No space left on device")
