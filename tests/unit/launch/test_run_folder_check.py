"""The folder of a run is looked at before anything is made for it, and left as it was."""

import fcntl
import json
from pathlib import Path

import pytest

from hybridrl import cli
from hybridrl.config.load import load
from hybridrl.config.run_folder import RunFolder, refuse_unusable
from hybridrl.errors import RunFolderError
from hybridrl.launch.run_folder_check import is_finished, refuse_unfit_folder
from hybridrl.trainer import committed

CONFIG = """\
model: {path: made, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
run: {name: first, folder: out, steps: 2}
"""
SFT = """\
model: {path: made, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: examples.jsonl, chat_template: none}
run: {name: first, folder: out, steps: 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "sft.yaml").write_text(SFT)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    (tmp_path / "examples.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def held(folder: Path) -> None:
    (folder / "out/first").mkdir(parents=True)
    (folder / "out/first/metrics.jsonl").write_text('{"kind": "step", "step": 3}\n')


def in_the_way(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/first").write_text("a file")


COMMANDS = {
    "launch": ("launch", "my.yaml"),
    "dry run": ("launch", "my.yaml", "--dry-run"),
    "config check": ("config", "check", "my.yaml"),
    "slurm": ("launch", "my.yaml", "--on", "slurm", "--dry-run"),
    "submit": ("launch", "my.yaml", "--on", "ray", "--submit", "--dry-run", "cluster.ray.dashboard=http://h"),
    "sft": ("sft", "sft.yaml"),
    "sft dry run": ("sft", "sft.yaml", "--dry-run"),
    "check of sft": ("config", "check", "sft.yaml", "--for", "sft"),
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_refuses_a_folder_that_cannot_be_taken(
    folder: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert "cannot write /proc/first" in refused(capsys, *command, "run.folder=/proc")
    in_the_way(folder)
    assert "cannot write out/first: Not a directory" in refused(capsys, *command)
    (folder / "out/first").unlink()
    held(folder)
    before = sorted(folder.rglob("*"))
    assert "out/first already holds a run at step 3" in refused(capsys, *command)
    assert sorted(folder.rglob("*")) == before  # and no model was made


@pytest.mark.parametrize("command", [COMMANDS[name] for name in ("launch", "dry run", "sft", "sft dry run")])
def test_a_resume_without_a_run_makes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    before = sorted(folder.rglob("*"))
    assert "out/first holds no run to resume" in refused(capsys, *command, "--resume")
    assert sorted(folder.rglob("*")) == before


def test_a_folder_of_another_process_is_refused_and_a_free_one_left_as_it_was(folder: Path) -> None:
    loaded = load("my.yaml")
    refuse_unusable(loaded, resume=False)
    assert not (folder / "out").exists()
    RunFolder.create(loaded).release()
    refuse_unusable(loaded, resume=False)
    with (folder / "out/first/.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(RunFolderError, match="out/first is in use by process"):
            refuse_unusable(loaded, resume=True)


def begun(folder: Path, *, step: int) -> None:
    """A run whose newest checkpoint is of a step."""
    RunFolder.create(load("my.yaml")).release()
    unfinished = folder / "out/first/checkpoints/.tmp"
    unfinished.mkdir(parents=True)
    committed.commit(unfinished, unfinished.with_name(f"step_{step:06d}"), {}, {})


def end(folder: Path) -> None:
    (folder / "out/first/summary.json").write_text(json.dumps({}))
    (folder / "out/first/export").mkdir()


def test_a_run_beyond_its_last_step_says_so_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun(folder, step=3)
    for command in ("launch", "dry run", "slurm"):
        said = refused(capsys, *COMMANDS[command], "--resume")
        assert "out/first is at step 3, beyond the last of the 2 steps of run.steps" in said
    refuse_unfit_folder(load("my.yaml", ["run.steps=4"]), "required")


def test_a_run_that_is_done_is_neither_resumed_nor_failed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(folder, step=2)
    loaded = load("my.yaml")
    assert not is_finished(loaded)
    refuse_unfit_folder(loaded, "required")  # its model is still to be exported
    end(folder)
    assert is_finished(loaded)
    assert "out/first has done all of its 2 steps" in refused(capsys, *COMMANDS["launch"], "--resume")
    assert cli.main(["launch", "my.yaml", "--continue"]) == 0  # as a job that was requeued at its end
    assert "out/first has done all of its steps" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a\nb", " a", "a ", " ", "a\tb", "x" * 256, "é" * 128, ".", "a/b", ""])
def test_a_name_that_is_no_folder_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    said = refused(capsys, *COMMANDS["dry run"], f"run.name={json.dumps(name, ensure_ascii=False)}")
    assert "is not a folder name" in said


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "a b", "a-b_c.1", "数学"])
def test_other_names_are_folders(folder: Path, name: str) -> None:
    loaded = load("my.yaml", [f"run.name={json.dumps(name, ensure_ascii=False)}"])
    refuse_unusable(loaded, resume=False)
