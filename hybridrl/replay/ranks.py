"""The policy update of a bundle on one trainer rank, in the processes of verify/ranks.py."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from hybridrl.batch import RankBatch
from hybridrl.errors import NonFiniteError
from hybridrl.trainer.bundles import STATE, Found
from hybridrl.trainer.policy import Policy
from hybridrl.trainer.setup import PolicySetup

OLD_LOGP = "old_logp"
"""Column of the trainer's log-probabilities before the update."""


def take_again(
    rank: int,
    rendezvous: str,
    setup: PolicySetup,
    folder: Path,
    batch: RankBatch,
    arrived: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    indices: range,
) -> Found:
    """Take optimizer steps from the state of a bundle on.

    Args:
        setup: setup of rank 0.
        folder: folder of the bundle.
        arrived: columns that dedicated ranks computed, [V].
        given: columns that replace those that are computed here, [V]; none: all are computed.
        indices: minibatches whose steps are taken; a step that is not finite is the last one.

    Raises:
        CheckpointError: the state of the bundle is not that of such a model.
    """
    policy = Policy(replace(setup, rank=rank, rendezvous=rendezvous))
    try:
        policy.restore(folder / STATE)
        loaded = policy.measure(batch.with_blocks(batch.blocks))
        loaded |= policy.complete(policy.at_tokens(arrived))
        policy.give(given)
        steps = steps_of(policy, indices)
        of_each: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_each, policy.recorded())
    finally:
        policy.close()
    columns = next((found for found, _ in of_each if found), {})
    return Found(loaded, tuple(steps), columns, tuple(weights for _, weights in of_each))


def log_probabilities(
    rank: int, rendezvous: str, setup: PolicySetup, state: Path, batch: RankBatch
) -> np.ndarray | None:
    """Log-probabilities of the trained tokens of a batch by the weights of a checkpoint or a bundle's state,
    [V]; None on ranks that have none.

    Args:
        setup: setup of rank 0.

    Raises:
        CheckpointError: the state is not that of such a model.
    """
    policy = Policy(replace(setup, rank=rank, rendezvous=rendezvous))
    try:
        policy.restore(state)
        policy.measure(batch.with_blocks(batch.blocks))
        found, _ = policy.recorded()
    finally:
        policy.close()
    return found.get(OLD_LOGP)


def steps_of(policy: Policy, indices: range) -> list[Mapping[str, Any]]:
    """Take optimizer steps; what each gave, as a bundle keeps it. One that is not finite is the last."""
    steps: list[Mapping[str, Any]] = []
    for index in indices:
        try:
            report = policy.step(index)
        except NonFiniteError as error:
            return [*steps, {"error": error.what}]
        numbers = {name: getattr(report, name) for name in ("loss", "grad_norm", "lr")}
        steps.append({**numbers, "metrics": dict(report.metrics)})
    return steps
