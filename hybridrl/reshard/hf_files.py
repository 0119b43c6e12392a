"""Memory-mapped safetensors files: tensors of a model folder, and new files that many processes fill at once.

The format (huggingface/safetensors) is the header's length in 8 little-endian bytes, a JSON header padded
with spaces to 8 bytes, and the tensors end to end at the offsets in the header.
"""

import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hybridrl.errors import ModelError, ResourceError
from hybridrl.models.fused_experts import Part

INDEX = "model.safetensors.index.json"

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class Checkpoint:
    """The memory-mapped tensors of a model folder. Reading a slice reads only that slice from disk.

    A part of a tensor has a name like a tensor and stands in its place.
    """

    def __init__(self, folder: str | Path, parts: Mapping[str, Part] | None = None) -> None:
        """
        Args:
            parts: what fused_experts.parts returns of the folder's model.

        Raises:
            ModelError: the folder has no safetensors files, or its index cannot be read.
        """
        self.folder, self._parts = Path(folder), parts or {}
        self._files: dict[Path, safe_open] = {}
        self._where = self._index()

    def __contains__(self, name: str) -> bool:
        return self._tensor(name) in self._where

    def __iter__(self) -> Iterator[str]:
        """The names of the tensors."""
        there = {part.tensor for part in self._parts.values()}
        yield from (name for name in self._where if name not in there)
        yield from (name for name, part in self._parts.items() if part.tensor in self._where)

    def __getitem__(self, name: str) -> torch.Tensor:
        """A tensor that views the mapped file, or a copy of a part. Do not write to it."""
        part, tensor = self._parts.get(name), self._tensor(name)
        whole = self._open(self._where[tensor]).get_tensor(tensor)
        return whole if part is None else part.of(whole).contiguous()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor or of a part; if the tensor of a part has another shape than it may, that."""
        part, tensor = self._parts.get(name), self._tensor(name)
        whole = tuple(self._open(self._where[tensor]).get_slice(tensor).get_shape())
        return whole if part is None or not part.fits(whole) else (part.stop - part.start, part.shape[1])

    def dtype(self, name: str) -> torch.dtype | None:
        """Dtype of a tensor; None if it is not one that models are trained in."""
        tensor = self._tensor(name)
        return _DTYPES.get(self._open(self._where[tensor]).get_slice(tensor).get_dtype())

    def _tensor(self, name: str) -> str:
        """Name of the tensor that has a part, or is one itself."""
        return self._parts[name].tensor if name in self._parts else name

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
    """The contents of a safetensors file before it exists."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    """Tensor name -> dtype."""

    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    parts: Mapping[str, Part] = field(default_factory=dict)
    """Names of the parts of its tensors."""

    @property
    def header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": dict(self.metadata)}
        for name, (start, stop) in self.offsets.items():
            shape, dtype = list(self.shapes[name]), _NAMES[self.dtypes[name]]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def offsets(self) -> dict[str, tuple[int, int]]:
        """(start, stop) of each tensor after the header. Tensors with the widest elements come first, so all
        are aligned."""
        names = sorted(self.shapes, key=lambda name: -self.dtypes[name].itemsize)
        edges = list(accumulate((self._size(name) for name in names), initial=0))
        return dict(zip(names, pairwise(edges), strict=True))

    @property
    def bytes(self) -> int:
        """Bytes of its tensors, without the header."""
        return sum(self._size(name) for name in self.shapes)

    def _size(self, name: str) -> int:
        return prod(self.shapes[name]) * self.dtypes[name].itemsize

    def create(self, folder: Path) -> None:
        """Write the header and reserve the rest, which reads as zeros.

        Raises:
                ResourceError: the disk is full.
        """
        # Without the reservation, a full disk would kill the process when it writes to mapped memory.
        size = len(self.header) + self.bytes
        with open(folder / self.name, "xb") as file:
            file.write(self.header)
            file.flush()
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise _no_room(folder / self.name, size, error) from error

    def tensors(self, folder: Path) -> dict[str, torch.Tensor]:
        """Tensors that view the mapped file: every process that maps it sees what is written to them. Instead
        of a tensor with parts, its parts are there."""
        with open(folder / self.name, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        found, begin = {}, len(self.header)
        for name, (start, _) in self.offsets.items():
            shape, dtype = self.shapes[name], self.dtypes[name]
            flat = torch.frombuffer(memory, dtype=dtype, count=prod(shape), offset=begin + start)
            found[name] = flat.view(shape)
        views = {name: part.of(found[part.tensor]) for name, part in self.parts.items()}
        divided = {part.tensor for part in self.parts.values()}
        return {name: tensor for name, tensor in found.items() if name not in divided} | views

    def write(self, folder: Path, tensors: Mapping[str, torch.Tensor]) -> int:
        """Write the whole file and flush it to the disk; returns the CRC-32 of its bytes.

        Args:
            tensors: contiguous, in host memory, with shapes and dtypes of this plan.

        Raises:
            ResourceError: the disk is full.
        """
        checksum = 0
        with open(folder / self.name, "xb") as file:
            try:
                for part in (self.header, *(_bytes(tensors[name]) for name in self.offsets)):
                    file.write(part)
                    checksum = zlib.crc32(part, checksum)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise _no_room(folder / self.name, len(self.header) + self.bytes, error) from error
        return checksum


def plan_of(name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> FilePlan:
    """The plan of a file that holds these tensors."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return FilePlan(name, shapes, {key: tensor.dtype for key, tensor in tensors.items()}, metadata)


_BLOCK_BYTES = 1 << 22
"""Bytes per read for a checksum. They stay in the core's cache until they are summed."""


def checksum(path: Path, *, from_disk: bool = False) -> int:
    """CRC-32 of a file, read block by block. It releases the GIL.

    Args:
        from_disk: read from the disk instead of the page cache. The file must have been flushed.
    """
    found, block = 0, memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        if from_disk:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while size := file.readinto(block):
            found = zlib.crc32(block[:size], found)
    return found


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data


def _no_room(path: Path, size: int, error: OSError) -> ResourceError:
    return ResourceError(
        f"no room for {size} bytes: {error.strerror}", where=str(path), fix="free disk space"
    )


def split(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    max_bytes: int,
    parts: Mapping[str, Part] | None = None,
) -> list[FilePlan]:
    """Files with at most `max_bytes` of tensors, in the given order. A tensor is never split.

    Args:
        parts: names of parts of these tensors.
    """
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = max_bytes
    for name, shape in shapes.items():
        need = prod(shape) * dtypes[name].itemsize
        if need > room and groups[-1]:
            groups.append({})
            room = max_bytes
        groups[-1][name] = shape
        room -= need
    count = len(groups)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    return [
        FilePlan(
            name,
            group,
            {key: dtypes[key] for key in group},
            parts={key: part for key, part in (parts or {}).items() if part.tensor in group},
        )
        for name, group in zip(names if count > 1 else ["model.safetensors"], groups, strict=True)
    ]


def index(files: Sequence[FilePlan]) -> str:
    """Text of the index file over several files."""
    weight_map = {name: file.name for file in files for name in file.shapes}
    total = sum(file.bytes for file in files)
    return json.dumps(
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2
    )
