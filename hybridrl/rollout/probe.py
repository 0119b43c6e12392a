"""Finds out where an engine's own loader puts every element of a checkpoint, and compares that with a layout.

The loader gets Hugging Face tensors whose values are tags, the coordinates of each element: tensor, row and
column. One pass writes one digit of one coordinate, small enough to be exact in the engine's narrowest dtype.
All tensors are treated as matrices: a vector has one column, and all dimensions but the last become rows.
Scales of weights in block FP8 are tagged like tensors of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Layout, instance
from hybridrl.layout.blocks import BLOCK, num_blocks
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.runs import Run, overlap
from hybridrl.layout.shard import Shard

Load = Callable[[Iterator[tuple[str, torch.Tensor]]], object]
"""The engine's loader, which takes (Hugging Face name, tensor) pairs like those of a checkpoint."""

Read = Callable[[], Mapping[str, torch.Tensor]]
"""Returns the engine's present tensors, by its own names."""

_BASE = {torch.float8_e4m3fn: 1 << 4, torch.bfloat16: 1 << 8, torch.float16: 1 << 11, torch.float32: 1 << 24}
"""Base of the digits: all smaller integers are exact in the dtype."""

_NOTHING = -1
"""Value of tensors before the loader runs, and the coordinate of a value that is not a tag."""

_FIX = "rollout.weight_path=engine_api sends weights through the engine's loader"

TENSOR, ROW, COLUMN = range(3)
"""Coordinates of an element of the checkpoint, in this order."""


class Pass(NamedTuple):
    """One run of the loader, with the digits of one coordinate that have the place value `unit`."""

    coordinate: int
    unit: int
    base: int

    def digits(self, coordinates: torch.Tensor) -> torch.Tensor:
        return coordinates // self.unit % self.base


@dataclass(frozen=True)
class Tags:
    """Tensors of a checkpoint whose values are coordinates."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shapes by Hugging Face name; the coordinate of a tensor is its index in this mapping."""

    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    """Dtypes of those tensors that are quantised in a checkpoint, and of their scales."""

    def passes(self, base: int) -> list[Pass]:
        matrices = [_matrix(shape) for shape in self.shapes.values()]
        counts = (len(matrices), max(rows for rows, _ in matrices), max(cols for _, cols in matrices))
        return [Pass(axis, unit, base) for axis, count in enumerate(counts) for unit in _units(count, base)]

    def tensors(
        self, step: Pass, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Tensors for the loader in a pass, made one at a time."""
        for index, (name, shape) in enumerate(self.shapes.items()):
            rows, cols = _matrix(shape)
            coordinates = {
                TENSOR: torch.full((1, 1), index, device=device),
                ROW: torch.arange(rows, device=device)[:, None],
                COLUMN: torch.arange(cols, device=device)[None],
            }[step.coordinate]
            digits = step.digits(coordinates).to(self.dtypes.get(name, dtype))
            yield name, digits.expand(rows, cols).contiguous().view(shape)


class Declared(NamedTuple):
    """Coordinates that a layout declares for an engine tensor, per row and column; _NOTHING for padding."""

    tensor: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor

    def first_difference(self, step: Pass, values: torch.Tensor) -> tuple[int, int] | None:
        """(row, column) of the first element with a wrong digit; padding is not checked."""
        covered = (self.tensor != _NOTHING)[:, None] & (self.column != _NOTHING)
        digits = step.digits(self[step.coordinate]).to(values)
        wrong = (values != (digits if step.coordinate == COLUMN else digits[:, None])) & covered.to(
            values.device
        )
        rows = wrong.any(1).nonzero()
        if not len(rows):
            return None
        row = int(rows[0])
        return row, int(wrong[row].nonzero()[0])

    def down(self, column: int) -> np.ndarray:
        """Coordinates of the elements of a column, [rows, 3]."""
        return torch.stack([self.tensor, self.row, self.column[column].expand_as(self.row)], 1).numpy()

    def along(self, row: int) -> np.ndarray:
        """Coordinates of the elements of a row, [columns, 3]."""
        fixed = (part[row].expand_as(self.column) for part in (self.tensor, self.row))
        return torch.stack([*fixed, self.column], 1).numpy()


class LoaderProbe:
    """Checks the tensors of one engine rank after its loader got tags in place of weights."""

    def __init__(self, layout: Layout, rank: int, *, every_layer: bool = False) -> None:
        """
        Args:
            layout: the declared layout of the engine.
            every_layer: if False, only the first and last layer of each parameter are fed, because all layers
                of a parameter have the same layout and loaders work by name.
        """
        source = HFLayout(layout.spec)
        params = {
            instance(held.param, layer)
            for held in source.holdings
            for layer in (held.layers if every_layer else (*held.layers[:1], *held.layers[-1:]))
        }
        fed = {name: shard for name, shard in source.shards(0).items() if shard.param in params}
        fp8 = {instance(held.param, layer) for held in layout.holdings if held.fp8 for layer in held.layers}
        dtypes: dict[str, torch.dtype] = {}
        for name in [name for name, shard in fed.items() if shard.param in fp8]:
            fed[name + layout.scales] = in_blocks(fed[name])
            dtypes |= {name: torch.float8_e4m3fn, name + layout.scales: torch.float32}
        blocks: dict[str, list[tuple[int, Shard]]] = {}
        for index, shard in enumerate(fed.values()):
            blocks.setdefault(shard.param, []).append((index, shard))
        self._where = f"rank {rank} of {type(layout).__name__}"
        held = layout.shards(rank)
        scales = {
            name + layout.scales: in_blocks(shard) for name, shard in held.items() if shard.param in fp8
        }
        self._shards, self._scales = held | scales, scales.keys()
        self._tags = Tags({name: shard.shape for name, shard in fed.items()}, dtypes)
        self._declared = {
            name: _declare(shard, blocks[shard.param])
            for name, shard in self._shards.items()
            if shard.param in blocks
        }

    @property
    def targets(self) -> list[str]:
        """Names of the engine's tensors that run() overwrites with tags."""
        return list(self._declared)

    def run(self, load: Load, read: Read) -> None:
        """Run the loader once for each digit. The contents of the targets are lost.

        Raises:
            LayoutError: the engine's tensors are not those of the layout, or a tensor holds something else
                than declared; the message has the first wrong range, what was declared and what was found.
        """
        self._refuse_other_tensors(read())
        first: dict[str, tuple[int, int]] = {}
        for step, found in self._shown(load, read):
            for name, declared in self._declared.items():
                if name in self._scales and (found[name] == _NOTHING).all():
                    continue  # SGLang's loader of Llama reads no scales
                place = declared.first_difference(step, found[name])
                if place is not None:
                    first[name] = min(place, first.get(name, place))
        for name in self._declared:
            if name in first:
                # All passes run again, because their values were not kept.
                what = self._difference(name, first[name], self._shown(load, read))
                raise LayoutError(what, where=self._where, fix=_FIX)

    def _shown(self, load: Load, read: Read) -> Iterator[tuple[Pass, dict[str, torch.Tensor]]]:
        """Run all passes; yields each with the targets as matrices."""
        targets = [read()[name] for name in self._declared]
        dtypes = self._dtypes(targets)
        dtype = dtypes[-1]
        for step in self._tags.passes(_BASE[dtypes[0]]):
            before = read()
            for name in self._declared:
                before[name].fill_(_NOTHING)
            load(self._tags.tensors(step, dtype, targets[0].device))
            after = read()
            yield step, {name: _shown_as(after[name], len(d.column)) for name, d in self._declared.items()}

    def _dtypes(self, targets: Sequence[torch.Tensor]) -> list[torch.dtype]:
        """Dtypes of the targets, the narrowest first; only the one of weights that are not FP8 comes after
        FP8."""
        dtypes = {tensor.dtype for tensor in targets}
        if not dtypes <= _BASE.keys():
            other = ", ".join(map(str, dtypes - _BASE.keys()))
            raise LayoutError(f"the engine holds weights as {other}", where=self._where, fix=_FIX)
        narrow = sorted(dtypes, key=lambda dtype: _BASE[dtype])
        return narrow[: 1 + (narrow[0] == torch.float8_e4m3fn)]

    def _refuse_other_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        other = sorted(tensors.keys() ^ self._shards.keys())
        if other:
            what = f"only one of the engine and its layout has {', '.join(other[:4])}"
            raise LayoutError(what, where=self._where, fix=_FIX)
        for name, shard in self._shards.items():
            shape = tuple(tensors[name].shape)
            if shape != shard.shape:
                what = f"the engine's {name} is {shape}, its layout says {shard.shape}"
                raise LayoutError(what, where=self._where, fix=_FIX)

    def _difference(
        self, name: str, start: tuple[int, int], shown: Iterator[tuple[Pass, dict[str, torch.Tensor]]]
    ) -> str:
        """A sentence about the range that begins with a wrong element: its place, as declared, as found."""
        row, column = start
        # Values are copied, because the next pass overwrites them.
        lines = [(step, found[name][:, column].clone(), found[name][row].clone()) for step, found in shown]
        down = _decode([(step, values) for step, values, _ in lines])
        along = _decode([(step, values) for step, _, values in lines])
        declared = self._declared[name]
        rows = _run_length(declared.down(column), down, row, ROW)
        columns = _run_length(declared.along(row), along, column, COLUMN) if len(along) > 1 else 0
        return (
            f"{name} should hold {self._words(declared.down(column)[row], rows, columns)} at "
            f"{_range(row, column, rows, columns)}; the engine's loader puts "
            f"{self._words(down[row], rows, columns)} there"
        )

    def _words(self, element: np.ndarray, rows: int, columns: int) -> str:
        tensor, row, column = element.tolist()
        if not 0 <= tensor < len(self._tags.shapes):
            return "nothing that it was given"
        return f"{_range(row, column, rows, columns)} of {list(self._tags.shapes)[tensor]}"


def _declare(shard: Shard, blocks: Sequence[tuple[int, Shard]]) -> Declared:
    """The declared coordinates of one shard.

    Args:
        blocks: tensors of the checkpoint that make up the parameter, each with its coordinate.
    """
    num_cols = 1 if len(blocks[0][1].shape) == 1 else shard.shape[-1]
    tensor, row = torch.full((2, prod(shard.shape) // num_cols), _NOTHING)
    column = torch.full((num_cols,), _NOTHING)
    for index, block in blocks:
        for span in overlap(block.rows, shard.rows):
            local = slice(span.second, span.second + span.length)
            tensor[local], row[local] = index, torch.arange(span.first, span.first + span.length)
    for span in overlap(blocks[0][1].cols, shard.cols):
        column[span.second : span.second + span.length] = torch.arange(span.first, span.first + span.length)
    return Declared(tensor, row, column)


def _decode(passes: Sequence[tuple[Pass, torch.Tensor]]) -> np.ndarray:
    """Coordinates of the n elements of a row or column, [n, 3], from their values in all passes."""
    found = np.zeros((len(passes[0][1]), 3), np.int64)
    is_tag = np.ones(len(found), bool)
    for step, values in passes:
        shown = values.double().cpu().numpy()
        is_tag &= (shown >= 0) & (shown < step.base) & (shown == np.floor(shown))
        found[:, step.coordinate] += np.where(is_tag, shown, 0).astype(np.int64) * step.unit
    found[~is_tag] = _NOTHING
    return found


def _run_length(declared: np.ndarray, found: np.ndarray, start: int, axis: int) -> int:
    """Number of consecutive elements from `start` on that are wrong in the same way.

    Both the declared and the found coordinate increase by one per element, or nothing is found at all.
    """
    step = np.eye(3, dtype=np.int64)[axis]
    declared, found = declared[start:], found[start:]
    nothing = (found == _NOTHING).all(1)
    go_on = (np.diff(found, axis=0) == step).all(1) | (nothing[1:] & nothing[:-1])
    alike = (declared != found).any(1)[1:] & (np.diff(declared, axis=0) == step).all(1) & go_on
    return 1 + int(np.argmin(np.append(alike, False)))


def _range(row: int, column: int, rows: int, columns: int) -> str:
    """The range in words; `columns` is 0 for a vector."""
    text = f"rows {row}-{row + rows - 1}"
    return f"{text}, columns {column}-{column + columns - 1}" if columns else text


def in_blocks(shard: Shard) -> Shard:
    """The scales of a weight in block FP8 as a shard of a parameter of their own."""
    rows, cols = (
        tuple(Run(run.at // BLOCK, num_blocks(run.length), run.local // BLOCK) for run in runs)
        for runs in (shard.rows, shard.cols)
    )
    shape = (*shard.shape[:-2], *map(num_blocks, shard.shape[-2:]))
    return Shard(f"scales of {shard.param}", shape, rows, cols)


def _shown_as(tensor: torch.Tensor, num_cols: int) -> torch.Tensor:
    """As a matrix, in a dtype that can be compared."""
    values = tensor.float() if tensor.dtype == torch.float8_e4m3fn else tensor
    return values.reshape(-1, num_cols)


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], 1) if len(shape) == 1 else (prod(shape[:-1]), shape[-1])


def _units(count: int, base: int) -> list[int]:
    """Place values of the digits that distinguish `count` things.

    There is at least one digit, so that every coordinate has a pass that reveals values which are no tags.
    """
    units = [1]
    while units[-1] * base < count:
        units.append(units[-1] * base)
    return units
