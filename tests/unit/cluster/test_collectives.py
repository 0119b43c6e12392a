"""The error of a call in which a collective broke names the ranks that were not in it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from hybridrl.cluster import collectives
from hybridrl.cluster.group import WorkerGroup
from hybridrl.errors import DeadlineError, HybridRLError, NonFiniteError, WorkerError

CLOSED = "[/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:5"
LATE = "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 15000ms for recv operation to complete"


def call(*ranks: Callable[[], Awaitable[None]], deadline_s: float = 5.0) -> HybridRLError:
    """What a call to these ranks raises."""
    actors = [SimpleNamespace(step=SimpleNamespace(remote=rank)) for rank in ranks]
    group = WorkerGroup("trainer", actors, Path("logs"), deadline_s)
    with pytest.raises(HybridRLError) as raised:
        asyncio.run(group.all("step"))
    return raised.value


def fails(error: BaseException, after_s: float = 0.0) -> Callable[[], Awaitable[None]]:
    async def rank() -> None:
        await asyncio.sleep(after_s)
        raise error

    return rank


async def returns() -> None: ...


async def hangs() -> None:
    await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "GRACE_S", 0.2)


def test_the_rank_that_died_is_named_and_not_those_that_waited_for_it() -> None:
    error = call(fails(RuntimeError(CLOSED)), fails(ActorDiedError(), after_s=0.05))
    assert isinstance(error, WorkerError) and error.what.startswith("trainer rank 1 died during 'step'")


def test_an_error_with_a_name_goes_before_those_of_the_others() -> None:
    error = call(fails(RuntimeError(CLOSED)), fails(NonFiniteError("loss is nan"), after_s=0.05))
    assert isinstance(error, NonFiniteError)


def test_a_rank_that_never_joined_is_named() -> None:
    error = call(fails(RuntimeError(LATE), after_s=0.02), returns)
    assert isinstance(error, DeadlineError) and "cluster.deadlines.collective_s" in error.fix
    assert (
        "trainer rank [0] waited in a collective during 'step' for rank [1], which returned from"
        in error.what
    )


def test_a_rank_that_hangs_is_named() -> None:
    error = call(fails(RuntimeError(LATE)), fails(RuntimeError(LATE)), hangs)
    assert "trainer rank [0, 1] waited" in error.what and "rank [2], which does not answer" in error.what


def test_a_rank_that_comes_after_the_deadline_is_named_and_not_the_one_that_gave_up() -> None:
    error = call(fails(RuntimeError(CLOSED), after_s=0.02), fails(RuntimeError(LATE)))
    assert isinstance(error, DeadlineError) and "cluster.deadlines.collective_s" in error.fix
    assert (
        "trainer rank [1] waited in a collective during 'step' for rank [0], which came after" in error.what
    )
    assert "Timed out waiting 15000ms" in error.what


def test_a_connection_that_all_ranks_lose_is_a_loss_of_workers() -> None:
    error = call(fails(RuntimeError(CLOSED)), fails(RuntimeError(CLOSED)))
    assert isinstance(error, WorkerError) and "a collective of trainer rank [0, 1] broke" in error.what


def test_other_errors_are_not_of_a_collective() -> None:
    assert not collectives.is_of_collective(RuntimeError("size mismatch"))
    assert not collectives.is_of_collective(ValueError("NCCL"))
