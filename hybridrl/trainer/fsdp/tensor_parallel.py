"""Tensor parallelism of transformers' modules: parallel styles for torch's parallelize_module.

A style keeps this rank's part of the weights as a plain parameter, which fully_shard then shards by rows, and
adds the communication of the module as hooks. The layout says which weights are sharded, and how.
Shape letters: T tokens, H hidden size, I and O inputs and outputs of a linear layer.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle

from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import instance
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.models.spec import ModelSpec, parameters
from hybridrl.models.table import Sharding
from hybridrl.trainer.context import gather_tokens

Shardings = Mapping[str, Sharding]
"""How tensor parallelism shards each parameter, by its name."""


def shardings(layout: FSDPLayout | AdapterLayout) -> dict[str, Sharding]:
    """The shardings of a model, or of its adapters."""
    if isinstance(layout, AdapterLayout):
        base, held = cast(FSDPLayout, layout.base), layout.parameters
    else:
        base, held = layout, parameters(layout.spec)
    return {
        instance(site.tensor, layer): site.sharding
        for parameter in held
        for site in base.sites(parameter.row)
        for layer in parameter.layers
    }


def parallelize(network: nn.Module, found: Shardings, mesh: DeviceMesh, model: ModelSpec) -> None:
    """Keep this rank's part of the weights on the meta device, and add the communication."""
    if mesh.size() == 1:
        return
    plan: dict[str, ParallelStyle] = {block: Block() for block in _blocks(found)}
    few = model.num_kv_heads < mesh.size()
    for name, sharding in found.items():
        module, _, last = name.rpartition(".")
        if module.endswith(".experts"):
            plan[module] = Experts()
        elif few and module.endswith((".k_proj", ".v_proj")):
            plan[module] = FewHeads(model.num_kv_heads)
        elif sharding != "whole" and last == "weight":
            plan[module] = _STYLES[sharding]()
    parallelize_module(network, mesh, plan)


def with_partial_gradients(found: Shardings) -> frozenset[str]:
    """Names of whole parameters that compute with a part of the heads: each tensor-parallel rank has a part
    of the gradient, and the whole is the sum.

    They are norms between layers sharded by rows and by columns, and the whole factors of adapters.
    """
    blocks = _blocks(found)
    return frozenset(
        name
        for name, sharding in found.items()
        if sharding == "whole" and (".adapter." in name or _block(name) in blocks)
    )


def sum_over(group: dist.ProcessGroup, gradients: Iterable[Tensor], device: torch.device) -> None:
    """Sum gradients over tensor-parallel ranks, in place and in one call. *Collective*.

    Args:
        device: where the ranks exchange them.
    """
    grads = list(gradients)
    if group.size() == 1 or not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads]).to(device)
    dist.all_reduce(flat, group=group)
    for grad, whole in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(whole.view_as(grad))


def copy_to(group: dist.ProcessGroup, value: Tensor) -> Tensor:
    """The same tensor, from which every rank computes a part: the backward pass sums over ranks."""
    return value if group.size() == 1 else _Copy.apply(value, group)


class Block(ParallelStyle):
    """Attention or feed-forward: every rank computes a part of it from the same input."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _copy_inputs(module, device_mesh)
        return module


class Rows(ParallelStyle):
    """A linear layer of a block, of which each rank has rows: it computes some outputs from all inputs."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name in ("weight", "bias"):
            _keep(module, name, 0, device_mesh)
        if adapter := getattr(module, "adapter", None):
            _keep(adapter, "b", 0, device_mesh)
        return module


class FewHeads(Rows):
    """The keys or values of fewer heads than there are ranks: each rank computes a part of the rows, gathers
    all of them, and takes the head that its queries attend to."""

    def __init__(self, num_heads: int) -> None:
        self._num_heads = num_heads

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        super()._apply(module, device_mesh)
        group = device_mesh.get_group()
        head = device_mesh.get_local_rank() * self._num_heads // device_mesh.size()

        def take(_: nn.Module, inputs: Any, own_1TO: Tensor) -> Tensor:
            whole_1TO = gather_tokens(own_1TO, group).movedim(0, 2).flatten(2)
            return whole_1TO.chunk(self._num_heads, dim=2)[head]

        module.register_forward_hook(take)
        return module


class Columns(ParallelStyle):
    """A linear layer of which each rank has columns: its outputs are summed over ranks."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _keep(module, "weight", 1, device_mesh)
        if adapter := getattr(module, "adapter", None):
            _keep(adapter, "a", 1, device_mesh)
        _sum_output(module, device_mesh)
        return module


class Experts(ParallelStyle):
    """All experts of a layer, [E, 2 O, I] and [E, I, O]: each rank has some of the O of every expert, as rows
    of its gate and up, and as columns of its down."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        _keep(module, "gate_up_proj", 1, device_mesh)
        _keep(module, "down_proj", 2, device_mesh)
        _copy_inputs(module, device_mesh)
        _sum_output(module, device_mesh)
        return module


class Vocabulary(ParallelStyle):
    """An embedding of which each rank has some entries, or an output layer, whose caller communicates."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        size = device_mesh.size()
        weight = cast(Tensor, module.weight)
        part = -(-len(weight) // size)
        _replace(module, "weight", weight.new_empty(part, weight.shape[1]))
        if isinstance(module, nn.Embedding):
            first = part * device_mesh.get_local_rank()
            cast(Any, module).forward = partial(_look_up, module, first, device_mesh.get_group())
        return module


_STYLES: dict[Sharding, type[ParallelStyle]] = {"rows": Rows, "columns": Columns, "vocab": Vocabulary}


def _keep(module: nn.Module, name: str, dim: int, mesh: DeviceMesh) -> None:
    """Replace a parameter on the meta device, if the module has it, by one of this rank's size."""
    whole = getattr(module, name, None)
    if whole is not None:
        shape = list(whole.shape)
        shape[dim] //= mesh.size()
        _replace(module, name, whole.new_empty(shape))


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value))


def _sum_output(module: nn.Module, mesh: DeviceMesh) -> None:
    group = mesh.get_group()
    module.register_forward_hook(lambda _, inputs, output: _Sum.apply(output, group))


def _copy_inputs(module: nn.Module, mesh: DeviceMesh) -> None:
    group = mesh.get_group()

    def copied(value: Any) -> Any:
        return copy_to(group, value) if isinstance(value, Tensor) and value.requires_grad else value

    def copy_all(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return tuple(map(copied, inputs)), {name: copied(value) for name, value in named.items()}

    module.register_forward_pre_hook(copy_all, with_kwargs=True)


def _look_up(module: nn.Embedding, first: int, group: dist.ProcessGroup, token_1T: Tensor) -> Tensor:
    """[1, T, H]"""
    place_1T = token_1T - first
    here_1T = (place_1T >= 0) & (place_1T < len(module.weight))
    rows_1TH = F.embedding(place_1T.where(here_1T, 0), module.weight)
    return _Sum.apply(rows_1TH * here_1T.unsqueeze(-1), group)


def _blocks(found: Shardings) -> set[str]:
    """Modules with linear layers of which each rank has rows."""
    return {_block(name) for name, sharding in found.items() if sharding == "rows" and _is_linear(name)}


def _is_linear(name: str) -> bool:
    return name.endswith(".weight")


def _block(name: str) -> str:
    """The module that has the module of a parameter."""
    return name.rsplit(".", 2)[0]


class _Copy(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduced(grad, ctx.group), None


class _Sum(Function):
    """The sum over ranks, of which every rank computes the same: the backward pass needs no communication."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _all_reduced(part, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _all_reduced(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
