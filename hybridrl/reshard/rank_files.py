"""Checkpoint files: each rank writes one with its flat ranges, and ranks of any layout read what they need.

A file PART.RANK.safetensors has flat tensors QUANTITY/NAME, with NAME as in the layout of the writers. A file
PART.RANK.done next to it marks that it is complete and on the disk.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from hybridrl.errors import CheckpointError
from hybridrl.layout.base import Layout
from hybridrl.layout.shard import Shard
from hybridrl.reshard import hf_files
from hybridrl.reshard.flat_ranges import Filling, FlatRange, Wanted

_STARTS = "starts"
"""Metadata key of a file. The value maps a tensor name to the first element of its flat range."""


_FAILED = ".failed"


@dataclass(frozen=True, slots=True)
class Kept:
    """The flat range of a tensor that a rank keeps."""

    name: str
    """Tensor name in the layout."""

    start: int
    tensors: Mapping[str, torch.Tensor]
    """Quantity -> the elements of the range, flat; all have the same length."""

    def flat_range(self, shard: Shard) -> FlatRange:
        """The range as part of a shard.

        Args:
            shard: the shard that the rank holds under this name.
        """
        return FlatRange(shard, self.start, self.start + next(iter(self.tensors.values())).numel())


def file_name(part: str, rank: int) -> str:
    return f"{part}.{rank:05d}.safetensors"


def write(
    folder: Path, part: str, rank: int, kept: Sequence[Kept], beside: Mapping[str, torch.Tensor]
) -> None:
    """Write a rank's file, read it back from the disk, then write its mark. It is not collective.

    Args:
        kept: flat ranges in host memory. All ranks together have each element of the model exactly once.
        beside: name -> additional tensor that only the same rank of the same layout reads.

    Raises:
        ResourceError: the disk is full.
        CheckpointError: the file does not read back as it was written; it gets no mark.
    """
    tensors = {f"{quantity}/{k.name}": t for k in kept for quantity, t in k.tensors.items()}
    starts = json.dumps({k.name: k.start for k in kept})
    plan = hf_files.plan_of(file_name(part, rank), {**tensors, **beside}, {_STARTS: starts})
    checksum = plan.write(folder, {**tensors, **beside})
    _refuse_otherwise(folder / plan.name, checksum)
    mark, unfinished = _mark(folder, part, rank), folder / f"{part}.{rank:05d}.mark"
    unfinished.write_text(json.dumps(checksum))
    unfinished.rename(mark)


@contextlib.contextmanager
def failing_for_all(folder: Path, rank: int) -> Iterator[None]:
    """A context in which an error of a rank is left for whoever waits in `collect`, as far as the disk lets
    it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            (folder / f"{rank:05d}{_FAILED}").touch()
        raise


def collect(folder: Path, part: str, world_size: int) -> dict[str, int] | None:
    """File -> CRC-32 of all files of a part; their marks are then deleted. None: some rank still writes.

    Raises:
        CheckpointError: a rank has failed to write its file, or the folder is gone.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is gone", where="it was there when the ranks began to write")
    if failed := sorted(folder.glob(f"*{_FAILED}")):
        raise CheckpointError(
            f"rank {int(failed[0].name.removesuffix(_FAILED))} could not write its file",
            where=str(folder),
            fix="its own error says why",
        )
    marks = [_mark(folder, part, rank) for rank in range(world_size)]
    if not all(mark.is_file() for mark in marks):
        return None
    found = {file_name(part, rank): json.loads(mark.read_text()) for rank, mark in enumerate(marks)}
    for mark in marks:
        mark.unlink()
    return found


def fill(folder: Path, part: str, layout: Layout, wanted: Iterable[Wanted]) -> None:
    """Fill flat ranges of any layout from the files.

    Args:
        layout: layout of the ranks that wrote the part.

    Raises:
        CheckpointError: a wanted element is in no file. The others were read.
    """
    filling = Filling(wanted)
    with torch.no_grad():
        for rank, shards in _holders(layout, filling).items():
            with safe_open(folder / file_name(part, rank), framework="pt") as file:
                starts = json.loads(file.metadata()[_STARTS])
                for name in shards.keys() & starts.keys():
                    quantities = filling.quantities(shards[name].param)
                    tensors = {quantity: file.get_tensor(f"{quantity}/{name}") for quantity in quantities}
                    filling.take(Kept(name, starts[name], tensors).flat_range(shards[name]), tensors)
    if missing := filling.missing():
        raise CheckpointError(
            f"{folder} lacks some of {', '.join(missing[:3])} ({len(missing)} parameters) of {part}",
            fix="resume from an earlier checkpoint",
        )


def fill_whole(
    folder: Path,
    part: str,
    layout: Layout,
    shards: Mapping[str, Shard],
    tensors: Mapping[str, torch.Tensor],
    quantity: str = "weights",
) -> None:
    """Fill whole tensors of one quantity as `fill` does; `tensors` has the names of `shards`."""
    flat = {name: {quantity: tensor.flatten()} for name, tensor in tensors.items()}
    fill(folder, part, layout, [Wanted(FlatRange.whole(shards[name]), want) for name, want in flat.items()])


def read_beside(folder: Path, part: str, rank: int, prefix: str) -> dict[str, torch.Tensor]:
    """The additional tensors of a rank whose names start with `prefix`, under names without the prefix."""
    with safe_open(folder / file_name(part, rank), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def _refuse_otherwise(path: Path, written: int) -> None:
    # Older checkpoints are deleted once this one is complete, so its bytes must be on the disk.
    if hf_files.checksum(path, from_disk=True) != written:
        raise CheckpointError(
            f"{path} is damaged: it does not read back as it was written",
            where="the disk or its file system fails",
            fix="set run.folder to another disk",
        )


def _holders(layout: Layout, filling: Filling) -> dict[int, dict[str, Shard]]:
    """Rank -> the tensors that may hold part of what is wanted."""
    found: dict[int, dict[str, Shard]] = {}
    for held in layout.holdings:
        for layer in held.layers:
            for name, shard in held.shards(layer):
                if filling.wants(shard):
                    for rank in held.ranks:
                        found.setdefault(rank, {})[name] = shard
    return dict(sorted(found.items()))


def _mark(folder: Path, part: str, rank: int) -> Path:
    return folder / f"{part}.{rank:05d}.done"
