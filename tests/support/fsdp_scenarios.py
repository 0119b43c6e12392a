"""What two trainer ranks do on Megatron and on FSDP in turn; each function runs on every rank."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import trainer_scenarios as scenarios
import trainer_values as values

from hybridrl.batch import Minibatch
from hybridrl.config.training import TrainParallel

Rendezvous = Callable[[], str]

SHAPES = {"megatron": TrainParallel(tp=2, dp=1), "fsdp": TrainParallel(dp=2)}
OTHER = {"megatron": "fsdp", "fsdp": "megatron"}


def actor(backend: str, **options: Any) -> Any:
    keys = {key: options.pop(key) for key in ("offload", "gather", "keep_on_host") if key in options}
    return values.make_actor(**options).model_copy(update={"backend": backend, **keys})


def batches(backend: str) -> list[Any]:
    return batches_of(SHAPES[backend])


def batches_of(shape: TrainParallel) -> list[Any]:
    dp = scenarios.dp_of(shape)
    return [
        values.make_batch([scenarios.split(i, dp, (6,)) for i in range(2)], seed=s, step=s + 1)
        for s in (0, 1)
    ]


def checkpoints(rank: int, rendezvous: Rendezvous, folder: Path, saved: Path) -> dict[str, Any]:
    """By backend, two batches with a checkpoint between; the second one again from each checkpoint."""
    found: dict[str, Any] = {}
    for backend, shape in SHAPES.items():
        with scenarios.policy(rank, rendezvous, folder, shape, actor=actor(backend)) as trained:
            first = scenarios.play(trained, batches(backend)[0])
            trained.save(saved / backend)
            found[backend] = {"first": first, "second": scenarios.play(trained, batches(backend)[1])}
    for backend, shape in SHAPES.items():
        with scenarios.policy(rank, rendezvous, folder, shape, actor=actor(backend)) as trained:
            for whose, name in ((backend, "own"), (OTHER[backend], "other's")):
                notes = trained.restore(saved / whose)
                found[backend][name] = scenarios.play(trained, batches(backend)[1]) | {"notes": notes}
    return found


def second_batch(rank: int, rendezvous: Rendezvous, folder: Path, group: Any, saved: Path) -> dict[str, Any]:
    """Two batches on ranks of any shape and backend, with a checkpoint between: what the second one reports.

    Args:
        group: parallel layout and section `actor` of the ranks.
    """
    shape, made = group
    first, second = batches_of(shape)
    with scenarios.policy(rank, rendezvous, folder, shape, actor=made) as trained:
        scenarios.play(trained, first)
        trained.save(saved)
        return scenarios.play(trained, second) | {"weights": scenarios.copy(trained)}


def continued(rank: int, rendezvous: Rendezvous, folder: Path, group: Any, saved: Path) -> dict[str, Any]:
    """The second batch on ranks that start from a checkpoint."""
    shape, made = group
    with scenarios.policy(rank, rendezvous, folder, shape, actor=made) as trained:
        notes = trained.restore(saved)
        played = scenarios.play(trained, batches_of(shape)[1])
        return played | {"notes": notes, "weights": scenarios.copy(trained)}


def options(
    rank: int, rendezvous: Rendezvous, folder: Path, cases: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Two batches on FSDP under each set of options of the actor, with the weights after them."""
    from hybridrl.trainer import linear_logprob
    from hybridrl.trainer.fsdp import network

    usual, found = linear_logprob.LOGITS_AT_ONCE, {}
    for name, case in cases.items():
        changed = dict(case)
        linear_logprob.LOGITS_AT_ONCE = changed.pop("logits_at_once", usual)
        network.LEAST_UNIT = changed.pop("least_unit", 1)
        made = actor("fsdp", **changed)
        with scenarios.policy(rank, rendezvous, folder, SHAPES["fsdp"], actor=made) as trained:
            with counted_gathers() as gathers:
                played = [scenarios.play(trained, batch)["reports"] for batch in batches("fsdp")]
            found[name] = {"played": played, "weights": scenarios.copy(trained), "gathers": len(gathers)}
    return found


@contextlib.contextmanager
def counted_gathers() -> Iterator[list[None]]:
    """One entry for each time that FSDP gathers the weights of a module."""
    import torch.distributed as dist

    gather, found = dist.all_gather_single, list[None]()

    def counted(*args: Any, **options: Any) -> Any:
        found.append(None)
        return gather(*args, **options)

    dist.all_gather_single = counted
    try:
        yield found
    finally:
        dist.all_gather_single = gather


def lopsided(
    rank: int, rendezvous: Rendezvous, folder: Path, minibatches: list[Minibatch]
) -> list[dict[str, Any]]:
    """Reports on minibatches of which the ranks have unequal numbers of microbatches, or none."""
    with scenarios.policy(rank, rendezvous, folder, SHAPES["fsdp"], actor=actor("fsdp")) as trained:
        return scenarios.play(trained, values.make_batch(minibatches))["reports"]


def roles(
    rank: int, rendezvous: Rendezvous, folder: Path, algorithms: dict[str, Any], changes: dict[str, Any]
) -> dict[str, Any]:
    """By backend, what `scenarios.algorithm_runs` finds."""
    return {
        backend: scenarios.algorithm_runs(
            rank,
            rendezvous,
            folder,
            shape,
            algorithms,
            setup={"actor": actor(backend), **changes},
        )
        for backend, shape in SHAPES.items()
    }


def dedicated(rank: int, rendezvous: Rendezvous, folder: Path) -> dict[str, np.ndarray | None]:
    """By backend, log-probabilities of a reference on ranks of its own."""
    from hybridrl.trainer.roles.frozen import FrozenRanks

    found = {}
    for backend, shape in SHAPES.items():
        setup = values.make_setup(rank, rendezvous(), folder, shape, actor=actor(backend, offload="all"))
        reference = FrozenRanks(setup, "ref_logp")
        reference.load(batches(backend)[0])
        found[backend] = reference.column("ref_logp")
        reference.close()
    return found


def everything(
    rank: int,
    rendezvous: Rendezvous,
    folder: Path,
    saved: Path,
    cases: dict[str, dict[str, Any]],
    minibatches: list[Minibatch],
    algorithms: dict[str, Any],
    changes: dict[str, Any],
) -> dict[str, Any]:
    """All of these in the same processes."""
    return {
        "checkpoints": checkpoints(rank, rendezvous, folder, saved),
        "options": options(rank, rendezvous, folder, cases),
        "lopsided": lopsided(rank, rendezvous, folder, minibatches),
        "dedicated": dedicated(rank, rendezvous, folder),
        "roles": roles(rank, rendezvous, folder, algorithms, changes),
    }


def skips_a_step(rank: int, rendezvous: Rendezvous, folder: Path, backend: str, over: Path) -> str:
    """Rank 1 does not join the step of rank 0, whose error is returned."""
    with scenarios.policy(
        rank, rendezvous, folder, SHAPES[backend], actor=actor(backend), timeout_s=6.0
    ) as trained:
        trained.load(batches(backend)[0])
        if rank == 1:
            while not over.exists():  # the connection stays, so that only the deadline ends the wait
                time.sleep(0.1)
            return ""
        try:
            trained.step(0)
        except RuntimeError as error:
            return str(error)
        finally:
            over.touch()
    return "no error"
