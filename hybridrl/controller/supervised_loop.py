"""Training on examples, start to end: take a batch, train on it, evaluate held-out examples, save.

    examples -> batch -> one optimizer step

It waits for the trainer, and for nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from hybridrl.batch import Batch, Minibatch
from hybridrl.config.sft_rm import SupervisedConfig
from hybridrl.config.training import ActorConfig
from hybridrl.data.examples import Example, block_of
from hybridrl.data.packing import partition_rows
from hybridrl.types import PolicyVersion, StepReport


class ExampleSource(Protocol):
    """An endless stream of examples that can be reset to any position."""

    def take(self, count: int) -> list[Example]: ...

    def state_dict(self) -> dict[str, Any]: ...


class ExampleTrainer(Protocol):
    """The model, over all its ranks."""

    @property
    def version(self) -> PolicyVersion: ...

    async def step(self, batch: Batch, minibatch: Minibatch) -> StepReport:
        """One optimizer step."""
        ...

    async def evaluate(self, batch: Batch, minibatch: Minibatch) -> dict[str, float]:
        """What a step would report of a batch, without training on it."""
        ...

    async def save(self, step: int, progress: Mapping[str, Any]) -> None: ...


class ExampleObserver(Protocol):
    def span(self, name: str) -> AbstractContextManager[None]: ...

    def step(self, report: StepReport, batch: Batch) -> None: ...

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRoles:
    train: ExampleSource
    heldout: Sequence[Example]
    trainer: ExampleTrainer
    observe: ExampleObserver
    stop_requested: Callable[[], bool]


async def run(cfg: SupervisedConfig, roles: ExampleRoles) -> None:
    """Train from the trainer's version on until cfg.run.steps updates are done, or until asked to stop.

    Either way a checkpoint holds the last update.

    Raises: whatever a role raises.
    """
    version = roles.trainer.version
    if version == 0:
        await evaluate(cfg, roles, version)
    for step in range(version + 1, cfg.run.steps + 1):
        with roles.observe.span("step"):
            batch, minibatch = pack(cfg.actor, step, roles.train.take(cfg.batch.examples_per_step))
            report = await roles.trainer.step(batch, minibatch)
        roles.observe.step(report, batch)
        every = cfg.run.evaluate_every
        if step == cfg.run.steps or (every and step % every == 0):
            await evaluate(cfg, roles, step)
        last = step == cfg.run.steps or roles.stop_requested()
        if last or (cfg.run.save_every and step % cfg.run.save_every == 0):
            with roles.observe.span("save_checkpoint"):
                await roles.trainer.save(step, {"examples": roles.train.state_dict()})
        if last:
            return


async def evaluate(cfg: SupervisedConfig, roles: ExampleRoles, step: int) -> None:
    """Means over all held-out examples."""
    if roles.heldout:
        with roles.observe.span("testing"):
            metrics = await roles.trainer.evaluate(*pack(cfg.actor, step, roles.heldout))
            roles.observe.evaluation(step, {n.replace("train/", "val/"): v for n, v in metrics.items()})


def pack(actor: ActorConfig, step: int, examples: Sequence[Example]) -> tuple[Batch, Minibatch]:
    """A batch of one optimizer step; the sequences of an example stay together in a microbatch."""
    block = block_of(examples)
    length_N, trained_N = np.diff(block.start_N), np.add.reduceat(block.loss_mask_T, block.start_N[:-1])
    first = np.cumsum([0, *(len(example.sequences) for example in examples)])
    example_N = np.repeat(np.arange(len(examples)), np.diff(first))
    none_N = np.zeros(len(block), np.float32)
    batch = Batch(
        step,
        [],
        [block],
        np.zeros(len(block), np.int64),
        np.arange(len(block)),
        example_N,
        length_N,
        trained_N.astype(np.int64),
        none_N,
        none_N,
        scalars={"margin": np.array([example.margin for example in examples], np.float32)[example_N]},
    )
    partitioned = partition_rows(
        np.arange(len(examples)),
        np.array([example.num_tokens for example in examples]),
        num_ranks=actor.parallel.dp or 1,
        microbatch_tokens=actor.microbatch_tokens,
    )
    rows_of = [range(a, b) for a, b in pairwise(first.tolist())]
    rows = tuple(tuple(tuple(n for e in micro for n in rows_of[e]) for micro in rank) for rank in partitioned)
    return batch, Minibatch(0, rows, num_tokens=int(trained_N.sum()), num_sequences=len(block))
