"""Loads Hugging Face checkpoints into a layout's shards and exports them, slice by slice.

No rank ever holds the whole model. load_hf is not collective. export_hf is collective over the ranks of the
layout, which share a file system.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from hybridrl.errors import ModelError, RunFolderError
from hybridrl.layout.base import Layout
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.shard import Shard
from hybridrl.models.fused_experts import as_stored, parts
from hybridrl.models.spec import ModelSpec, with_one_label
from hybridrl.reshard import hf_files
from hybridrl.reshard.execute import copy
from hybridrl.reshard.finite import refuse_nonfinite
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.table import Table, tabulate


def load_hf(folder: str | Path, layout: Layout, rank: int, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill a rank's tensors from a model folder, cast to their dtypes; padding becomes zero.

    Args:
        tensors: name in `layout` -> tensor of the shape that the layout gives. Other tensors stay unchanged.

    Raises:
        ModelError: a tensor of the checkpoint is missing or has another shape, or a layer has a tensor that
            the model's table does not name; nothing was written. Or a weight of this rank is NaN or infinite.
        ValueError: a tensor of the layout is missing in `tensors` or has another shape.
    """
    checkpoint = hf_files.Checkpoint(folder, parts(layout.spec))
    source = HFLayout(layout.spec)
    _refuse_other_checkpoint(checkpoint, source)
    shards = layout.shards(rank)
    _refuse_other_tensors(shards, tensors, rank)
    table = tabulate(plan(Job(source, (layout,)), target_rank=rank))
    with torch.no_grad():
        for name, shard in shards.items():
            if shard.is_padded:
                tensors[name].zero_()
        sources = [checkpoint[name] for name in table.sources]
        copy(table, sources, [tensors[name] for _, _, name in table.targets])
        named = dict(zip(table.sources, sources, strict=True))
        refuse_nonfinite([tensors[name] for name in shards], named, where=str(folder))


def export_hf(
    folder: str | Path,
    layout: Layout,
    rank: int,
    tensors: Mapping[str, torch.Tensor],
    *,
    source_folder: str | Path,
    barrier: Callable[[], object],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model folder in Hugging Face format. Collective: every rank of the layout calls it.

    Ranks write their own boxes into memory-mapped files of a temporary folder. Rank 0 renames it at the end,
    so `folder` appears complete or not at all.

    Args:
        tensors: this rank's shards, by the names of `layout`.
        source_folder: folder to copy config.json and the tokenizer from.
        barrier: a function that returns when all ranks have called it.
        dtype: dtype of all tensors in the files; None: each tensor keeps its dtype in the source folder.
        max_shard_bytes: largest file, except that a single tensor may be larger.

    Raises:
        RunFolderError: `folder` exists already; raised on every rank, and nothing was written.
        ResourceError: the disk is full; raised on rank 0. The caller must end the others, which wait at the
            barrier.
        ValueError: a tensor of the layout is missing in `tensors` or has another shape.
    """
    folder = Path(folder)
    if folder.exists():
        raise RunFolderError(f"{folder} exists already", where=str(folder), fix="choose another folder")
    _refuse_other_tensors(layout.shards(rank), tensors, rank)
    target = HFLayout(layout.spec)
    files = plan_files(target, source_folder, dtype, max_shard_bytes)
    partial = partial_folder(folder)
    barrier()  # All ranks have seen that `folder` does not exist.
    if rank == 0:
        create(partial, files)
    barrier()  # The files exist.
    table = tabulate(plan(Job(layout, (target,)), source_rank=rank))
    places = {name: tensor for file in files for name, tensor in file.tensors(partial).items()}
    _write(table, [tensors[name] for name in table.sources], [places[name] for _, _, name in table.targets])
    _sync(partial)
    barrier()  # The files are complete.
    if rank == 0:
        finish(partial, folder, source_folder, layout.spec, dtype)
    barrier()  # `folder` exists.


def plan_files(
    target: HFLayout, source_folder: str | Path, dtype: torch.dtype | None, max_shard_bytes: int
) -> list[hf_files.FilePlan]:
    """Plan the weight files of a model folder.

    Args:
        dtype: dtype of all tensors; None: each keeps its dtype in the source folder, or gets the model's if
            it is not there.
    """
    found = parts(target.spec)
    shapes = as_stored({name: shard.shape for name, shard in target.shards(0).items()}, found)
    default = getattr(torch, target.spec.dtype)
    if dtype is None:
        source = hf_files.Checkpoint(source_folder)
        dtypes = {name: (source.dtype(name) if name in source else None) or default for name in shapes}
    else:
        dtypes = dict.fromkeys(shapes, dtype)
    return hf_files.split(shapes, dtypes, max_shard_bytes, found)


def _write(table: Table, sources: Sequence[torch.Tensor], places: Sequence[torch.Tensor]) -> None:
    """Write every box into the mapped files. Parts of tensors are not contiguous there: their boxes are put
    together first."""
    held = [p if p.is_contiguous() else torch.empty(p.shape, dtype=p.dtype) for p in places]
    copy(table, sources, held)
    for _, target, _, _, row, col, rows, cols in table.boxes.tolist():
        if held[target] is not places[target]:
            here = slice(row, row + rows), slice(col, col + cols)
            places[target][here] = held[target][here]


def partial_folder(folder: Path) -> Path:
    """The temporary folder in which a model folder is written before it is renamed."""
    return folder.with_name(f".{folder.name}.partial")


def finish(
    partial: Path, folder: Path, source_folder: str | Path, spec: ModelSpec, dtype: torch.dtype | None
) -> None:
    """Copy the tokenizer and configs next to the weights, then rename the folder to its final name."""
    _copy_beside(Path(source_folder), partial, spec, dtype)
    _sync(partial)
    partial.rename(folder)


def _refuse_other_checkpoint(checkpoint: hf_files.Checkpoint, source: HFLayout) -> None:
    shards = source.shards(0)
    where = str(checkpoint.folder)
    missing = [name for name in shards if name not in checkpoint]
    if missing:
        raise ModelError(
            f"the checkpoint lacks {', '.join(missing[:3])} ({len(missing)} of {len(shards)} tensors)",
            where=where,
            fix="check that config.json belongs to it",
        )
    for name, shard in shards.items():
        if checkpoint.shape(name) != shard.shape:
            raise ModelError(
                f"{name} is {checkpoint.shape(name)} in the checkpoint, {shard.shape} by its config.json",
                where=where,
                fix="check that config.json belongs to it",
            )
    if unread := [name for name in checkpoint if name not in shards and _computes(name, source.spec)]:
        raise ModelError(
            f"the checkpoint has {', '.join(unread[:3])} ({len(unread)} tensors in all), which the model "
            f"table of family {source.spec.family} lacks: without them it would be another model",
            where=where,
            fix="check that config.json belongs to it, or write a table: docs/extend_model.md",
        )


def _computes(name: str, model: ModelSpec) -> bool:
    """Whether a tensor is a weight of one of the model's layers.

    Layers after the last one predict further tokens, inverse frequencies follow from config.json, and other
    parts than layers and a vision tower do not belong to the text model.
    """
    if model.vision is not None and re.match(r"(?:model\.)?visual\.", name):
        return not name.endswith(".inv_freq")
    layer = re.match(r"model\.(?:language_model\.)?layers\.(\d+)\.", name)
    return layer is not None and int(layer[1]) < model.num_layers and not name.endswith(".inv_freq")


def _refuse_other_tensors(
    shards: Mapping[str, Shard], tensors: Mapping[str, torch.Tensor], rank: int
) -> None:
    for name, shard in shards.items():
        if name not in tensors:
            raise ValueError(f"rank {rank} has no tensor {name}")
        if tuple(tensors[name].shape) != shard.shape:
            raise ValueError(
                f"rank {rank}: {name} is {tuple(tensors[name].shape)}, its layout says {shard.shape}"
            )


def create(partial: Path, files: Sequence[hf_files.FilePlan]) -> None:
    """Create the files of a new model folder, full of zeros. What an interrupted writer left is deleted.

    Raises:
        ResourceError: the disk is full.
    """
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    for file in files:
        file.create(partial)
    if len(files) > 1:
        (partial / hf_files.INDEX).write_text(hf_files.index(files))


def _copy_beside(source: Path, target: Path, spec: ModelSpec, dtype: torch.dtype | None) -> None:
    """Copy tokenizer, chat template, generation config and config.json."""
    for path in source.iterdir():
        of_weights = path.name == "config.json" or path.name.endswith(".index.json")
        if path.suffix in (".json", ".txt", ".model", ".jinja") and not of_weights:
            shutil.copyfile(path, target / path.name)
    config = json.loads((source / "config.json").read_text())
    if dtype is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    if spec.value_head:
        config = with_one_label(config)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _sync(folder: Path) -> None:
    """Flush a folder and its files to the disk, also what was written through mapped memory."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
