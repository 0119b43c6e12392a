"""Safetensors files as memory: tensors of a model folder, and new files that many processes fill at once.

The format (huggingface/safetensors): the header's length in 8 bytes, little-endian; a JSON header padded with
spaces to 8 bytes; the tensors end to end at the offsets that the header gives.
"""

import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hybridrl.errors import ModelError, ResourceError

INDEX = "model.safetensors.index.json"

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Checkpoint:
    """The tensors of a model folder, memory-mapped: reading a slice reads that slice."""

    def __init__(self, folder: str | Path) -> None:
        """
        Raises:
            ModelError: the folder has no safetensors, or its index names a file that is not there.
        """
        self.folder = Path(folder)
        self._files: dict[Path, safe_open] = {}
        self._where = self._index()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor on the mapped file; do not write to it."""
        return self._open(self._where[name]).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open(self._where[name]).get_slice(name).get_shape())

    def _index(self) -> dict[str, Path]:
        index = self.folder / INDEX
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())["weight_map"]
            except (json.JSONDecodeError, KeyError) as error:
                raise ModelError(
                    f"cannot read {INDEX}: {error}", where=str(index), fix="download it again"
                ) from error
            return {name: self.folder / file for name, file in weight_map.items()}
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"no safetensors in {self.folder}",
                where=str(self.folder),
                fix="save the model with save_pretrained()",
            )
        return {name: file for file in files for name in self._open(file).keys()}

    def _open(self, path: Path) -> safe_open:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ModelError(
                    f"cannot read {path.name}: {error}", where=str(path), fix="download it again"
                ) from error
        return self._files[path]


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file that does not exist yet."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype

    @property
    def header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in self.shapes.items():
            end = offset + prod(shape) * self.dtype.itemsize
            entries[name] = {"dtype": _NAMES[self.dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(prod(shape) for shape in self.shapes.values()) * self.dtype.itemsize

    def create(self, folder: Path) -> None:
        """Write the header and reserve the rest, which reads as zeros.

        Raises:
            ResourceError: the disk is full. Found out later, in mapped memory, it would kill the process.
        """
        size = len(self.header) + self.bytes
        with open(folder / self.name, "xb") as file:
            file.write(self.header)
            file.flush()
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise ResourceError(
                    f"no room for {size} bytes: {error.strerror}",
                    where=str(folder / self.name),
                    fix="free disk space",
                ) from error

    def tensors(self, folder: Path) -> dict[str, torch.Tensor]:
        """Tensors on the file: what is written to them is in it, for every process that maps it."""
        with open(folder / self.name, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        found, offset = {}, len(self.header)
        for name, shape in self.shapes.items():
            flat = torch.frombuffer(memory, dtype=self.dtype, count=prod(shape), offset=offset)
            found[name] = flat.view(shape)
            offset += prod(shape) * self.dtype.itemsize
        return found


def split(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_bytes: int) -> list[FilePlan]:
    """Files of at most `max_bytes` of tensors, in the given order; a tensor is never cut."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = max_bytes
    for name, shape in shapes.items():
        need = prod(shape) * dtype.itemsize
        if need > room and groups[-1]:
            groups.append({})
            room = max_bytes
        groups[-1][name] = shape
        room -= need
    if len(groups) == 1:
        return [FilePlan("model.safetensors", groups[0], dtype)]
    count = len(groups)
    return [
        FilePlan(f"model-{i:05d}-of-{count:05d}.safetensors", group, dtype)
        for i, group in enumerate(groups, 1)
    ]


def index(files: Sequence[FilePlan]) -> str:
    """Text of the index file over several files."""
    weight_map = {name: file.name for file in files for name in file.shapes}
    total = sum(file.bytes for file in files)
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2
    )
