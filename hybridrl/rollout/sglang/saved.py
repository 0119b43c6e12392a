"""Tensors of a live model, kept aside and put back bit for bit: values, memory and places.

Others have the memory of parameters mapped, and captured graphs remember it, so what a loader replaced by new
tensors has to become the old ones again.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn


class _Kept(NamedTuple):
    tensor: torch.Tensor
    data: torch.Tensor
    """On the memory that it had."""

    values: torch.Tensor
    """A copy, in main memory."""


class Saved:
    """All tensors of the modules that own some parameters, and of the modules around those.

    The latter hold what SGLang derives of parameters below them, as latent attention does of kv_b_proj.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[str]) -> None:
        paths = {path for name in parameters for path in _around(name)}
        kept: dict[int, _Kept] = {}
        self._places = [
            (place, {key: _keep(tensor, kept) for key, tensor in _tensors(place).items()})
            for path in sorted(paths)
            for place in _dictionaries(model.get_submodule(path))
        ]

    def restore(self) -> None:
        for place, held in self._places:
            for key in _tensors(place).keys() - held.keys():
                del place[key]
            for key, (tensor, data, values) in held.items():
                place[key] = tensor
                tensor.data = data
                data.copy_(values)


def _around(parameter: str) -> list[str]:
    """Paths of the module that owns it and of all modules around that one; "" is the model."""
    parts = parameter.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def _dictionaries(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, module.__dict__


def _tensors(place: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in place.items() if isinstance(value, torch.Tensor)}


def _keep(tensor: torch.Tensor, kept: dict[int, _Kept]) -> _Kept:
    """Once for a tensor that has several places."""
    if id(tensor) not in kept:
        data = tensor.data
        kept[id(tensor)] = _Kept(tensor, data, data.to("cpu", copy=True))
    return kept[id(tensor)]
