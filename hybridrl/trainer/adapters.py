"""LoRA adapters of a checkpoint, read straight from its files: no ranks and no backend are needed.

PEFT has one adapter for each of q, k, v, gate and up. Our adapter of a fused layer has one A for all its
parts, so it maps exactly to PEFT adapters that share that A. The reverse does not hold.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from hybridrl.errors import CheckpointError, RunFolderError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import instance
from hybridrl.layout.runs import whole
from hybridrl.layout.shard import Shard
from hybridrl.reshard.rank_files import fill_whole
from hybridrl.trainer import committed

_PREFIX = "base_model.model."
"""Prefix of every tensor name in a PEFT file."""


class Factors(NamedTuple):
    """The low-rank factors of one weight [O, I] of a model folder, fp32."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float

    def update(self) -> Tensor:
        """What is added to the tensor, [O, I]."""
        return self.scale * (self.b_OR @ self.a_RI)


def read(checkpoint: Path, layout: AdapterLayout, *, part: str = "policy") -> dict[str, Factors]:
    """All adapters of a part, by the Hugging Face name of the weight that each adds to.

    Args:
        layout: layout of the ranks that wrote the part.

    Raises:
        CheckpointError: some adapters are in no file.
    """
    tensors = {name: torch.zeros(shape) for name, shape in _shapes(layout)}
    shards = {n: Shard(n, tuple(t.shape), *(whole(size) for size in t.shape)) for n, t in tensors.items()}
    fill_whole(checkpoint, part, layout, shards, tensors)
    return dict(_by_weight(layout, tensors))


def write_peft(
    checkpoint: Path, folder: Path, base: str, *, part: str = "policy", verified: bool = False
) -> None:
    """Write the adapters of a checkpoint in PEFT's format, fp32.

    Args:
        base: name or folder of the model that they belong to.
        verified: the caller has checked every file of the checkpoint already.

    Raises:
        RunFolderError: `folder` exists already; nothing was written.
        CheckpointError: the checkpoint is incomplete, damaged, of another format, or holds no adapters;
            nothing was written.
    """
    if folder.exists():
        raise RunFolderError(f"{folder} exists already", where=str(folder), fix="choose another folder")
    record = committed.read(checkpoint) if verified else committed.verify(checkpoint)
    committed.refuse_other_format(checkpoint, record)
    layout = committed.layout(record, part)
    if not isinstance(layout, AdapterLayout):
        raise CheckpointError(f"{checkpoint} holds no adapters", fix="train with actor.lora")
    found = read(checkpoint, layout, part=part)
    tensors = {}
    for name, (a_RI, b_OR, _) in found.items():
        stem = _PREFIX + name.removesuffix(".weight")
        tensors |= {f"{stem}.lora_A.weight": a_RI.clone(), f"{stem}.lora_B.weight": b_OR.contiguous()}
    unfinished = folder.with_name(folder.name + ".tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    save_file(tensors, unfinished / "adapter_model.safetensors", {"format": "pt"})
    (unfinished / "adapter_config.json").write_text(json.dumps(_peft_config(layout, found, base), indent=1))
    unfinished.rename(folder)


def _peft_config(layout: AdapterLayout, found: dict[str, Factors], base: str) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": layout.rank,
        "lora_alpha": layout.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.split(".")[-2] for name in found}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _shapes(layout: AdapterLayout) -> Iterator[tuple[str, tuple[int, int]]]:
    for linear in layout.linears:
        for factor in layout.factors(linear):
            assert factor.cols is not None, "both factors are matrices"
            for layer in factor.layers:
                yield instance(factor.name, layer), (factor.num_rows, factor.cols)


def _by_weight(layout: AdapterLayout, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Factors]]:
    for linear in layout.linears:
        a, b = layout.factors(linear)
        for layer in linear.layers:
            a_RI, b_OR = (tensors[instance(factor.name, layer)] for factor in (a, b))
            for name, part_OR in zip(linear.row.hf, b_OR.split(linear.blocks), strict=True):
                yield instance(name, layer), Factors(a_RI, part_OR, layout.scale)
