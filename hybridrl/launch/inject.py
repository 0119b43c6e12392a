"""The option --inject of `hybridrl launch`: which faults a run suffers, and who gets them."""

import asyncio
from collections.abc import Mapping, Sequence

from hybridrl.cluster.group import WorkerGroup
from hybridrl.config.run_shape import RunShape
from hybridrl.config.schema import Config
from hybridrl.faults import Fault, parse, refuse_absent


def faults_of(texts: Sequence[str], cfg: Config) -> tuple[Fault, ...]:
    """The faults that the command line names.

    Raises:
        ConfigError: one of them is not written as a fault, or the run has no such process or step.
    """
    faults = tuple(map(parse, texts))
    shape = RunShape.of(cfg)
    engines = shape.num_engines
    ranks = {
        "engine": engines,
        "engine_worker": engines,
        "trainer": shape.trainer_ranks,
        "reward": 1,
        "driver": 1,
    }
    refuse_absent(faults, ranks, cfg.run.steps)
    return faults


def words_of(texts: Sequence[str]) -> list[str]:
    """The words of a command line that has these faults."""
    return [word for text in texts for word in ("--inject", text)]


async def plant(faults: Sequence[Fault], workers: Mapping[str, WorkerGroup]) -> None:
    """Hand faults to the processes that they happen to, before these start their work. Those of an engine
    whose node has not come are handed to it when it starts.

    Args:
        workers: target -> its processes.
    """
    of_each: dict[tuple[str, int], list[Fault]] = {}
    for fault in faults:
        if fault.target in workers and fault.rank in workers[fault.target].there:
            of_each.setdefault((fault.target, fault.rank), []).append(fault)
    await asyncio.gather(
        *(workers[target].one(rank, "plant", found) for (target, rank), found in of_each.items())
    )
