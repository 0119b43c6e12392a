"""Launches that are written for verl and OpenRLHF: their folder, and whether their own parsers take it."""

import json
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from hybridrl.bench.base import Case
from hybridrl.bench.peers import contest, launches
from hybridrl.bench.run import Request, bench_of, on_gpus
from hybridrl.bench.workloads.e2e_cases import CASES, QUICKSTART
from hybridrl.errors import ConfigError

ROOT = Path(__file__).parents[3]
PARSERS = ROOT / ".venv-peers/bin/python"
CASE = next(case for case in CASES if case.gpus)


def words(folder: Path) -> list[str]:
    """The launch in a script, without the program that python is told to run."""
    text = (folder / "launch.sh").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if " -m " in line)
    return shlex.split(line)[3:]


@pytest.fixture(params=list(launches.PEERS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    launches.write(request.param, CASE, tmp_path / "launch")
    return request.param, tmp_path / "launch"


def test_prompts_are_the_rows_of_the_case_as_messages(written: tuple[str, Path]) -> None:
    lines = (written[1] / "prompts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == CASE.config["batch"]["prompts_per_step"]
    assert [message["role"] for message in rows[0]["prompt"]] == ["user"] and rows[0]["prompt"][0]["content"]
    assert [row["extra_info"]["index"] for row in rows] == list(range(len(rows)))


def test_rewards_are_those_of_our_own_runs(written: tuple[str, Path]) -> None:
    from hybridrl.bench.peers.reward import spread

    peer, folder = written
    theirs = runpy.run_path(str(folder / "reward.py"))
    if peer == "verl":
        assert theirs["compute_score"]("x", "an answer", "", extra_info=None) == spread("an answer")
    else:
        found = theirs["reward_func"](["ask?an answer"], ["ask?"], [""])
        assert found["rewards"].tolist() == pytest.approx([spread("an answer")])


def test_the_script_is_a_program_whose_output_is_kept(written: tuple[str, Path]) -> None:
    script = written[1] / "launch.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert script.stat().st_mode & 0o100 and "tee run.log" in text and "versions:" in text


def test_sizes_are_those_of_the_case(written: tuple[str, Path]) -> None:
    peer, folder = written
    found = dict(word.lstrip("-").split("=", 1) for word in words(folder) if "=" in word)
    sizes = (128, 8, 2048, 1.0, 16384)
    names = {
        "verl": (
            *("data.train_batch_size", "actor_rollout_ref.rollout.n", "data.max_response_length"),
            *("actor_rollout_ref.rollout.temperature", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"),
        ),
        "openrlhf": (
            *("rollout.batch_size", "rollout.n_samples_per_prompt", "rollout.max_new_tokens"),
            *("rollout.temperature", "train.max_tokens_per_gpu"),
        ),
    }
    assert tuple(float(found[name]) for name in names[peer]) == sizes


def test_the_command_says_how_to_go_on(tmp_path: Path) -> None:
    bench = bench_of("e2e")
    names = [case.name for case in on_gpus(bench, Request())]
    (_, script), (_, then) = contest.write_launches("verl", bench, names, tmp_path)
    assert script.startswith(f"{tmp_path}/verl-qwen2.5-7b-8-GPUs/launch.sh; ")
    assert then == (
        'hybridrl bench e2e --peer verl --case "qwen2.5-7b 8 GPUs"'
        f" --log {tmp_path}/verl-qwen2.5-7b-8-GPUs/run.log"
    )


def test_what_cannot_be_launched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no case smollm2 on GPUs"):
        on_gpus(bench_of("e2e"), Request(cases=["smollm2"]))
    with pytest.raises(ConfigError, match="takes several optimizer steps"):
        launches.write("verl", Case(name="quickstart", config=QUICKSTART), tmp_path)
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        launches.write("verl", CASE, tmp_path)
    with pytest.raises(ConfigError, match="--log is what verl or OpenRLHF printed"):
        contest.contest_of("trl", tmp_path / "run.log")


VERL = """
import json, sys
from importlib.metadata import files
from hydra import compose, initialize_config_dir

name = "verl/trainer/config/ppo_megatron_trainer.yaml"
[place] = [str(f.locate().parent) for f in files("verl") if str(f) == name]
with initialize_config_dir(place, version_base=None):
    cfg = compose("ppo_megatron_trainer", overrides=[w for w in sys.argv[1:] if not w.startswith("--")])
shared = cfg.actor_rollout_ref
print(json.dumps([shared.rollout.n, shared.actor.megatron.tensor_model_parallel_size]))
"""

OPENRLHF = """
import argparse, ast, json, sys
from importlib.metadata import files
from importlib.util import module_from_spec, spec_from_file_location

place = {str(f): str(f.locate()) for f in files("openrlhf")}
spec = spec_from_file_location("config", place["openrlhf/utils/config.py"])
config = module_from_spec(spec)
spec.loader.exec_module(config)
tree = ast.parse(open(place["openrlhf/cli/train_ppo_ray.py"]).read())
functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name != "train"]
[main] = [node for node in tree.body if isinstance(node, ast.If)]
kept = [n for n in main.body if not isinstance(n, ast.ImportFrom) and ast.unparse(n) != "train(args)"]
names = {"argparse": argparse, "hierarchize": config.hierarchize, "os": __import__("os"),
         "datetime": __import__("datetime").datetime}
exec(compile(ast.Module(functions + kept, []), "train_ppo_ray.py", "exec"), names)
args = names["args"]
print(json.dumps([args.rollout.n_samples_per_prompt, args.vllm.tensor_parallel_size]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not PARSERS.exists(), reason="their code is not here: make setup-peers")
def test_their_own_parsers_take_the_launch(written: tuple[str, Path]) -> None:
    peer, folder = written
    program = {"verl": VERL, "openrlhf": OPENRLHF}[peer]

    def parsed(*more: str) -> subprocess.CompletedProcess[str]:
        command = [str(PARSERS), "-I", "-c", program, *words(folder), *more]
        return subprocess.run(command, capture_output=True, text=True)

    done = parsed()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [8, 2]
    wrong = "actor.no_such_key=1" if peer == "verl" else "--actor.no_such_key=1"
    assert parsed(wrong).returncode != 0
