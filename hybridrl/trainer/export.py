"""Hugging Face folders from checkpoints, read from their files: takes no ranks and no Megatron."""

from pathlib import Path

import torch

from hybridrl.errors import RunFolderError
from hybridrl.layout.hf import HFLayout
from hybridrl.reshard import checkpoint as hf
from hybridrl.reshard.rank_files import fill
from hybridrl.reshard.stretches import Stretch, Wanted
from hybridrl.trainer import committed

_MAX_SHARD_BYTES = 5_000_000_000


def export(
    checkpoint: Path,
    folder: Path,
    source_folder: str | Path,
    *,
    part: str = "policy",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a part of a checkpoint as a model folder, which appears whole or not at all.

    Args:
        source_folder: where config.json, the tokenizer and the dtypes come from.
        dtype: of all tensors; None: each as in the source folder.

    Raises:
        RunFolderError: `folder` exists already; nothing was written.
        CheckpointError: the checkpoint is not whole, or of another format.
        ResourceError: the disk is full.
    """
    if folder.exists():
        raise RunFolderError(f"{folder} exists already", where=str(folder), fix="choose another folder")
    record = committed.read(checkpoint)
    committed.refuse_other_format(checkpoint, record)
    layout = committed.layout(record, part)
    target = HFLayout(layout.spec)
    shards, files = target.shards(0), hf.plan_files(target, source_folder, dtype, _MAX_SHARD_BYTES)
    partial = hf.partial_folder(folder)
    hf.create(partial, files)
    for file in files:
        wanted = [
            Wanted(Stretch.whole(shards[name]), {"weights": tensor.flatten()})
            for name, tensor in file.tensors(partial).items()
        ]
        fill(checkpoint, part, layout, wanted)
    hf.finish(partial, folder, source_folder, layout.spec, dtype)
