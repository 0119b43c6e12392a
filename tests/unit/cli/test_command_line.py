"""The command line as a person meets it: help at once, a line for a mistake, never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hybridrl import __version__, cli
from hybridrl.config.load import load
from hybridrl.doctor import findings
from hybridrl.errors import DeadlineError, EngineError

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
    """A working directory with a config and its data."""
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def loaded_modules(code: str) -> set[str]:
    report = f"{code}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", report], capture_output=True, text=True, check=True
        ).stdout.split()
    )


@pytest.mark.parametrize(
    "code",
    [
        "from hybridrl.cli import main; main(['--help'])",
        "from hybridrl.cli import main; main(['config', 'explain', 'actor'])",
        "from hybridrl.cli import main; main(['doctor', '--json'])",
        "from hybridrl.cli import main; main(['plan', 'configs/grpo_qwen72b.yaml', 'algorithm.preset=copg'])",
        "import hybridrl.config.rules, hybridrl.config.run_folder",
    ],
)
def test_quick_commands_import_nothing_heavy(code: str) -> None:
    assert not loaded_modules(code) & {
        "torch",
        "transformers",
        "ray",
        "sglang",
        "megatron",
        "mlflow",
        "pandas",
    }


def test_help_names_the_commands_and_a_first_run(capsys: Captured) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert all(word in out for word in ("launch", "doctor", "config", "configs/quickstart.yaml"))


def test_the_version_is_the_packages(capsys: Captured) -> None:
    assert run(capsys, "--version") == (0, f"hybridrl {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lauch"], "No such command 'lauch'. Did you mean 'launch'?"),
        (["launch"], "Missing argument 'CONFIG'"),
        (["launch", "my.yaml", "--onn", "x"], "No such option: --onn"),
        (["launch", "my.yaml", "--on", "mars"], "'mars' is not one of 'local', 'ray', 'slurm'"),
        (["launch", "none.yaml"], "no config at none.yaml: there is my.yaml"),
        (
            ["launch", "my.yaml", "run.step=3"],
            "unknown key run.step  (command line): did you mean run.steps?",
        ),
        (["launch", "my.yaml", "run.steps"], "'run.steps' is not an override"),
        (["launch", "my.yaml", "--resume", "model=model"], "no model folder at model.path = model"),
        (["config", "explain", "batch.size"], "no key batch.size"),
        (["export", "runs/one", "--adapters", "--verify"], "--verify compares a whole model"),
        (["export", "runs/one"], "runs/one holds no run"),
        (["export", "runs/one", "--adapters"], "runs/one holds no run"),
        (["config", "check", "my.yaml", "data.train=x.jsonl"], "no file at data.train = x.jsonl"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    folder: Path, capsys: Captured, arguments: list[str], message: str
) -> None:
    code, _, said = run(capsys, *arguments)
    assert code == 2
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said


def test_every_mistake_of_a_config_is_a_line(folder: Path, capsys: Captured) -> None:
    code, _, said = run(capsys, "launch", "my.yaml", "batch.epochs=0", "actor.lr=1", "batch.size=3")
    assert code == 2
    assert [line.split(":")[0] for line in said.splitlines()] == ["error"] * 3


def test_rules_and_plugins_are_refused_together(folder: Path, capsys: Captured) -> None:
    bad = [
        "batch.minibatch_prompts=7",
        "algorithm.loss={name: ppo_clip, clip_hi: 0.3}",
        "algorithm.samples_per_prompt=1",
    ]
    code, _, said = run(capsys, "config", "check", "my.yaml", *bad)
    assert code == 2
    assert "is not a multiple of batch.minibatch_prompts = 7" in said
    assert "clip_hi" in said and "clip_high" in said
    assert "samples_per_prompt = 1" in said
    assert "Traceback" not in said


def test_a_model_that_the_trainer_cannot_build_is_refused_before_anything_starts(
    folder: Path, capsys: Captured
) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    rest = {"vocab_size": 32, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "attention_bias": True}
    (folder / "biased").mkdir()
    (folder / "biased" / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], **sizes, **rest})
    )
    for command in (["launch"], ["launch", "--dry-run"], ["config", "check"]):
        code, _, said = run(capsys, *command, "my.yaml", "model=biased")
        assert code == 2
        assert "a bias on the attention output is not supported  (command line)" in said
        assert "use a model without" in said
    assert not (folder / "out").exists()


def test_a_dry_run_starts_nothing_and_writes_nothing(folder: Path, capsys: Captured) -> None:
    before = sorted(folder.rglob("*"))
    code, out, _ = run(
        capsys, "launch", "my.yaml", "--dry-run", "batch={prompts_per_step: 64, minibatch_prompts: 16}"
    )
    assert code == 0
    assert "64 prompts x 8 samples = 512 trajectories/step -> 4 optimizer steps; actor TP1, engine TP1" in out
    assert "nothing started" in out and "out/first" in out
    assert sorted(folder.rglob("*")) == before


def test_show_prints_a_config_that_loads(folder: Path, capsys: Captured) -> None:
    code, out, _ = run(capsys, "config", "show", "my.yaml", "run.seed=5", "data.prompt_field='[bold]'")
    assert code == 0
    (folder / "again.yaml").write_text(out)
    shown = load("again.yaml").config
    assert shown.run.seed == 5 and shown.data.prompt_field == "[bold]"


def test_explain_says_meaning_type_default_and_reader(capsys: Captured) -> None:
    code, out, _ = run(capsys, "config", "explain", "batch.prompts_per_step")
    assert code == 0
    assert all(
        word in out for word in ("policy update", "an integer above 0", "64", "controller/schedule.py")
    )


def test_explain_lists_presets(capsys: Captured) -> None:
    assert "dr_grpo" in run(capsys, "config", "explain", "algorithm.preset")[1]


@pytest.mark.parametrize(("error", "code"), [(EngineError("lost"), 1), (DeadlineError("late"), 3)])
def test_our_errors_choose_the_exit_code(capsys: Captured, error: Exception, code: int) -> None:
    assert cli.show_error(error) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_failure_of_ours_is_a_line_and_keeps_the_traceback(capsys: Captured) -> None:
    try:
        1 // 0  # noqa: B018
    except ZeroDivisionError as error:
        code = cli.show_error(error)
    said = capsys.readouterr().err
    assert code == 1 and said.count("\n") == 1
    kept = Path(said.rpartition(" ")[2].strip())
    assert "1 // 0" in kept.read_text() and "ZeroDivisionError" in kept.read_text()
    kept.unlink()


def test_ctrl_c_is_one_line_and_130(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def wait() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(findings, "examine", wait)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupted_run_says_what_becomes_of_it(capsys: Captured) -> None:
    stop = cli.Interrupted("runs/x keeps what was saved, --resume continues it")
    assert cli.show_error(stop) == 130
    assert capsys.readouterr().err == "interrupted: runs/x keeps what was saved, --resume continues it\n"


def test_doctor_says_what_is_there_and_whether_a_run_can_start(capsys: Captured) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    assert code == (0 if report["can_run"] else 2)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert found["torch"]["status"] == "ok" and found["loopback"]["status"] == "ok"
    code, out, _ = run(capsys, "doctor")
    assert all(name in out for name in found)


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "hybridrl", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"hybridrl {__version__}\n")


def test_a_plan_proves_the_weight_swap_and_starts_nothing(folder: Path, capsys: Captured) -> None:
    short = ("rollout.max_response_tokens=8", "rollout.max_prompt_tokens=8")
    command = ("plan", "my.yaml", "actor.parallel.tp=2", "rollout.num_engines=2", *short)
    code, said, _ = run(capsys, *command)
    assert code == 0
    assert "1.000 x the least possible" in said and "every element written once" in said
    code, said, _ = run(capsys, *command, "--json")
    swap = json.loads(said)["swap"]
    assert code == 0 and swap["node_bytes"] + swap["remote_bytes"] == swap["bound_bytes"] > 0
    assert sorted(path.name for path in folder.iterdir()) == ["my.yaml", "prompts.jsonl"]


def test_a_reader_that_leaves_ends_a_command_without_a_word() -> None:
    command = [sys.executable, "-m", "hybridrl", "algo", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
