"""LoRA on Megatron's linear layers: the weights are frozen, and each gets a trained product of low rank.

Source: Hu et al. 2021, "LoRA", arXiv:2106.09685, section 4.1. layout/adapters.py says which rank has which
part.
A factor that is replicated over tensor-parallel ranks gets its whole gradient on each of them. With sequence
parallelism each rank only has the gradient of its own tokens, and Megatron sums these as it does for norms.
Shape letters: T tokens, I and O inputs and outputs of a linear layer on this rank, R rank of the adapter.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from torch import Tensor
from torch.nn import Module, Parameter

from hybridrl.errors import ConfigError
from hybridrl.layout.adapters import A, AdapterLayout
from hybridrl.layout.base import instance
from hybridrl.trainer.lora import first_a
from hybridrl.trainer.views import TensorView


class Adapter(Module):
    """An adapter of one linear layer: its output is added to the output of the layer."""

    def __init__(self, linear: Any, rank: int, scale: float) -> None:
        super().__init__()
        weight_OI, self._scale, self.switched_on = linear.weight, scale, True
        self.name = ""
        """Name of the layer in the whole model."""

        self.weight = ""
        """Canonical name of the layer's weight."""

        self._sequence_parallel: bool = linear.sequence_parallel
        options = {"dtype": weight_OI.dtype, "device": weight_OI.device}
        self.a = Parameter(torch.zeros(rank, weight_OI.shape[1], **options))
        self.b = Parameter(torch.zeros(weight_OI.shape[0], rank, **options))

    def merged(self, weight_OI: Tensor) -> Tensor:
        """A copy of the weight with the adapter merged in, in the precision of the weight."""
        update_OI = self._scale * (self.b.detach().float() @ self.a.detach().float())
        return (weight_OI.float() + update_OI).to(weight_OI.dtype)

    def _mark_sharded(self, factor: Parameter, dim: int, whole: Parameter) -> None:
        """Mark which factor is sharded along `dim`; the replicated one counts once in the gradient norm."""
        set_tensor_model_parallel_attributes(factor, is_parallel=True, dim=dim, stride=1)
        whole.sequence_parallel = self._sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]


class ColumnAdapter(Adapter):
    """The adapter of a column-parallel layer, sharded by rows: B is sharded in the same way, A replicated."""

    def __init__(self, linear: Any, rank: int, scale: float) -> None:
        super().__init__(linear, rank, scale)
        self._mark_sharded(self.b, 0, whole=self.a)

    def forward(self, input_TI: Tensor) -> Tensor:
        low_TR = F.linear(input_TI, self.a)
        # Each rank's rows of B give a part of the gradient of A's output: the backward pass sums over ranks.
        if self._sequence_parallel:
            low_TR = gather_from_sequence_parallel_region(low_TR, tensor_parallel_output_grad=True)
        else:
            low_TR = copy_to_tensor_model_parallel_region(low_TR)
        return self._scale * F.linear(low_TR, self.b)


class RowAdapter(Adapter):
    """The adapter of a row-parallel layer, sharded by columns: A is sharded in the same way, B replicated.

    The outputs of A are summed over ranks.
    """

    def __init__(self, linear: Any, rank: int, scale: float) -> None:
        super().__init__(linear, rank, scale)
        self._mark_sharded(self.a, 1, whole=self.b)

    def forward(self, input_TI: Tensor) -> Tensor:
        low_TR = F.linear(input_TI, self.a)
        if self._sequence_parallel:
            low_TR = reduce_scatter_to_sequence_parallel_region(low_TR)
        else:
            low_TR = reduce_from_tensor_model_parallel_region(low_TR)
        return self._scale * F.linear(low_TR, self.b)


def attach(model: Any, layout: AdapterLayout) -> None:
    """Freeze a model and attach adapters, which are 0 at first, to the linear layers of the layout.

    Call this before Megatron makes its gradient buffers, which then hold the adapters only.

    Raises:
        ConfigError: the linear layers are not Megatron's own.
    """
    model.requires_grad_(False)
    names = {
        held.tensor.removesuffix(".adapter.a"): held.param.removesuffix(f".{A}") for held in layout.holdings
    }
    for layer in model.decoder.layers:
        number = layer.layer_number - 1
        for name, linear in list(layer.named_modules()):
            if f"decoder.layers.*.{name}" in names:
                linear.adapter = _kind(linear)(linear, layout.rank, layout.scale)
                linear.adapter.name = f"decoder.layers.{number}.{name}"  # pyright: ignore[reportArgumentType]
                linear.adapter.weight = instance(names[f"decoder.layers.*.{name}"], number)  # pyright: ignore[reportArgumentType]
                linear.register_forward_hook(_add)
    if model.pre_process and model.config.recompute_granularity == "full":
        # Recomputation skips a layer whose input needs no gradient, and its adapters would get none.
        model.embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())


def _kind(linear: Module) -> type[Adapter]:
    for parallel, kind in ((ColumnParallelLinear, ColumnAdapter), (RowParallelLinear, RowAdapter)):
        if isinstance(linear, parallel):
            return kind
    raise ConfigError(
        f"adapters of actor.lora do not fit {type(linear).__name__}, which may norm its input by itself",
        where="actor.lora",
        fix="train on the CPU, or without actor.lora",
    )


def _add(linear: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]) -> Any:
    result, bias = output
    return (result + linear.adapter(inputs[0]), bias) if linear.adapter.switched_on else output


def adapters(stage: list[Any]) -> Iterator[Any]:
    """All adapters of this rank."""
    return (module for chunk in stage for module in chunk.modules() if isinstance(module, Adapter))


def start(stage: list[Any], seed: int) -> None:
    """Initialise every A like a linear layer of its size: uniform within 1 / sqrt(inputs). B stays 0.

    The values depend on the seed and the layer, not on the parallel layout.
    """
    for adapter in adapters(stage):
        a, parts = adapter.a, 1
        if isinstance(adapter, RowAdapter):
            parts = parallel_state.get_tensor_model_parallel_world_size()
        whole = first_a(adapter.weight, seed, a.shape[0], a.shape[1] * parts)
        at = parallel_state.get_tensor_model_parallel_rank() * a.shape[1] if parts > 1 else 0
        with torch.no_grad():
            a.copy_(whole[:, at : at + a.shape[1]])


class Merged(TensorView):
    """The weights of a model with its adapters merged in, by name. Each is computed on access."""

    def __init__(self, weights: Mapping[str, Tensor], stage: list[Any]) -> None:
        """
        Args:
            weights: live weights of the model without adapters.
        """
        super().__init__(weights)
        self._adapters = {f"{adapter.name}.weight": adapter for adapter in adapters(stage)}

    def __getitem__(self, name: str) -> Tensor:
        adapter = self._adapters.get(name)
        return self._tensors[name] if adapter is None else adapter.merged(self._tensors[name])
