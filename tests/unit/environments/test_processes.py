"""Environments play in processes: what hangs, dies or lies costs its episodes, is named, and nothing else."""

import asyncio
import os
from typing import Any

import pytest
from environment_values import episode, with_environments

from hybridrl.environments.base import EnvironmentFailedError, EnvironmentSource, Turn
from hybridrl.environments.pool import Places
from hybridrl.errors import DataError, HybridRLError


def section(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": f"odd_environments:{name}", **keys}


async def failure(source: EnvironmentSource, *texts: str) -> EnvironmentFailedError:
    with pytest.raises(EnvironmentFailedError) as caught:
        await episode(source, *texts)
    return caught.value


@pytest.mark.parametrize("name", ["Counts", "AsyncCounts"])
def test_an_episode_reaches_its_end(name: str) -> None:
    async def play(source: EnvironmentSource) -> Any:
        return await episode(source, "a", "b", row={"prompt": "p"}, seed=7), source.usage()

    (opening, first, second), usage = with_environments(section(name, turns=2), play)
    assert opening.messages == ({"role": "user", "content": "p 7"},) and opening.reward == 0
    assert first.messages[0]["content"] == "1 a" and not first.done and first.anchor == 1
    assert second.done and second.reward == 0.5
    assert usage.episodes == 1 and not usage.failures and usage.processes == 1


def test_episodes_share_processes_up_to_their_number() -> None:
    async def play(source: EnvironmentSource) -> tuple[int, int]:
        opened = [source.open({}) for _ in range(10)]
        await asyncio.gather(*(one.reset(0) for one in opened))
        await asyncio.gather(*(one.step(Turn("x")) for one in opened))
        for one in opened:
            await one.close()
        await source.close()  # it waits for what is being closed
        usage = source.usage()
        return usage.episodes, usage.closed

    assert with_environments(section("Counts", episodes_per_process=4), play) == (10, 10)


def test_more_episodes_than_places_wait() -> None:
    async def play(source: EnvironmentSource) -> tuple[bool, int]:
        first, second = source.open({}), source.open({})
        await first.reset(0)
        waiting = asyncio.create_task(second.reset(0))
        await asyncio.sleep(0.05)
        waited = not waiting.done()
        await first.close()
        await waiting
        await second.close()
        return waited, source.usage().processes

    keys = {"episodes_per_process": 1, "processes_per_node": 1}
    assert with_environments(section("Counts", **keys), play) == (True, 1)


@pytest.mark.parametrize(("most", "sharers", "share"), [(8, 1, 8), (8, 3, 2), (2, 8, 1)])
def test_engines_of_a_node_share_its_processes(most: int, sharers: int, share: int) -> None:
    assert Places(most, sharers=sharers).most == share


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("raise", "raised", "step raised ValueError: no such move"),
        ("nan", "invalid", "step returned reward = nan, which is not a finite number"),
        ("list", "invalid", "step returned ['a list'], not an Observation or a string"),
        ("role", "invalid", "has no role of system, user, assistant, tool"),
        ("die", "died", "its process died: it exited with code 3"),
        ("kill", "died", "its process died: ended by SIGKILL"),
        ("hang", "timeout", "step did not return within 0.3 s"),
    ],
)
def test_a_fault_is_named_and_the_next_episode_plays(
    text: str, reason: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play(source: EnvironmentSource) -> Any:
        failed = await failure(source, text)
        usage = source.usage()
        return failed, usage, await episode(source, "a")

    failed, usage, seen = with_environments(section("Faulty", step_timeout_s=0.3), play)
    assert said in str(failed) and (failed.phase, failed.reason) == ("step", reason)
    assert usage.failures == {f"step/{reason}": 1} and said in usage.first_failure
    assert said in capsys.readouterr().err
    assert seen[-1].reward == 0.5


def test_a_hang_names_the_line() -> None:
    failed = with_environments(
        section("Faulty", step_timeout_s=0.3), lambda source: failure(source, "a", "hang")
    )
    assert "odd_environments.py:" in failed.where and failed.where.endswith("in step")


def test_a_hang_costs_the_episodes_of_its_process_alone() -> None:
    async def play(source: EnvironmentSource) -> Any:
        opened = [source.open({}) for _ in range(3)]
        for one in opened:  # one after the other: the first two share a process
            await one.reset(0)
        results = await asyncio.gather(
            opened[0].step(Turn("hang")), opened[2].step(Turn("a")), return_exceptions=True
        )
        with pytest.raises(EnvironmentFailedError) as neighbour:
            await opened[1].step(Turn("a"))
        for one in opened:
            await one.close()
        return *results, neighbour.value, source.usage()

    keys = {"episodes_per_process": 2, "step_timeout_s": 0.3}
    hung, other, neighbour, usage = with_environments(section("Faulty", **keys), play)
    assert hung.reason == "timeout" and other.reward == 0.5 and neighbour.reason == "neighbour"
    assert usage.failures["step/timeout"] == 1 and "did not return" in usage.first_failure


def test_episodes_of_a_process_that_are_overdue_one_after_the_other_are_all_named() -> None:
    async def play(source: EnvironmentSource) -> list[Any]:
        opened = [source.open({}) for _ in range(3)]
        for one in opened:
            await one.reset(0)

        async def hang(number: int) -> Any:
            await asyncio.sleep(
                0.15 * number
            )  # the first one's process ends while others look where they hang
            return await opened[number].step(Turn("hang"))

        found = await asyncio.gather(*map(hang, range(3)), return_exceptions=True)
        for one in opened:
            await one.close()
        return found

    keys = {"episodes_per_process": 3, "step_timeout_s": 0.3}
    found = with_environments(section("Faulty", **keys), play)
    assert [type(error) for error in found] == [EnvironmentFailedError] * 3, found
    assert {error.reason for error in found} <= {"timeout", "neighbour"} and found[0].reason == "timeout"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("HangsAtReset", "reset did not return within 0.3 s"),
        ("PaysAtReset", "reset returned a reward, and no turn was taken"),
    ],
)
def test_an_episode_that_cannot_begin_is_named(name: str, said: str) -> None:
    failed = with_environments(section(name, reset_timeout_s=0.3), lambda source: failure(source))
    assert said in str(failed) and failed.phase == "reset"


def test_a_hang_at_the_end_is_counted_and_delays_nobody() -> None:
    async def play(source: EnvironmentSource) -> Any:
        seen = await episode(source, "a")
        await source.close()
        return seen, source.usage()

    seen, usage = with_environments(section("HangsAtClose", close_timeout_s=0.3), play)
    assert seen[-1].reward == 0.5 and usage.failures == {"close/timeout": 1} and usage.closed == 0


def test_only_listed_variables_reach_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDRL_SECRET", "s")
    monkeypatch.setenv("HYBRIDRL_LISTED", "l")

    async def play(source: EnvironmentSource) -> str:
        return (await episode(source, "variables"))[-1].messages[0]["content"]

    seen = with_environments(section("Faulty", variables=["HYBRIDRL_LISTED"]), play).split()
    assert "HYBRIDRL_LISTED" in seen and "PATH" in seen and "HYBRIDRL_SECRET" not in seen


def test_nothing_is_left_running() -> None:
    async def play(source: EnvironmentSource) -> list[int]:
        await episode(source, "a")
        return [process.pid for pool in source._pools.values() for process in pool._processes]

    (pid,) = with_environments(section("Counts"), play)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_rows_choose_among_several_environments() -> None:
    several = {"short": section("Counts", turns=1), "long": section("Counts", turns=5, max_turns=6)}

    async def play(source: EnvironmentSource) -> Any:
        rows = [{"kind": "short"}, {"kind": "long"}]
        ends = [(await episode(source, "a", row=row))[-1].done for row in rows]
        with pytest.raises(DataError, match="a row has kind = 'none'"):
            source.open({"kind": "none"})
        return ends, [source.max_turns(row) for row in rows], [source.name(row) for row in rows]

    found = with_environments({"field": "kind", "several": several}, play)
    assert found == ([True, False], [8, 6], ["short", "long"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("WithoutStep", "odd_environments:WithoutStep has no method step"),
        ("WrongStep", "its method step cannot be called: too many positional arguments"),
        ("WithoutHints", "its parameter query has no type hint"),
        ("WithoutDocstring", "has no docstring"),
        ("search", "not a class"),
        ("Absent", "odd_environments has no 'Absent'"),
    ],
)
def test_what_is_no_environment_is_refused(name: str, said: str) -> None:
    with pytest.raises(HybridRLError) as caught:
        with_environments(section(name), lambda source: episode(source))
    assert said in str(caught.value)


def test_an_option_that_an_environment_lacks_is_refused() -> None:
    with pytest.raises(HybridRLError, match="has no option 'turn'"):
        with_environments(section("Counts", turn=3), lambda source: episode(source))
