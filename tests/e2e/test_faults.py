"""Planted faults on the real stack: lost engines are replaced, and the run is the one without faults."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_processes import harmed
from fault_runs import write_project
from trained_groups import done

from benchmarks._soak import is_of, last_step, lost_or_twice, processes

SAME = (
    *("critic/score/mean", "actor/grad_norm", "actor/loss", "response_length/mean"),
    *("rollout/tokens/with_gradient", "rollout/tokens/no_gradient"),
)
"""Metrics that do not depend on which groups came back together: the order of tokens rounds others, as the
mean entropy, differently, in runs without faults as well."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("project")
    write_project(path)
    return path


def launch(folder: Path, name: str, *arguments: str) -> tuple[int, str, Path]:
    """Exit code, output and folder of a run."""
    done = subprocess.run(
        [sys.executable, "-m", "hybridrl", "launch", "run.yaml", f"run.name={name}", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, " ".join(done.stdout.split()), folder / "runs" / name


def inject(*faults: str) -> list[str]:
    return [word for fault in faults for word in ("--inject", fault)]


def until_engines_are_back(step: int, seconds: int = 60) -> list[str]:
    """A fault that makes a step last while engines start."""
    return [f"slow:trainer:0@step={step},phase=update,seconds={seconds}"]


def values(run: Path, kind: str = "step") -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record for record in records if record["kind"] == kind}


def assert_same_run(calm: Path, other: Path) -> None:
    """Bit for bit: what was trained on, the weights that it made, and what they answer."""
    expected, found = values(calm), values(other)
    for step in expected:
        assert {name: found[step][name] for name in SAME} == {name: expected[step][name] for name in SAME}
    for step, evaluated in values(calm, "evaluation").items():
        scores = {name: value for name, value in evaluated.items() if name.startswith("val-core/")}
        assert scores.items() <= values(other, "evaluation")[step].items()
    exported = "export/model.safetensors"
    assert (other / exported).read_bytes() == (calm / exported).read_bytes()


@pytest.fixture(scope="module")
def calm(folder: Path) -> Path:
    code, out, run = launch(folder, "calm")
    assert code == 0, out
    return run


@pytest.mark.slow
def test_engines_killed_while_they_generate_and_swap_change_nothing(folder: Path, calm: Path) -> None:
    kills = ("kill:engine:0@step=2,phase=generate", "kill:engine:1@step=3,phase=swap")
    code, out, run = launch(folder, "killed", *inject(*kills, *until_engines_are_back(4)))
    assert code == 0, out
    for engine in (0, 1):
        assert f"engine {engine} is lost, another one starts" in out
        assert f"engine{engine} was ended by SIGKILL" in out
        assert f"engine {engine} serves again" in out
    assert_same_run(calm, run)
    steps = values(run).values()
    assert sum(step["rollout/engines/replaced"] for step in steps) == 2
    assert sum(step["rollout/groups/asked_again"] for step in steps) > 0
    assert (run / "logs" / "engine0.before.log").exists()


@pytest.mark.slow
def test_the_worker_of_an_engine_is_replaced_with_it(folder: Path, calm: Path) -> None:
    kills = ("kill:engine_worker:0@step=2,phase=generate", "stop:engine_worker:1@step=3,phase=swap")
    timeouts = (
        "rollout.alive_timeout_s=10",
        "cluster.deadlines.swap_s=20",
        "cluster.deadlines.generate_s=20",
    )
    code, out, run = launch(folder, "workers", *timeouts, *inject(*kills, *until_engines_are_back(4, 120)))
    assert code == 0 and out.count("serves again") == 2, out
    assert "engine rank 0 died during" in out and "engine rank [1] did not finish" in out
    assert_same_run(calm, run)


@pytest.mark.slow
def test_a_run_waits_for_its_only_engine(folder: Path) -> None:
    code, out, calm = launch(folder, "one_calm", "rollout.num_engines=1", "run.steps=3")
    assert code == 0, out
    faults = inject("kill:engine:0@step=2,phase=generate", "kill:engine:0@step=3,phase=swap")
    code, out, run = launch(folder, "one_killed", "rollout.num_engines=1", "run.steps=3", *faults)
    assert code == 0 and out.count("engine 0 serves again") == 2, out
    assert_same_run(calm, run)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stop", "hang"])
def test_an_engine_that_does_nothing_is_replaced(folder: Path, calm: Path, kind: str) -> None:
    timeouts = ("rollout.alive_timeout_s=10", "cluster.deadlines.generate_s=20")
    faults = inject(f"{kind}:engine:1@step=2,phase=generate", *until_engines_are_back(3))
    code, out, run = launch(folder, f"does_nothing_{kind}", *timeouts, *faults)
    assert code == 0 and "did not finish" in out and "engine 1 serves again" in out, out
    assert_same_run(calm, run)


@pytest.mark.slow
def test_an_engine_with_wrong_weights_is_replaced(folder: Path, calm: Path) -> None:
    bad = "bad_checksum:engine:1@step=2,phase=swap,times=3"
    code, out, run = launch(folder, "wrong", *inject(bad, *until_engines_are_back(3)))
    assert code == 0 and "1 of" in out and "engine 1 serves again" in out, out
    assert_same_run(calm, run)


@pytest.mark.slow
def test_a_streaming_run_loses_no_group_and_repeats_none(folder: Path) -> None:
    streaming = ("batch.max_lag=2", "batch.order=finished", "rollout.swap=in_flight", "run.steps=12")
    kills = [
        f"kill:engine:{step % 2}@step={step},phase={'swap' if step % 3 else 'generate'}"
        for step in (2, 5, 7, 9)
    ]
    code, out, run = launch(folder, "streaming", *streaming, "run.keep_checkpoints=20", *inject(*kills))
    assert code == 0 and out.count("is lost") >= 3, out
    trained = [set(), *map(done, sorted((run / "checkpoints").glob("step_[0-9]*[0-9]")))]
    for earlier, later in zip(trained, trained[1:], strict=False):
        assert earlier < later and len(later - earlier) == 8
    tokens = json.loads((run / "summary.json").read_text())["rollout_tokens"]
    settled = ("with_gradient", "no_gradient", "stale", "flat", "aborted", "in_flight")
    assert tokens["sampled"] == sum(tokens[name] for name in settled)


@pytest.mark.slow
def test_without_restarts_the_error_names_engine_and_signal_first(folder: Path) -> None:
    fault = inject("kill:engine:0@step=2,phase=generate")
    code, out, _ = launch(folder, "ends", "rollout.max_restarts=0", *fault)
    assert code == 1 and "error: engine0 was ended by SIGKILL" in out, out


@pytest.mark.slow
def test_trainer_and_reward_start_again_while_the_engines_stay(folder: Path, calm: Path) -> None:
    run, engines = folder / "runs" / "again", list[set[int]]()
    log, deadline = folder / "again.log", time.monotonic() + 600.0

    def look(temporary: Path) -> None:
        """Which processes the engines have before and after the kills; it ends before the run does."""
        for step, starts in ((1, 0), (4, 2)):
            while last_step(run) < step or log.read_text().count("again from step") < starts:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            found = [one for one in processes(temporary) if is_of(one, "scheduler")]
            engines.append({process.pid for process in found})

    kills = ("kill:trainer:0@step=3,phase=update", "kill:reward:0@step=5,phase=reward")
    words = ("run.max_restarts=1", "run.async_save=false", *inject(*kills))
    ended = harmed(folder, "again", words, look)
    assert ended.code == 0 and "start again from step 2, 0 further starts without a new" in ended.out
    assert "trainer and reward start again from step 3" in ended.out  # an evaluation met the second kill
    assert len(engines[0]) == 2 and engines[0] == engines[1]
    assert not (run / "logs" / "engine0.before.log").exists()
    assert_same_run(calm, run)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["stop:trainer:1@step=3,phase=update", "kill:trainer:1@step=3,phase=swap"])
def test_all_trainer_ranks_start_again_after_one_that_hangs_or_dies_in_a_swap(
    folder: Path, fault: str
) -> None:
    """On an engine that starts fast. Both ranks hold weights that the other one does not have."""
    small = ("rollout.engine=tiny_engine:TinyTransformer", "rollout.max_response_tokens=20")
    words = (*small, "actor.parallel.tp=2", "run.async_save=false", "run.max_restarts=1")
    name = fault.partition(":")[0]
    assert harmed(folder, f"calm_{name}", words, None).code == 0
    ended = harmed(folder, f"tp2_{name}", [*words, "cluster.deadlines.train_s=15", *inject(fault)], None)
    assert ended.code == 0 and "start again from step 2" in ended.out, ended.out
    assert "2 engines stay" in ended.out and "the run starts again" not in ended.out, ended.out
    assert_same_run(folder / "runs" / f"calm_{name}", folder / "runs" / f"tp2_{name}")


@pytest.mark.slow
def test_a_streaming_run_goes_back_to_its_open_groups(folder: Path) -> None:
    small = ("rollout.engine=tiny_engine:TinyTransformer", "rollout.max_response_tokens=20")
    streaming = ("batch.max_lag=2", "batch.order=finished", "rollout.swap=in_flight", "run.steps=8")
    kills = inject(
        "kill:trainer:0@step=3,phase=load",
        "kill:trainer:0@step=5,phase=swap",
        "kill:reward@step=7,phase=reward",
    )
    words = (*small, *streaming, "run.keep_checkpoints=20", "run.max_restarts=1", *kills)
    ended = harmed(folder, "streams_again", words, None)
    assert ended.code == 0 and ended.out.count("trainer and reward start again") >= 2, ended.out
    assert lost_or_twice(folder / "runs" / "streams_again" / "checkpoints", 8) == 0


def why(folder: Path, name: str) -> str:
    command = [sys.executable, "-m", "hybridrl", "why", f"runs/{name}"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 0
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "key", "silent", "where"),
    [
        ("hang:trainer:1@step=2,phase=update", "train_s", "trainer 1", "workers/planted.py"),
        ("stop:trainer:0@step=2,phase=save", "save_s", "trainer 0", "does not run, as after SIGSTOP"),
        ("hang:reward:0@step=2,phase=reward", "reward_s", "reward 0", "workers/planted.py"),
    ],
)
def test_a_hang_ends_at_its_deadline_and_says_who_hangs_where(
    folder: Path, fault: str, key: str, silent: str, where: str
) -> None:
    name = f"hangs_{key}"
    deadline = f"cluster.deadlines.{key}=15"
    code, out, _ = launch(folder, name, deadline, "actor.parallel.tp=2", *inject(fault))
    assert code == 3 and f"raise cluster.deadlines.{key}" in out, out
    told = why(folder, name)
    head, _, stacks = told.partition("\n--- ")
    assert f"{silent} has not returned from" in head and "phase   step 2: " in head
    of_silent = next(part for part in stacks.split("\n--- ") if part.startswith(silent))
    assert where in of_silent, told


@pytest.mark.slow
def test_of_a_killed_run_it_is_known_what_it_did(folder: Path) -> None:
    faults = inject("slow:trainer:0@step=2,phase=update,seconds=10", "kill:driver@step=2,phase=swap")
    code, _, _ = launch(folder, "gone", *faults)
    assert code == -9
    told = why(folder, "gone")
    assert "the run was ended from outside, by SIGKILL" in told
    assert "in step 2: step for" in told and "update_actor for" in told
