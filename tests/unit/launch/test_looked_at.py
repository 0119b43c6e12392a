"""What a dry run and `config check` look at before a model is made, in every place; and what they say that
they did not look at."""

from pathlib import Path

import pytest

from hybridrl import cli

QUICKSTART = """\
model: {path: "runs/models/arithmetic-{seed}", make: "hybridrl.models.tiny:qwen3_arithmetic"}
data:
  train: {task: last_digit, part: train}
  heldout: {task: last_digit, part: heldout}
  chat_template: none
reward: exact_match
rollout: {max_prompt_tokens: 8, max_response_tokens: 2}
run: {name: quickstart, steps: 80}
"""
SFT = """\
model: {path: "runs/models/arithmetic-{seed}", make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: examples.jsonl, heldout: examples.jsonl, chat_template: none}
run: {name: quickstart, steps: 80}
"""
GOOD = '{"prompt": "1+1=", "answer": "2"}\n'
DASHBOARD = "cluster.ray.dashboard=http://head:8265"

PLACES = {
    "here": ("launch", "my.yaml", "--dry-run"),
    "check": ("config", "check", "my.yaml"),
    "ray": ("launch", "my.yaml", "--on", "ray", "--dry-run", "cluster.ray.address=head:6379"),
    "submit": ("launch", "my.yaml", "--on", "ray", "--submit", "--dry-run", DASHBOARD),
    "slurm": ("launch", "my.yaml", "--on", "slurm", "--dry-run"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my.yaml").write_text(QUICKSTART)
    (tmp_path / "sft.yaml").write_text(SFT)
    (tmp_path / "examples.jsonl").write_text('{"prompt": "1+1=", "response": "2"}\n')
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_reward_a_broken_row_and_a_run_that_exists_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    command = PLACES[place]
    assert "cannot import 'no_such'" in refused(capsys, *command, "reward=no_such:reward")
    (folder / "mine.py").write_text("def reward(answer, row): return row['nothing']\n")
    assert "raised KeyError on the gold answer of row 1" in refused(capsys, *command, "reward=mine:reward")
    for row, said in (
        ("{", "broken.jsonl:2"),
        ('{"prompt": 7, "answer": "2"}', "row 2 of broken.jsonl: the prompt is a number"),
        ('{"prompt": " ", "answer": "2"}', "row 2 of broken.jsonl: the prompt is empty"),
        ('{"prompt": [{"role": "user"}], "answer": "2"}', "row 2 of broken.jsonl: the prompt is a list"),
        ('{"prompt": "1+1=", "answer": null}', "row 2 (index 1 in Python): the reference 'answer' is null"),
    ):
        (folder / "broken.jsonl").write_text(f"{GOOD}{row}\n")
        assert said in refused(capsys, *command, "data.train=broken.jsonl")
        assert said in refused(capsys, *command, "data.heldout=broken.jsonl")
    (folder / "runs/quickstart").mkdir(parents=True)
    (folder / "runs/quickstart/metrics.jsonl").write_text('{"step": 2}\n')
    assert "runs/quickstart already holds a run at step 2" in refused(capsys, *command)
    assert not (folder / "runs/models").exists()


@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_looked_at_is_said(folder: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    assert "prompts are measured, and weights inspected, once the model is here" in told(
        capsys, *PLACES[place]
    )


def test_a_job_that_reads_files_elsewhere_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unseen = "data and reward were not looked at: the job reads them in its"
    container = "cluster.slurm.container={image: a.sqsh, runtime: pyxis}"
    assert f"{unseen} container" in told(capsys, *PLACES["slurm"], container)
    assert f"{unseen} uploaded folder" in told(capsys, *PLACES["submit"], "cluster.ray.working_dir=.")
    away = told(capsys, *PLACES["slurm"], "data.train=away.jsonl", "reward.answer_field=other")
    assert "away.jsonl not here: the rows, and the reward on them, were not looked at" in away
    assert "cannot import 'no_such'" in refused(
        capsys, *PLACES["slurm"], "data.train=away.jsonl", "reward=no_such:reward"
    )


def test_a_job_without_gpus_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warning = "the job asks for no GPUs, and everything would be computed on CPUs"
    assert warning in told(capsys, *PLACES["slurm"])
    assert warning not in told(capsys, *PLACES["slurm"], "cluster.gpus_per_node=2", "actor.parallel.dp=2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "ray"], "no Ray to join"),
        (
            ["--on", "ray", "cluster.ray.address=nonsense"],
            "cluster.ray.address = 'nonsense' is not host:port",
        ),
        (["--on", "ray", "cluster.ray.address=head:port"], "is not host:port of a Ray"),
        (["--on", "ray", "--submit"], "no Ray dashboard"),
        (["--on", "ray", "--submit", "cluster.ray.dashboard=head:8265"], "is not http://host:port"),
    ],
)
def test_an_address_that_is_none_is_refused_by_a_dry_run_too(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refused(capsys, "launch", "my.yaml", "--dry-run", *arguments)


def test_an_address_of_the_environment_is_named_as_such(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    said = refused(capsys, "launch", "my.yaml", "--dry-run", "--on", "ray")
    assert "RAY_ADDRESS = 'nonsense' is not host:port" in said
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert "nothing started" in told(capsys, "launch", "my.yaml", "--dry-run", "--on", "ray")


@pytest.mark.parametrize("command", [("sft", "sft.yaml", "--dry-run"), ("config", "check", "sft.yaml")])
def test_examples_are_looked_at_before_the_model_is_made(
    folder: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    command = (*command, "data.response_field=response")
    said = told(capsys, *command)
    assert "runs/models/arithmetic-0 would be downloaded or made" in said
    assert "1 example, 1 held out; their text is looked at once the model is here" in said
    for row, why in (("{", "broken.jsonl:2"), ('{"prompt": "1"}', "has no column 'response'")):
        (folder / "broken.jsonl").write_text(f'{{"prompt": "1+1=", "response": "2"}}\n{row}\n')
        assert why in refused(capsys, *command, "data.train=broken.jsonl")
        assert why in refused(capsys, *command, "data.heldout=broken.jsonl")
