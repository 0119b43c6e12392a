"""Shows where an engine's own loader puts every element of a checkpoint, and compares that with a layout.

The loader is fed Hugging Face tensors whose values are coordinates: which tensor, which row, which column.
A pass writes one digit of one coordinate, small enough for the narrowest dtype of the engine to hold exactly.
Tensors are matrices here: a vector has one column, and all dimensions but the last are rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from hybridrl.errors import LayoutError
from hybridrl.layout.base import Layout, instance
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.runs import overlap
from hybridrl.layout.shard import Shard

Load = Callable[[Iterator[tuple[str, torch.Tensor]]], object]
"""The engine's loader: takes (Hugging Face name, tensor) and treats them like those of a checkpoint."""

Read = Callable[[], Mapping[str, torch.Tensor]]
"""The engine's tensors as they are now, by its own names."""

_BASE = {torch.bfloat16: 1 << 8, torch.float16: 1 << 11, torch.float32: 1 << 24}
"""Integers below it are exact in the dtype."""

_NOTHING = -1
"""What a tensor holds before the loader runs, and the coordinate of what is no tag."""

_FIX = "rollout.weight_path=engine_api sends weights through the engine's loader"

TENSOR, ROW, COLUMN = range(3)
"""Coordinates of an element of the checkpoint, in this order."""


class Pass(NamedTuple):
    """One run of the loader: the values are digits of one coordinate, those that count `unit` each."""

    coordinate: int
    unit: int
    base: int

    def digits(self, coordinates: torch.Tensor) -> torch.Tensor:
        return coordinates // self.unit % self.base


@dataclass(frozen=True)
class Tags:
    """Tensors of a checkpoint with coordinates for values."""

    shapes: Mapping[str, tuple[int, ...]]
    """By Hugging Face names; a tensor's coordinate is its index here."""

    def passes(self, base: int) -> list[Pass]:
        matrices = [_matrix(shape) for shape in self.shapes.values()]
        counts = (len(matrices), max(rows for rows, _ in matrices), max(cols for _, cols in matrices))
        return [Pass(axis, unit, base) for axis, count in enumerate(counts) for unit in _units(count, base)]

    def tensors(
        self, step: Pass, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What the loader is fed in a pass; made one at a time."""
        for index, (name, shape) in enumerate(self.shapes.items()):
            rows, cols = _matrix(shape)
            coordinates = {
                TENSOR: torch.full((1, 1), index, device=device),
                ROW: torch.arange(rows, device=device)[:, None],
                COLUMN: torch.arange(cols, device=device)[None],
            }[step.coordinate]
            yield name, step.digits(coordinates).to(dtype).expand(rows, cols).contiguous().view(shape)


class Declared(NamedTuple):
    """What a layout says of an engine tensor: coordinates of its rows and columns, _NOTHING for padding."""

    tensor: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor

    def first_difference(self, step: Pass, values: torch.Tensor) -> tuple[int, int] | None:
        """(row, column) of the first element that shows another digit; padding may show anything."""
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
        """[rows, 3]: the coordinates of a column's elements."""
        return torch.stack([self.tensor, self.row, self.column[column].expand_as(self.row)], 1).numpy()

    def along(self, row: int) -> np.ndarray:
        """[columns, 3]: the coordinates of a row's elements."""
        fixed = (part[row].expand_as(self.column) for part in (self.tensor, self.row))
        return torch.stack([*fixed, self.column], 1).numpy()


class LoaderProbe:
    """What the tensors of one engine rank must show after its loader took tags for weights."""

    def __init__(self, layout: Layout, rank: int, *, every_layer: bool = False) -> None:
        """
        Args:
            layout: what was declared of the engine.
            every_layer: False feeds the first and the last layer of each parameter class only: a class is
                alike on its layers, and loaders go by name.
        """
        source = HFLayout(layout.spec)
        params = {
            instance(held.param, layer)
            for held in source.holdings
            for layer in (held.layers if every_layer else (*held.layers[:1], *held.layers[-1:]))
        }
        fed = {name: shard for name, shard in source.shards(0).items() if shard.param in params}
        blocks: dict[str, list[tuple[int, Shard]]] = {}
        for index, shard in enumerate(fed.values()):
            blocks.setdefault(shard.param, []).append((index, shard))
        self._where = f"rank {rank} of {type(layout).__name__}"
        self._shards = layout.shards(rank)
        self._tags = Tags({name: shard.shape for name, shard in fed.items()})
        self._declared = {
            name: _declare(shard, blocks[shard.param])
            for name, shard in self._shards.items()
            if shard.param in params
        }

    @property
    def targets(self) -> list[str]:
        """The engine's tensors that run() leaves tags in."""
        return list(self._declared)

    def run(self, load: Load, read: Read) -> None:
        """Run the loader once for each digit. What the targets held is lost.

        Raises:
            LayoutError: the engine's tensors are not those of the layout, or one does not hold what it says;
                names the first range, what was declared and what is there.
        """
        self._refuse_other_tensors(read())
        first: dict[str, tuple[int, int]] = {}
        for step, found in self._shown(load, read):
            for name, declared in self._declared.items():
                place = declared.first_difference(step, found[name])
                if place is not None:
                    first[name] = min(place, first.get(name, place))
        for name in self._declared:
            if name in first:
                # Once more, for what this tensor shows in all passes: nothing was kept of any.
                what = self._difference(name, first[name], self._shown(load, read))
                raise LayoutError(what, where=self._where, fix=_FIX)

    def _shown(self, load: Load, read: Read) -> Iterator[tuple[Pass, dict[str, torch.Tensor]]]:
        """After each pass, the targets as matrices."""
        targets = [read()[name] for name in self._declared]
        dtype = self._narrowest(targets)
        for step in self._tags.passes(_BASE[dtype]):
            before = read()
            for name in self._declared:
                before[name].fill_(_NOTHING)
            load(self._tags.tensors(step, dtype, targets[0].device))
            after = read()
            yield step, {name: after[name].reshape(-1, len(d.column)) for name, d in self._declared.items()}

    def _narrowest(self, targets: Sequence[torch.Tensor]) -> torch.dtype:
        dtypes = {tensor.dtype for tensor in targets}
        if not dtypes <= _BASE.keys():
            other = ", ".join(map(str, dtypes - _BASE.keys()))
            raise LayoutError(f"the engine holds weights as {other}", where=self._where, fix=_FIX)
        return min(dtypes, key=lambda dtype: _BASE[dtype])

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
        """In words, the range that begins with a wrong element: where it is, as declared, as found."""
        row, column = start
        # Copies: the next pass writes over what this one shows.
        lines = [(step, found[name][:, column].clone(), found[name][row].clone()) for step, found in shown]
        down = _decode([(step, values) for step, values, _ in lines])
        along = _decode([(step, values) for step, _, values in lines])
        declared = self._declared[name]
        rows = _stretch(declared.down(column), down, row, ROW)
        columns = _stretch(declared.along(row), along, column, COLUMN) if len(along) > 1 else 0
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
    """
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
    """[n, 3]: coordinates of the elements of a line, from what it showed in all passes."""
    found = np.zeros((len(passes[0][1]), 3), np.int64)
    is_tag = np.ones(len(found), bool)
    for step, values in passes:
        shown = values.double().cpu().numpy()
        is_tag &= (shown >= 0) & (shown < step.base) & (shown == np.floor(shown))
        found[:, step.coordinate] += np.where(is_tag, shown, 0).astype(np.int64) * step.unit
    found[~is_tag] = _NOTHING
    return found


def _stretch(declared: np.ndarray, found: np.ndarray, start: int, axis: int) -> int:
    """How many neighbours from `start` on are wrong alike: both sides go on by one, or there is nothing."""
    step = np.eye(3, dtype=np.int64)[axis]
    declared, found = declared[start:], found[start:]
    nothing = (found == _NOTHING).all(1)
    go_on = (np.diff(found, axis=0) == step).all(1) | (nothing[1:] & nothing[:-1])
    alike = (declared != found).any(1)[1:] & (np.diff(declared, axis=0) == step).all(1) & go_on
    return 1 + int(np.argmin(np.append(alike, False)))


def _range(row: int, column: int, rows: int, columns: int) -> str:
    """`columns` is 0 for a vector."""
    text = f"rows {row}-{row + rows - 1}"
    return f"{text}, columns {column}-{column + columns - 1}" if columns else text


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], 1) if len(shape) == 1 else (prod(shape[:-1]), shape[-1])


def _units(count: int, base: int) -> list[int]:
    """Of the digits that tell `count` things apart; one at least, so that every pass shows what is no tag."""
    units = [1]
    while units[-1] * base < count:
        units.append(units[-1] * base)
    return units
