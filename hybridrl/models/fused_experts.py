"""Checkpoints that keep all experts of a layer in two tensors, as Qwen3-VL with experts does.

`experts.gate_up_proj` is [experts, hidden, 2 x ffn] and `experts.down_proj` [experts, ffn, hidden]: each of
them is the transpose of what a linear layer has. transformers 5 saves them untransposed, and reads both.
Everywhere else experts have tensors of their own, under the names that Qwen3 has for them; only who reads or
writes the files of a model folder knows the difference.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hybridrl.models.spec import ModelSpec, family_of, parameters

Shape = tuple[int, ...]


class Part(NamedTuple):
    """The place of the tensor [rows, columns] of one expert in a checkpoint."""

    tensor: str
    """The tensor in the file."""

    expert: int
    start: int
    stop: int
    """Rows of the expert's tensor among those of all its parts."""

    shape: Shape
    """Shape of the tensor in the file: experts, columns, and the rows of all parts."""

    def of(self, stored: Any) -> Any:
        """The expert's tensor as a view of the one in the file, of torch or numpy."""
        one = stored[self.expert]
        return (one.T if tuple(stored.shape) == self.shape else one)[self.start : self.stop]

    def fits(self, shape: Shape) -> bool:
        """Whether a tensor in a file may have a shape."""
        experts, columns, rows = self.shape
        return shape in (self.shape, (experts, rows, columns))


def parts(model: ModelSpec) -> dict[str, Part]:
    """Name of an expert's tensor in the model table -> where it is in a checkpoint; {} if it has that name
    there too."""
    if not model.has_table or not family_of(model).fused_experts:
        return {}
    found: dict[str, Part] = {}
    for parameter in parameters(model):
        if not parameter.row.per_expert:
            continue
        assert parameter.cols is not None, "the weights of experts are matrices"
        shape = len(parameter.experts), parameter.cols, parameter.num_rows
        last = "gate_up_proj" if len(parameter.blocks) == 2 else "down_proj"
        size = parameter.blocks[0]
        for at, (name, _) in enumerate(parameter.checkpoint_tensors()):
            stem, expert = _split(name)
            first = at % len(parameter.blocks) * size
            found[name] = Part(f"{stem}{last}", expert, first, first + size, shape)
    return found


def as_stored(shapes: Mapping[str, Shape], found: Mapping[str, Part]) -> dict[str, Shape]:
    """The shapes of the tensors in the files, from those of the model table, in the same order.

    Args:
        found: what `parts` returns.
    """
    places = ((found.get(name), name, shape) for name, shape in shapes.items())
    return dict((part.tensor, part.shape) if part else (name, shape) for part, name, shape in places)


def fused(tensors: Mapping[str, Any], model: ModelSpec, empty: Any) -> dict[str, Any]:
    """Tensors as the files have them.

    Args:
        tensors: by the names of the model table.
        empty: makes an array of a shape and dtype, as numpy.empty.
    """
    found, stored = parts(model), dict[str, Any]()
    for name, tensor in tensors.items():
        if (part := found.get(name)) is None:
            stored[name] = tensor
            continue
        if part.tensor not in stored:
            stored[part.tensor] = empty(part.shape, dtype=tensor.dtype)
        part.of(stored[part.tensor])[:] = tensor
    return stored


def _split(name: str) -> tuple[str, int]:
    """(name before the expert, its number)"""
    found = re.fullmatch(r"(.*\.experts\.)(\d+)\..*", name)
    assert found is not None, "a row per expert has a name with its number"
    return found[1], int(found[2])
