"""A config names its model as the hub does: what is checked without it, and what workers get to see."""

from pathlib import Path

import pytest
from hub_values import cached

from hybridrl import cli
from hybridrl.config.load import load
from hybridrl.launch import model_folders
from hybridrl.models import tiny

Captured = pytest.CaptureFixture[str]

NAME = "acme/arithmetic"
CONFIG = f"""\
model: {NAME}
data: {{train: prompts.jsonl, chat_template: none}}
reward: exact_match
rollout: {{max_prompt_tokens: 8, max_response_tokens: 4}}
run: {{name: first}}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a config and its data, and a cache of the hub that holds nothing."""
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(cache: Path) -> Path:
    """The folder of a whole copy."""
    folder = cached(cache, NAME, {})
    folder.rmdir()
    tiny.qwen3_arithmetic(folder, 0)
    return folder


def run(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_workers_see_the_folder_and_the_run_keeps_the_name(cache: Path) -> None:
    folder, loaded = fill(cache), load("my.yaml", [f"algorithm.teacher={NAME}"])
    here = model_folders.in_folders(loaded)
    assert not model_folders.absent(loaded)
    assert here.config.model.path == here.config.algorithm.teacher == str(folder)
    assert loaded.config.model.path == NAME
    assert here.where("model.path") == loaded.where("model.path")


def test_a_dry_run_reads_the_copy_in_the_cache(cache: Path, capsys: Captured) -> None:
    fill(cache)
    code, out, err = run(capsys, "launch", "my.yaml", "--dry-run")
    assert (code, err) == (0, "")
    assert f"from {NAME}" in out and "1 prompt, " in out


def test_a_model_of_the_table_is_checked_without_a_download(cache: Path, capsys: Captured) -> None:
    model = "model=Qwen/Qwen2.5-7B-Instruct"
    code, out, _ = run(capsys, "launch", "my.yaml", model, "--dry-run", "--on", "slurm")
    assert code == 0 and "qwen2 (7,615.6 M parameters) from Qwen/Qwen2.5-7B-Instruct" in out
    code, _, err = run(
        capsys, "launch", "my.yaml", model, "actor.parallel.tp=3", "--dry-run", "--on", "slurm"
    )
    assert code == 2 and "actor.parallel.tp = 3 does not divide the 28 attention heads" in err
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("Qwen/Qwen2.5-7b-Instruct", "did you mean Qwen/Qwen2.5-7B-Instruct?"),
        ("acme/unheard", "hf download acme/unheard config.json gets what can be checked before a launch"),
    ],
)
def test_an_unknown_name_is_a_mistake(cache: Path, capsys: Captured, name: str, fix: str) -> None:
    code, _, err = run(capsys, "launch", "my.yaml", f"model={name}", "--dry-run")
    assert code == 2
    assert f"no model folder at model.path = {name}" in err and fix in err


def test_a_download_waits_for_what_no_launch_can_do(cache: Path, capsys: Captured) -> None:
    code, out, err = run(capsys, "launch", "my.yaml", "cluster.gpus_per_node=8")
    assert code == 2 and "cluster.gpus_per_node = 8, this machine has no GPU" in err and "download" not in out
