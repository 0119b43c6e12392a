"""What a trainer rank does for one row: loss and gradients of the recorded batch, under the row's cut.

Runs in processes of ranks.py. Between the batch's columns and its gradients the weights move by a known
factor: ratios are then not 1, some tokens are clipped, and divergences from the reference are not 0.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from hybridrl.batch import TokenBlock
from hybridrl.reshard.checkpoint import export_hf
from hybridrl.trainer.policy import Policy
from hybridrl.trainer.setup import PolicySetup
from hybridrl.verify.layouts import Row
from hybridrl.verify.recorded import RecordedBatch

MOVED = 1.05
"""Every weight is multiplied by it; exact on any shard."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one row."""

    loss: tuple[float, ...]
    """Of each minibatch."""

    grad_norm: tuple[float, ...]
    gradients: tuple[Path, ...]
    """Of each minibatch: a folder in Hugging Face format, fp32, with gradients in the place of weights."""


def policy_logp(rank: int, rendezvous: str, setup: PolicySetup, block: TokenBlock) -> np.ndarray:
    """Log-probabilities of a block under the model folder's weights, float32 [T]."""
    policy = Policy(replace(setup, rank=rank, rendezvous=rendezvous))
    try:
        return policy.logp(block)
    finally:
        policy.close()


def measure(
    rank: int, rendezvous: str, setup: PolicySetup, row: Row, recorded: RecordedBatch, out: Path
) -> Measured:
    """
    Args:
        setup: of rank 0, without the row's cut.
        out: a folder that exists, on the file system of all ranks.

    Raises:
        HybridRLError: the trainer cannot build the row, on every rank.
    """
    actor = setup.actor.model_copy(update={"parallel": row.parallel, "recompute": row.recompute})
    own = replace(setup, rank=rank, rendezvous=rendezvous, parallel=row.parallel, actor=actor)
    policy = Policy(own)
    try:
        batch = recorded.for_ranks(row)
        policy.load(batch)
        for tensor in policy.tensors().values():
            tensor.mul_(MOVED)
        found = [_minibatch(policy, m.index, setup, rank, out) for m in batch.minibatches]
    finally:
        policy.close()
    loss, grad_norm, folders = zip(*found, strict=True)
    return Measured(loss, grad_norm, folders)


def _minibatch(
    policy: Policy, index: int, setup: PolicySetup, rank: int, out: Path
) -> tuple[float, float, Path]:
    loss, grad_norm, gradients = policy.gradients(index)
    untrained = {name: torch.zeros_like(t) for name, t in policy.tensors().items() if name not in gradients}
    folder = out / str(index)
    export_hf(
        folder,
        policy.layout,
        rank,
        gradients | untrained,
        source_folder=setup.model_folder,
        barrier=dist.barrier,
        dtype=torch.float32,
    )
    return loss, grad_norm, folder
