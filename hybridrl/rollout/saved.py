"""Saves tensors of a live model and restores them bit for bit: values, memory and attributes.

Other processes have the memory of parameters mapped, and captured graphs refer to it. So if a loader replaces
a tensor by a new one, the old one has to be put back.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn


class _Kept(NamedTuple):
    tensor: torch.Tensor
    data: torch.Tensor
    """Tensor on the original memory."""

    values: torch.Tensor
    """Copy of the values in main memory."""


class Saved:
    """All tensors of the modules that own the given parameters, and of all enclosing modules.

    Enclosing modules hold tensors that an engine derives from parameters, such as those that latent attention
    derives from kv_b_proj.
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
    """Paths of the module that owns a parameter and of all enclosing modules; "" is the model."""
    parts = parameter.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def _dictionaries(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers, module.__dict__


def _tensors(place: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in place.items() if isinstance(value, torch.Tensor)}


def _keep(tensor: torch.Tensor, kept: dict[int, _Kept]) -> _Kept:
    """Save a tensor, once even if it has several places."""
    if id(tensor) not in kept:
        data = tensor.data
        kept[id(tensor)] = _Kept(tensor, data, data.to("cpu", copy=True))
    return kept[id(tensor)]
