"""Compares the weight files of a model folder with its config.json, by their headers, before anything starts.

It also looks for values that are no numbers, in as many bytes as a second or two can read. Without torch.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybridrl.errors import ModelError
from hybridrl.models import spec as models
from hybridrl.models.config_json import read_config, read_object
from hybridrl.models.fused_experts import as_stored, parts
from hybridrl.wording import counted

INDEX = "model.safetensors.index.json"

_EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F32": (np.uint32, 0x7F80_0000),
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
}
"""Dtypes that models are trained in -> integers of their width, and the bits that are all set in NaN and
infinity."""

_READ_BYTES = 1 << 30
"""Bytes whose values are read, over all tensors; of a larger model the trainer sees the rest when it loads
it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header of its file describes it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""

    num_bytes: int


def refuse_unfit_weights(folder: str | Path, *, where: str) -> None:
    """Refuse a model folder whose weight files are not whole, or not those of its config.json.

    Args:
        where: place in the config that names the folder, for the error.

    Raises:
        ModelError: a file is missing, cut short or no safetensors file; a tensor is missing, has another
            shape or dtype, belongs to no layer of the model, or holds NaN or infinity.
    """
    folder = Path(folder)
    try:
        config = read_config(folder)
        model = models.from_config(config, where=str(folder / "config.json"))
        tensors = headers(folder)
        further = config.get("num_nextn_predict_layers") or 0
        _refuse_other_tensors(folder, model, tensors, range(model.num_layers, model.num_layers + further))
        _refuse_nonfinite(tensors)
    except ModelError as error:
        raise ModelError(error.what, where=where, fix=error.fix) from error


def headers(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, by name; no weight is read.

    Raises:
        ModelError: a file is missing, cut short or no safetensors file.
    """
    index = folder / INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"no safetensors files in {folder}", fix="download the model again, or use save_pretrained()"
            )
        return {tensor.name: tensor for file in files for tensor in _of_file(file)}
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"{index} has no weight_map from tensors to files", fix=_AGAIN)
    found = {t.name: t for name in sorted(set(listed.values())) for t in _of_file(folder / name)}
    if lost := sorted(listed.keys() - found.keys()):
        raise ModelError(f"{INDEX} lists {_some(lost)}, and no file of {folder} has it", fix=_AGAIN)
    return found


def _of_file(path: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file: the header's length in 8 bytes, a JSON header, the tensors."""
    if not path.is_file():
        raise ModelError(f"the weight file {path} is missing", fix=_AGAIN)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ModelError(
                f"{path} is cut short, or no safetensors file: it has {size:,} bytes", fix=_AGAIN
            )
        text = file.read(length)
    try:
        entries = json.loads(text.decode("utf-8"))
        entries.pop("__metadata__", None)
        found = [_tensor(path, name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is no safetensors file: its header cannot be read", fix=_AGAIN) from error
    wanted = max((tensor.start + tensor.num_bytes for tensor in found), default=8 + length)
    if size != wanted:
        raise ModelError(f"{path} has {size:,} bytes, {wanted:,} by its header", fix=_AGAIN)
    yield from found


def _tensor(path: Path, name: str, entry: dict[str, Any], after_header: int) -> Tensor:
    start, stop = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    return Tensor(name, path, str(entry["dtype"]), shape, after_header + int(start), int(stop) - int(start))


def _refuse_other_tensors(
    folder: Path, model: models.ModelSpec, tensors: dict[str, Tensor], further: range
) -> None:
    """
    Args:
        further: layers beyond the model's that predict further tokens.
    """
    shapes = _shapes(model)
    if missing := [name for name in shapes if name not in tensors]:
        lacks = f"{_some(missing)}, {len(missing)} of {counted(len(shapes), 'tensor')}"
        raise ModelError(f"the weights in {folder} lack {lacks} of its config.json", fix=_BELONGS)
    for name, shape in shapes.items():
        found = tensors[name]
        if found.shape != shape:
            what = f"{name} is {list(found.shape)} in {found.file}, {list(shape)} by its config.json"
            turned = "experts" in name and found.shape == (shape[0], *shape[:0:-1])
            raise ModelError(what, fix=_TURNED if turned else _BELONGS)
        if found.dtype not in _EXPONENTS:
            what = f"{name} is {found.dtype} in {found.file}; weights are {', '.join(_EXPONENTS)}"
            raise ModelError(what, fix="use the bf16 or fp32 version of the model")
    if unused := _unused(tensors, shapes, further):
        count = counted(len(unused), "tensor")
        what = f"the weights in {folder} have {_some(unused)}, {count} in all, for which its config.json has"
        raise ModelError(f"{what} no place: without them it is another model", fix=_BELONGS)


def _shapes(model: models.ModelSpec) -> dict[str, tuple[int, ...]]:
    shapes = {
        name: parameter.shape or ((rows,) if parameter.cols is None else (rows, parameter.cols))
        for parameter in models.parameters(model)
        for name, rows in parameter.checkpoint_tensors()
    }
    return as_stored(shapes, parts(model))


def _unused(tensors: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], further: range) -> list[str]:
    """Tensors of layers that the model does not have.

    Layers that predict further tokens, other parts than layers, and inverse frequencies are not used and may
    be there.
    """
    layers = ((name, re.match(_LAYER, name)) for name in tensors if name not in shapes)
    return [
        n for n, layer in layers if layer and int(layer[1]) not in further and not n.endswith(".inv_freq")
    ]


def _refuse_nonfinite(tensors: dict[str, Tensor]) -> None:
    """Refuse NaN and infinity among the first bytes of every tensor; every one has an equal share of those
    that are read."""
    read = {name: tensor for name, tensor in tensors.items() if tensor.dtype in _EXPONENTS}
    share = _READ_BYTES // max(1, len(read))
    for name, tensor in read.items():
        kind, exponent = _EXPONENTS[tensor.dtype]
        num = min(share, tensor.num_bytes) // np.dtype(kind).itemsize
        bits = np.fromfile(tensor.file, kind, num, offset=tensor.start)
        if (count := int(((bits & kind(exponent)) == exponent).sum())) > 0:
            what = f"{name} in {tensor.file} holds NaN or infinity {counted(count, 'time')}"
            raise ModelError(what, fix="use a checkpoint from before its training diverged")


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


_LAYER = r"model\.(?:language_model\.)?layers\.(\d+)\."
_AGAIN = "download the model again"
_BELONGS = "check that config.json belongs to the weights"
_TURNED = (
    "transformers 5 saves it so, but SGLang reads the orientation of the published model only: use that, or "
    "transpose the last two axes of the tensors of experts"
)
