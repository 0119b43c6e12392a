"""Exports a checkpoint as a Hugging Face folder, straight from its files, without ranks or a backend."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hybridrl.errors import RunFolderError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Layout
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.shard import Shard
from hybridrl.models.fused_experts import parts
from hybridrl.reshard import checkpoint as hf
from hybridrl.reshard.hf_files import Checkpoint
from hybridrl.reshard.rank_files import fill_whole
from hybridrl.trainer import adapters, committed
from hybridrl.trainer.adapters import Factors

_MAX_SHARD_BYTES = 5_000_000_000


def export(
    checkpoint: Path,
    folder: Path,
    source_folder: str | Path,
    *,
    part: str = "policy",
    dtype: torch.dtype | None = None,
    verified: bool = False,
    advance: Callable[[float, float | None], None] | None = None,
) -> None:
    """Write a part of a checkpoint as a model folder, which appears complete or not at all.

    Args:
        source_folder: folder from which config.json, the tokenizer and the dtypes are taken.
        dtype: dtype of all tensors; None keeps the dtype that each tensor has in the source folder.
        verified: the caller has checked or just written every file of the checkpoint.
        advance: gets the number of files that are written, and of all.

    Raises:
        RunFolderError: `folder` exists already; nothing was written.
        CheckpointError: the checkpoint is incomplete, damaged, or of another format; nothing was written.
        ResourceError: the disk is full.
    """
    if folder.exists():
        raise RunFolderError(f"{folder} exists already", where=str(folder), fix="choose another folder")
    record = committed.read(checkpoint) if verified else committed.verify(checkpoint)
    committed.refuse_other_format(checkpoint, record)
    layout = committed.layout(record, part)
    target = HFLayout(layout.spec)
    shards, files = target.shards(0), hf.plan_files(target, source_folder, dtype, _MAX_SHARD_BYTES)
    partial = hf.partial_folder(folder)
    hf.create(partial, files)
    has_factors = isinstance(layout, AdapterLayout)
    factors = adapters.read(checkpoint, layout, part=part) if has_factors else {}
    for done, file in enumerate(files):
        if advance:
            advance(done, len(files))
        if has_factors:
            _merge(file.tensors(partial), Checkpoint(source_folder, parts(layout.spec)), factors)
        else:
            _fill(checkpoint, part, layout, shards, file.tensors(partial))
    hf.finish(partial, folder, source_folder, layout.spec, dtype)


def _fill(
    checkpoint: Path, part: str, layout: Layout, shards: Mapping[str, Shard], places: Mapping[str, Tensor]
) -> None:
    """Fill tensors with the weights of a checkpoint. Parts of tensors are not contiguous in the file."""
    whole = {n: p if p.is_contiguous() else torch.empty(p.shape, dtype=p.dtype) for n, p in places.items()}
    fill_whole(checkpoint, part, layout, shards, whole)
    for name, place in places.items():
        if whole[name] is not place:
            place.copy_(whole[name])


def _merge(tensors: Mapping[str, Tensor], base: Checkpoint, factors: Mapping[str, Factors]) -> None:
    """Fill tensors with the weights of the base model, adapters merged in."""
    for name, tensor in tensors.items():
        weight = base[name]
        tensor.copy_(weight.float() + factors[name].update() if name in factors else weight)
