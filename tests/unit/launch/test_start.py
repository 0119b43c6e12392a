"""Where a launch goes, and what it refuses before anything starts."""

import subprocess
from pathlib import Path

import pytest

from hybridrl import cli

Captured = pytest.CaptureFixture[str]

CONFIG = """\
model: {path: model, make: "hybridrl.models.tiny:qwen3_arithmetic"}
data: {train: prompts.jsonl, chat_template: none}
reward: exact_match
rollout: {max_prompt_tokens: 16, max_response_tokens: 16}
run: {name: first, folder: out}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a config and its data, where no Slurm and no Ray is."""
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    (tmp_path / "tools").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "tools"))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["launch", "my.yaml", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_dry_run_writes_the_job_of_a_cluster_that_is_not_here(folder: Path, capsys: Captured) -> None:
    cluster = "cluster={nodes: 16, gpus_per_node: 8, slurm: {partition: h100}}"
    code, out, err = run(
        capsys, "--on", "slurm", "--dry-run", cluster, "model={path: /models/big}", "data.train=away.jsonl"
    )
    assert (code, err) == (0, "")
    assert (
        "no model folder at model.path = /models/big" in out and "no file at data.train = away.jsonl" in out
    )
    assert "would ask for 16 nodes x 8 GPUs" in out
    job = folder / "out" / "first" / "slurm"
    assert (job / "config.yaml").read_text() == CONFIG
    assert job.stat().st_mode & 0o077 == 0
    text = (job / "job.sh").read_text()
    assert "#SBATCH --partition=h100" in text and "'model={path: /models/big}'" in text
    assert subprocess.run(["/bin/bash", "-n", job / "job.sh"]).returncode == 0


def test_a_dry_run_does_not_keep_the_folder_from_the_launch(folder: Path, capsys: Captured) -> None:
    assert run(capsys, "--on", "slurm", "--dry-run")[0] == 0
    assert run(capsys, "--on", "slurm", "--dry-run", "run.seed=4")[0] == 0


def test_a_job_that_may_go_on_begins_where_nothing_was_begun(folder: Path, capsys: Captured) -> None:
    for _ in range(2):
        code, out, err = run(capsys, "--on", "slurm", "--dry-run", "--continue")
        assert (code, err) == (0, "") and "nothing started" in out


def test_a_job_that_cannot_run_is_refused_before_it_waits_in_a_queue(folder: Path, capsys: Captured) -> None:
    for keys, message in (
        (["cluster.nodes=3"], "cluster.nodes = 3, and the trainer has 1 rank: every node needs one"),
        (["cluster.gpus_per_node=8", "actor.parallel.dp=3"], "3 ranks, 1 a replica, and the cluster 8 GPUs"),
    ):
        code, _, err = run(capsys, "--on", "slurm", *keys)
        assert code == 2 and message in err
    assert not (folder / "out").exists()


def test_a_loss_of_a_column_that_nothing_gives_is_refused(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run without an environment gives no rewards of turns."""
    (folder / "turn_loss.py").write_text(
        "class TurnLoss:\n    needs = frozenset({'turn_reward'})\n    def __call__(self, **columns): ...\n"
    )
    monkeypatch.syspath_prepend(folder)
    code, _, err = run(capsys, "--on", "slurm", "--dry-run", "algorithm.loss=turn_loss:TurnLoss")
    assert code == 2 and "the policy loss needs turn_reward, which only a run with an environment has" in err


def test_several_nodes_need_something_that_starts_them(folder: Path, capsys: Captured) -> None:
    code, _, err = run(capsys, "cluster.nodes=2")
    assert code == 2 and "cluster.nodes = 2, but what starts here has this machine only" in err


@pytest.mark.parametrize(
    ("on", "said"),
    [
        ([], "environment.nodes = 1, but what starts here has this machine only"),
        (["--on", "slurm", "--dry-run"], "environment.nodes = 1: a job has nodes of one kind, with engines"),
    ],
)
def test_environments_on_nodes_of_their_own_need_such_nodes(
    folder: Path, capsys: Captured, on: list[str], said: str
) -> None:
    game = ["environment={name: 'odd_environments:Counts', nodes: 1}", "rollout.max_context_tokens=64"]
    code, _, err = run(capsys, *on, *game)
    assert code == 2 and said in err


def test_a_job_has_all_of_its_nodes_when_it_begins(folder: Path, capsys: Captured) -> None:
    separate = "cluster={nodes: 3, min_nodes: 2, placement: separate}"
    code, _, err = run(capsys, "--on", "slurm", "--dry-run", separate, "rollout.num_engines=2")
    assert code == 2 and "cluster.min_nodes = 2 of 3: a job has all of its nodes when it begins" in err
    assert "my.yaml" not in err and "command line" in err


def test_a_machine_without_slurm_is_said(folder: Path, capsys: Captured) -> None:
    code, _, err = run(capsys, "--on", "slurm")
    assert code == 2 and err.startswith("error: no sbatch on this machine") and "--dry-run" in err


SCONTROL = '#!/bin/bash\necho "JobId=7 JobState=PENDING ExitCode=0:0"\n'


def test_a_run_whose_job_waits_is_not_submitted_again(folder: Path, capsys: Captured) -> None:
    for name, text in {"sbatch": "#!/bin/bash\necho 7\n", "scontrol": SCONTROL}.items():
        (folder / "tools" / name).write_text(text)
        (folder / "tools" / name).chmod(0o755)
    code, out, _ = run(capsys, "--on", "slurm")
    assert code == 0 and "job 7" in out
    for again in ((), ("--dry-run",), ("--resume",)):
        code, _, err = run(capsys, "--on", "slurm", *again)
        assert code == 2 and "belongs to job 7, which is PENDING" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wait"], "--wait waits for a Slurm job: --on slurm"),
        (["--submit"], "--submit hands a run to Ray's job server: --on ray"),
        (["--on", "ray"], "no Ray to join: set cluster.ray.address=host:port, or RAY_ADDRESS"),
        (["--on", "ray", "--submit"], "no Ray dashboard to hand the run to"),
    ],
)
def test_a_place_that_is_not_named_is_asked_for(
    folder: Path, capsys: Captured, arguments: list[str], message: str
) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_dry_run_shows_the_command_that_hands_the_run_to_ray(folder: Path, capsys: Captured) -> None:
    code, out, _ = run(
        capsys, "--on", "ray", "--submit", "--dry-run", "cluster.ray.dashboard=http://head:8265", "run.seed=2"
    )
    assert code == 0 and "ray job submit --address http://head:8265 -- bash -c" in out and "run.seed=2" in out


@pytest.mark.parametrize("place", [(), ("--on", "slurm"), ("--on", "ray")])
def test_a_fault_that_cannot_happen_is_refused_wherever_the_run_goes(
    folder: Path, capsys: Captured, place: tuple[str, ...]
) -> None:
    ray = ("cluster.ray.address=head:1",) if "ray" in place else ()
    for fault, message in (
        ("kill:engine:3@step=7,phase=generate", "there is no engine 3: the run has 1"),
        ("kill:engine:0@step=700,phase=generate", "step 700 is after the last one, run.steps = 100"),
        ("kill:engine:0@step=7", "has no phase"),
    ):
        for dry_run in ((), ("--dry-run",)):
            code, _, err = run(capsys, *place, *ray, *dry_run, "--inject", fault)
            assert code == 2 and message in err and err.count("\n") == 1
    assert not (folder / "out").exists()


def test_a_job_gets_the_faults_of_its_launch(folder: Path, capsys: Captured) -> None:
    fault = "kill:engine:0@step=7,phase=generate"
    code, out, _ = run(capsys, "--on", "slurm", "--dry-run", "--inject", fault, "run.seed=3")
    assert code == 0 and fault in out
    text = (folder / "out" / "first" / "slurm" / "job.sh").read_text()
    assert f"run.seed=3 --inject {fault}" in text
