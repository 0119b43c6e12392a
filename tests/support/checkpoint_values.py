"""Checkpoints of a small model, as the trainer's ranks write them, and ways in which a disk spoils one."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from layout_values import held_by
from model_values import tiny

from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.reshard.rank_files import Kept, collect, write
from hybridrl.trainer import committed

LAYOUT = MegatronLayout(tiny(), tp=2)
FILE = "policy.00001.safetensors"


def write_checkpoint(
    folder: Path, facts: Mapping[str, Any] | None = None, layout: MegatronLayout = LAYOUT
) -> None:
    """By the ranks of a layout, one after the other."""
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    written = set()
    for rank, tensors in enumerate(_held(layout)):
        shards = layout.shards(rank)
        own = {name: tensor for name, tensor in tensors.items() if shards[name] not in written}
        written |= set(shards.values())
        kept = [Kept(name, 0, {"weights": tensor.flatten()}) for name, tensor in own.items()]
        write(unfinished, "policy", rank, kept, {})
    files = collect(unfinished, "policy", layout.world_size)
    assert files is not None
    parts = {"policy": {"layout": committed.layout_record(layout), "progress": {}}}
    committed.commit(unfinished, folder, {"parts": parts, **(facts or {})}, files)


def _held(layout: MegatronLayout) -> list[dict[str, torch.Tensor]]:
    """By rank: random weights, or adapters of ones."""
    if not isinstance(layout, AdapterLayout):
        return held_by(layout)
    ranks = map(layout.shards, range(layout.world_size))
    return [{name: torch.ones(shard.shape) for name, shard in shards.items()} for shards in ranks]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped byte": (flip_a_byte, "is damaged: its checksum"),
    "zeroed": (zero, "is damaged: its checksum"),
    "truncated": (truncate, "were written"),
    "missing": (Path.unlink, "is missing"),
}
"""Ways to spoil a file, and what is said about it."""
