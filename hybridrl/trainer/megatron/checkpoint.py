"""Checkpoints of model, optimizer, schedule and random state, through Megatron's dist_checkpointing.

Everything is written into FOLDER.tmp and then committed (trainer/committed.py): whole, or refused.
Who waits for whom: rank 0 makes the folder, all wait; all write, rank 0 waits for all and commits, all wait.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.distributed import DistributedDataParallel
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as torch_save

from hybridrl.errors import CheckpointError
from hybridrl.trainer import committed
from hybridrl.trainer.megatron.model import policy_model
from hybridrl.trainer.megatron.optimizer import Optimizer

Trained = tuple[DistributedDataParallel, Optimizer]


def save(
    folder: Path,
    parts: Mapping[str, Trained],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a new checkpoint. *Collective*.

    Args:
        parts: everything that is trained, by name.
        facts: what the commit record is to hold besides; JSON.

    Raises:
        CheckpointError: the folder exists; nothing was written.
    """
    if folder.exists():
        raise CheckpointError(
            f"{folder} exists already", fix="checkpoints are never overwritten: choose another folder"
        )
    unfinished = folder.with_name(folder.name + ".tmp")
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed while it saved
        unfinished.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(_state(parts), str(unfinished), _WriteHere("torch_dist", 1))
    dist.barrier()
    if dist.get_rank() == 0:
        committed.commit(unfinished, folder, {**(facts or {}), "topology": _topology(parts)})
    dist.barrier()


def restore(folder: Path, parts: Mapping[str, Trained]) -> dict[str, Any]:
    """Load a checkpoint into models and optimizers of the same topology. *Collective*.

    Returns:
        The facts of its commit record.

    Raises:
        CheckpointError: it is not whole, or of another topology; nothing was changed.
    """
    facts = check(folder, parts)
    state = dist_checkpointing.load(_state(parts), str(folder))
    for part, (model, optimizer) in parts.items():
        weights = {name.removeprefix(f"{part}."): tensor for name, tensor in state[part]["model"].items()}
        policy_model(model).load_state_dict(weights)
        with torch.no_grad():
            for name, tensor in optimizer.tensors().items():
                tensor.copy_(state[part]["optimizer"][name])
        optimizer.resume(state[part]["num_steps_done"])
    torch.set_rng_state(state["random"]["torch"])
    get_cuda_rng_tracker().set_states(state["random"]["tracker"])
    return facts


def check(folder: Path, parts: Mapping[str, Trained]) -> dict[str, Any]:
    """The facts of its commit record.

    Raises:
        CheckpointError: it is not whole, the model was cut in another way, or something else was trained.
    """
    facts = committed.read(folder)
    made_with = facts["topology"]
    if made_with != _topology(parts):
        raise CheckpointError(
            f"{folder} was made with {made_with}, this run has {_topology(parts)}",
            fix="use actor.parallel and algorithm.estimator as they were",
        )
    return facts


def _topology(parts: Mapping[str, Trained]) -> dict[str, Any]:
    return {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "dp": parallel_state.get_data_parallel_world_size(),
        "trained": sorted(parts),
    }


def _state(parts: Mapping[str, Trained]) -> dict[str, Any]:
    trained = {
        part: {
            "model": policy_model(model).sharded_state_dict(prefix=f"{part}."),
            "optimizer": _own(part, optimizer.tensors()),
            "num_steps_done": optimizer.num_steps_done,
        }
        for part, (model, optimizer) in parts.items()
    }
    return {**trained, "random": _random_state()}


def _own(part: str, tensors: dict[str, torch.Tensor]) -> dict[str, ShardedTensor]:
    """Each rank's under keys of its own.

    Megatron's formats for this (0.16) know no padding between the buckets of a gradient buffer, which tied
    models have under pipeline parallelism: one loses numbers there, the other cannot be written.
    """
    place = f"{part}.optimizer.{dist.get_rank()}"
    return {n: ShardedTensor.from_rank_offsets(f"{place}.{n}", t.detach()) for n, t in tensors.items()}


def _random_state() -> ShardedObject:
    """Every rank has its own."""
    state = {"torch": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    return ShardedObject("random", state, (dist.get_world_size(),), (dist.get_rank(),))


class _WriteHere(TorchDistSaveShardedStrategy):
    """Megatron's file format, written by this process: its own writer forks, which is not safe beside the
    threads of Ray and gloo."""

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path) -> None:
        sharded, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        planner = MCoreSavePlanner(
            dedup_replicated_tensors=not self.keep_only_main_replica, flatten_state_dict=False
        )
        torch_save(
            mcore_to_pyt_state_dict(sharded, False),
            storage_writer=FileSystemWriter(checkpoint_dir),
            planner=planner,
        )
