"""LoRA on transformers' linear layers: the weights are frozen, and each gets a trained product of low rank.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1. layout/adapters.py says which rank has which
part. q, k and v share one A, and so do gate and up, as in the fused layers of other backends.
An adapter is added to the output of a linear layer before tensor parallelism sums it over ranks, so that it
needs no communication of its own: its whole factors get a part of the gradient on each rank.
Shape letters: I and O inputs and outputs of a linear layer on this rank, R rank of the adapter.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import instance
from hybridrl.trainer.lora import first_a
from hybridrl.trainer.views import TensorView


class Adapter(nn.Module):
    """An adapter of one linear layer: its output is added to the output of the layer."""

    def __init__(self, a: Parameter, num_outputs: int, scale: float) -> None:
        super().__init__()
        self.a, self._scale, self.switched_on = a, scale, True
        self.b = Parameter(a.new_empty(num_outputs, len(a)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self._scale * F.linear(F.linear(inputs, self.a), self.b)

    def merged(self, weight_OI: Tensor, whole_a_RI: Tensor) -> Tensor:
        """A copy of rows of the weight with the adapter merged in, in the precision of the weight."""
        b_OR = self.b.detach()
        rows_OR = b_OR.to_local() if isinstance(b_OR, DTensor) else b_OR
        update_OI = self._scale * (rows_OR.float() @ whole_a_RI.float())
        return (weight_OI.float() + update_OI).to(weight_OI.dtype)


def attach(network: nn.Module, layout: AdapterLayout) -> None:
    """Freeze a network on the meta device and attach adapters to the linear layers of the layout.

    Call this before tensor parallelism and fully_shard, which shard the adapters too.
    """
    network.requires_grad_(False)
    for linear in layout.linears:
        for layer in linear.layers:
            sites = layout.base.sites(linear.row)
            modules: list[Any] = [
                network.get_submodule(instance(site.tensor, layer).removesuffix(".weight")) for site in sites
            ]
            weight = modules[0].weight
            a = Parameter(weight.new_empty(layout.rank, weight.shape[1]))
            for module in modules:
                module.adapter = Adapter(a, len(module.weight), layout.scale)
                module.register_forward_hook(_add)


def _add(linear: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + linear.adapter(inputs[0]) if linear.adapter.switched_on else output


def start(layout: AdapterLayout, rank: int, tensors: Mapping[str, Tensor], seed: int) -> None:
    """Initialise every A; B stays 0. The values depend on the seed and the layer, not on the ranks."""
    shards = layout.shards(rank)
    for linear in layout.linears:
        factor, _ = layout.factors(linear)
        for layer in linear.layers:
            if (name := instance(factor.row.hf[0], layer)) not in tensors:
                continue
            assert linear.cols is not None, "a linear layer is a matrix"
            whole_RI = first_a(instance(linear.name, layer), seed, layout.rank, linear.cols)
            for (at_row, at_col), (row, col), (rows, cols) in shards[name].boxes():
                part = whole_RI[at_row : at_row + rows, at_col : at_col + cols]
                tensors[name][row : row + rows, col : col + cols] = part


def adapters(network: nn.Module) -> dict[str, Adapter]:
    """All adapters by the name of their linear layer."""
    return {
        name.removesuffix(".adapter"): module
        for name, module in network.named_modules()
        if isinstance(module, Adapter)
    }


def gathered(network: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """The A of each linear layer, with all its rows, where the adapter is. *Collective* over the ranks that
    share them.

    Args:
        device: where the ranks exchange them.
    """
    whole: dict[int, Tensor] = {}
    for adapter in adapters(network).values():
        if id(adapter.a) not in whole:
            found: Any = adapter.a.detach()
            if isinstance(found, DTensor):
                there: Any = found.to(device)
                whole[id(adapter.a)] = there.full_tensor().to(found.device)
            else:
                whole[id(adapter.a)] = found.clone()
    return {name: whole[id(adapter.a)] for name, adapter in adapters(network).items()}


class Merged(TensorView):
    """The weights of a network with its adapters merged in, by name. Each is computed on access."""

    def __init__(
        self, weights: Mapping[str, Tensor], network: nn.Module, whole_a: Mapping[str, Tensor]
    ) -> None:
        """
        Args:
            weights: live weights of the network without adapters.
            whole_a: what `gathered` returns.
        """
        super().__init__(weights)
        self._whole_a, self._adapters = whole_a, adapters(network)

    def __getitem__(self, name: str) -> Tensor:
        linear = name.removesuffix(".weight")
        if linear not in self._adapters:
            return self._tensors[name]
        return self._adapters[linear].merged(self._tensors[name], self._whole_a[linear])
