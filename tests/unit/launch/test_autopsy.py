"""What the report about a failed run says, and what `hybridrl why` shows."""

import asyncio
import fcntl
import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from hybridrl.cluster.group import Called, Deadline, WorkerGroup
from hybridrl.config.cluster import ClusterConfig
from hybridrl.errors import DeadlineError, RunFolderError
from hybridrl.launch import deadlines
from hybridrl.launch.autopsy import Scene, gather, text_of
from hybridrl.launch.why import why
from hybridrl.observe.doing import DOING_FILE, Doing
from hybridrl.observe.run_session import WHY_BEFORE_FILE, WHY_FILE


def group(name: str, *histories: list[Called], stacks: object = None) -> WorkerGroup:
    made = WorkerGroup(name, [None] * len(histories), Path("logs"), 60.0, stacks=stacks)
    made.history = {rank: deque(calls) for rank, calls in enumerate(histories)}
    made.pids = {rank: 100 + rank for rank in range(len(histories))}
    return made


ANSWERED = Called("submit", began=10.0, ended=10.5, was_answered=True)
OPEN = Called("step", began=40.0)
GIVEN_UP = Called("step", began=40.0, ended=100.0)


def test_the_report_names_error_phase_who_is_missing_and_the_last_calls() -> None:
    error = DeadlineError(
        "trainer rank [1] did not finish 'step' in 60 s", where="logs in x\nline", fix="raise it"
    )
    groups = [group("trainer", [ANSWERED], [ANSWERED, OPEN]), group("reward", [])]
    scene = Scene(
        error=error,
        step=7,
        running=[("step", 90.0), ("update_actor", 60.0)],
        groups=groups,
        stacks={"trainer 1": "File a.py, line 3 in wait", "reward 0": ""},
    )
    text = text_of(scene, now=100.5)
    assert text.startswith("error   DeadlineError: trainer rank [1] did not finish 'step' in 60 s\n")
    assert "where   logs in x\n        line\nfix     raise it\n" in text
    assert "phase   step 7: step for 90 s, update_actor for 60 s" in text
    assert "waiting trainer 1 has not returned from 'step' for 60 s" in text
    assert "  trainer 0, pid 100: submit took 0.5 s, 90 s ago" in text
    assert "  reward 0, pid 100: none" in text
    assert "--- trainer 1\nFile a.py, line 3 in wait\n" in text
    assert "--- reward 0\nno stack: the process is gone, or does not run, as after SIGSTOP" in text


def test_stacks_are_those_of_silent_workers_first() -> None:
    asked = []

    async def stacks(rank: int, files: dict[int, Path]) -> dict[int, str]:
        asked.append((rank, files))
        return dict.fromkeys(files, f"stack of {rank}")

    groups = [group("trainer", *([[ANSWERED]] * 20), [GIVEN_UP], stacks=stacks)]
    found = asyncio.run(gather(groups))
    assert len(found) == 16 and next(iter(found.items())) == ("trainer 20", "stack of 20")
    assert asked[0] == (20, {120: Path()})


def test_an_engines_worker_names_its_processes_and_a_receiver_has_none() -> None:
    async def stacks(rank: int, files: dict[int, Path]) -> dict[int, str]:
        return {pid: f"stack of {pid}" for pid in files}

    async def names() -> dict[int, str]:
        return {7: "engine0.log"}

    engine, receiver = (group(name, [ANSWERED], stacks=stacks) for name in ("engine", "engine receiver"))
    engine.actors[0] = SimpleNamespace(stack_files=SimpleNamespace(remote=names))
    receiver.actors[0] = SimpleNamespace()
    found = asyncio.run(gather([engine, receiver]))
    assert [*found] == ["engine 0", "engine 0, process 7", "engine receiver 0"]


def test_calls_are_kept_until_they_are_answered_or_given_up() -> None:
    async def scenario() -> list[tuple[str, bool]]:
        hangs = asyncio.Event()

        async def answers() -> None: ...
        async def never() -> None:
            await hangs.wait()

        ask = SimpleNamespace(remote=answers)
        actor = SimpleNamespace(load=ask, alive=ask, step=SimpleNamespace(remote=never))
        made = WorkerGroup(
            "trainer",
            [actor],
            Path("logs"),
            60.0,
            deadlines={"step": Deadline(0.01, "cluster.deadlines.train_s")},
        )
        await made.all("load")
        await made.all("alive")
        with pytest.raises(
            DeadlineError, match=r"did not finish 'step' in 0.01 s.*raise cluster.deadlines.train_s"
        ):
            await made.all("step")
        await asyncio.sleep(0)
        return [(called.method, called.was_answered) for called in made.history[0]]

    assert asyncio.run(scenario()) == [("load", True), ("step", False)]


def test_every_deadline_of_the_config_is_one_of_its_calls() -> None:
    cluster = ClusterConfig.model_validate({"deadlines": {"swap_s": 5, "generate_s": 7}})
    found = deadlines.deadlines(cluster)
    assert found["write_weights"] == Deadline(5.0, "cluster.deadlines.swap_s")
    assert found["finished"].seconds == 7.0 and "step" not in found


def doing(folder: Path, end: str | None) -> None:
    running = [("step", 12.0), ("update_actor", 3.0)]
    made = Doing(folder, lambda: running, lambda: 7, lambda: 6, every_s=60)
    if end is not None:
        made.close(end)


def test_why_tells_a_killed_run_from_one_that_ended_and_shows_its_report(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run that has begun"):
        why(tmp_path)
    doing(tmp_path, None)
    first, second = why(tmp_path)
    assert first.startswith("the run was ended from outside, by SIGKILL or with its machine")
    assert second.endswith("in step 7: step for 12 s, update_actor for 3.0 s")
    doing(tmp_path, "DeadlineError: late")
    (tmp_path / WHY_FILE).write_text("error   DeadlineError: late\n")
    assert why(tmp_path)[0] == "the run ended: DeadlineError: late"
    assert why(tmp_path)[-1] == "error   DeadlineError: late"
    (tmp_path / WHY_FILE).replace(tmp_path / WHY_BEFORE_FILE)  # the run has gone on
    assert why(tmp_path)[-2].endswith("why.before.txt tells of the last failure from which the run went on:")
    assert why(tmp_path)[-1] == "error   DeadlineError: late"


def test_a_run_that_finished_is_in_no_step_any_more(tmp_path: Path) -> None:
    doing(tmp_path, "finished")
    first, second = why(tmp_path)
    assert first == "the run ended: finished" and second.endswith("ago, after step 6")


def test_a_run_that_goes_on_is_not_called_dead(tmp_path: Path) -> None:
    doing(tmp_path, None)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert why(tmp_path)[0].startswith("the run goes on, as process ")


def test_of_a_driver_that_does_nothing_why_says_so(tmp_path: Path) -> None:
    doing(tmp_path, None)
    found = json.loads((tmp_path / DOING_FILE).read_text())
    (tmp_path / DOING_FILE).write_text(json.dumps(found | {"time": found["time"] - 60}))
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert why(tmp_path)[0].startswith("the driver does nothing since 60 s: process ")


def test_the_report_names_the_rank_that_others_wait_for_in_a_collective() -> None:
    waits = 'File "/x/torch/distributed/distributed_c10d.py", line 9 in all_reduce\n  File "policy.py"'
    scene = Scene(
        error=DeadlineError("trainer rank [0] did not finish 'step' in 60 s"),
        step=7,
        running=[],
        groups=[group("trainer", [OPEN], [ANSWERED]), group("critic", [OPEN], [OPEN])],
        stacks={"trainer 0": waits, "critic 0": 'File "planted.py"', "critic 1": waits},
    )
    text = text_of(scene, now=100.5)
    assert "collect trainer 0 in all_reduce: waits for trainer 1, which has returned from 'submit'" in text
    assert "collect critic 1 in all_reduce: waits for critic 0, which hangs elsewhere in 'step'" in text
