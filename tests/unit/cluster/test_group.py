"""Worker groups on a real Ray: errors keep their class; the dead and the late are named."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError

from hybridrl.cluster.env import worker_environment
from hybridrl.cluster.group import WorkerGroup, wait_until_gone
from hybridrl.cluster.ray_local import local_ray
from hybridrl.errors import DeadlineError, RewardError, WorkerError


class Worker:
    def pid(self) -> int:
        return os.getpid()

    def double(self, value: int) -> int:
        return 2 * value

    def refuse(self) -> None:
        raise RewardError("no reward", where="row 3", fix="mend it")

    def break_down(self) -> None:
        raise ZeroDivisionError("by zero")

    def die(self) -> None:
        sys.stderr.write("my last words\n")
        sys.stderr.flush()
        os._exit(9)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


@pytest.fixture(scope="module")
def logs() -> Iterator[Path]:
    with local_ray(num_workers=4) as folder:
        yield Path(folder)


@pytest.fixture
def group(logs: Path) -> Iterator[WorkerGroup]:
    options = {"num_cpus": 1, "runtime_env": {"env_vars": worker_environment({"COLOUR": "blue"})}}
    actors = [ray.remote(max_restarts=0)(Worker).options(**options).remote() for _ in range(2)]
    group = WorkerGroup("trainer", actors, logs, timeout_s=30)
    asyncio.run(group.learn_pids(timeout_s=60))
    yield group
    group.kill()


def test_results_come_in_the_order_of_ranks(group: WorkerGroup) -> None:
    assert asyncio.run(group.all("double", 4)) == [8, 8]
    assert asyncio.run(group.one(1, "pid")) == group.pids[1]
    assert asyncio.run(group.all("variable", "COLOUR")) == ["blue", "blue"]


def test_our_errors_keep_class_and_message(group: WorkerGroup) -> None:
    with pytest.raises(RewardError) as caught:
        asyncio.run(group.all("refuse"))
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("no reward", "row 3", "mend it")


def test_other_errors_say_in_which_worker(group: WorkerGroup) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        asyncio.run(group.one(1, "break_down"))
    assert "trainer rank 1, 'break_down'" in caught.value.__notes__[0]


def test_what_a_worker_raised_is_shown_before_the_death_of_another() -> None:
    async def call(error: Exception) -> None:
        raise error

    def actor(error: Exception) -> SimpleNamespace:
        return SimpleNamespace(step=SimpleNamespace(remote=lambda: call(error)))

    for errors in ([ActorDiedError(), ZeroDivisionError()], [ZeroDivisionError(), ActorDiedError()]):
        with pytest.raises(ZeroDivisionError):
            asyncio.run(WorkerGroup("trainer", list(map(actor, errors)), Path(), timeout_s=5).all("step"))


def test_what_a_worker_raised_has_the_traceback_of_the_worker_as_its_cause(group: WorkerGroup) -> None:
    for method in ("break_down", "refuse"):
        with pytest.raises((ZeroDivisionError, RewardError)) as caught:
            asyncio.run(group.all(method))
        assert f"in {method}\n" in str(caught.value.__cause__), "a failure is looked for where it happened"


def test_a_late_worker_is_named(group: WorkerGroup) -> None:
    with pytest.raises(DeadlineError, match=r"trainer rank \[0\] did not finish 'sleep' in 0.2 s"):
        asyncio.run(group.one(0, "sleep", 3.0, timeout_s=0.2))


def test_a_dead_worker_is_named_with_its_last_words(group: WorkerGroup) -> None:
    with pytest.raises(WorkerError, match=r"(?s)trainer rank 0 died during 'die'.*my last words"):
        asyncio.run(group.one(0, "die"))


def test_outcomes_wait_for_all_and_tell_the_dead_from_those_that_raised(group: WorkerGroup) -> None:
    refused = asyncio.run(group.outcomes("refuse", ranks=[1]))
    assert [str(error) for error in refused.values()] == ["no reward  (row 3): mend it"]
    group.actors[0].die.remote()
    found = asyncio.run(group.outcomes("double", 4, ranks=[0, 1]))
    assert isinstance(found[0], WorkerError) and "trainer rank 0 died during 'double'" in str(found[0])
    assert found[1] == 8


def test_every_port_of_the_local_ray_is_on_loopback(group: WorkerGroup) -> None:
    found = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [line for line in found if "ray" in line or "gcs_server" in line]
    assert ours
    assert not [line for line in ours if "127.0.0.1" not in line.split()[3]]


def test_processes_are_waited_for_until_they_have_ended_or_the_time_is_over() -> None:
    sleeping = subprocess.Popen(["sleep", "600"])
    began = time.monotonic()
    wait_until_gone([sleeping.pid], 0.2)
    assert time.monotonic() - began >= 0.2 and sleeping.poll() is None
    os.kill(sleeping.pid, 9)
    wait_until_gone([sleeping.pid], 600)  # it is a zombie, since nobody has waited for it
    assert Path(f"/proc/{sleeping.pid}").exists() and sleeping.wait() == -9
    wait_until_gone([sleeping.pid], 600)


def test_calls_that_nobody_waits_for_any_more_are_given_up() -> None:
    """Else the output of a run ends with the deaths of the workers that it has ended."""

    async def scenario() -> None:
        answer = asyncio.get_running_loop().create_future()
        actor = SimpleNamespace(work=SimpleNamespace(remote=lambda: answer))
        waiting = asyncio.create_task(WorkerGroup("trainer", [actor], Path(), timeout_s=60).all("work"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert answer.cancelled()

    asyncio.run(scenario())


def test_a_rank_whose_node_has_not_come_is_left_out_until_it_starts(group: WorkerGroup) -> None:
    absent, group.actors[1] = group.actors[1], None
    group.start_again = lambda rank: absent

    async def scenario() -> tuple[list[int], list[int], dict[int, int]]:
        await group.learn_pids(timeout_s=60)
        known = dict(group.pids)
        with pytest.raises(WorkerError, match="trainer rank 1 is not there: its node has not come"):
            await group.one(1, "pid")
        found = await group.outcomes("double", 4, ranks=[0, 1])
        assert found[0] == 8 and isinstance(found[1], WorkerError)
        assert isinstance((await group.outcomes("double", 4, ranks=[1]))[1], WorkerError)
        before = await group.all("double", 3)
        await group.renew(1, timeout_s=60)
        return before, await group.all("double", 3), known

    before, after, known = asyncio.run(scenario())
    assert (before, after) == ([6], [6, 6])
    assert known.keys() == {0} and group.pids.keys() == {0, 1}


def test_a_worker_that_ray_ends_for_memory_died(tmp_path: Path) -> None:
    """Ray's own error says how to avoid it, in a page of text."""
    text = (
        "2 worker(s) were killed due to the node running low on memory. Memory on the node was 9 of 9 GB\nOOM"
    )

    async def scenario() -> dict[int, BaseException]:
        killed = asyncio.get_running_loop().create_future()
        killed.set_exception(OutOfMemoryError(text))
        actor = SimpleNamespace(step=SimpleNamespace(remote=lambda: killed))
        return await WorkerGroup("engine", [actor], tmp_path, 30).outcomes("step", ranks=[0])

    error = asyncio.run(scenario())[0]
    assert isinstance(error, WorkerError)
    wanted = "engine rank 0 died during 'step': 2 worker(s) were killed due to the node running low on memory"
    assert error.what == wanted
