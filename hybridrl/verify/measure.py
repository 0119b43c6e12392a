"""Computes loss and gradients of the recorded batch on a row's parallel layout, in the processes of ranks.py.

After the columns are computed and before the gradients are, all weights are multiplied by a known factor.
So ratios are not 1, some tokens are clipped, and divergences from the reference are not 0.
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
"""Factor of all weights; the product is the same on any shard."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one row computed, with one entry per minibatch."""

    loss: tuple[float, ...]
    grad_norm: tuple[float, ...]
    gradients: tuple[Path, ...]
    """Folders in Hugging Face format, fp32, with gradients in place of weights."""


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
    """Compute loss and gradients of one row.

    Args:
        setup: setup of rank 0.
        out: existing folder that all ranks can write to.

    Raises:
        HybridRLError: the trainer does not support the row; every rank raises it.
    """
    policy = Policy(replace(setup, rank=rank, rendezvous=rendezvous))
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
