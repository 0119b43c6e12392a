"""Transformer Engine's modules without Transformer Engine: built and called as Megatron builds and calls its
wrappers of them, with parameters of the same names and shapes, in plain torch.

Shape letters: T tokens, H query heads, K key heads, D size of a head, N tokens of the experts of a rank.
"""

import hybridrl.trainer.megatron  # noqa: F401  # isort: skip  # makes Megatron importable on a CPU

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import trainer_models as models
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.fp8_utils import is_first_last_bf16_layer
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import multi_latent_attention, transformer_block
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.utils import get_pg_size
from torch import Tensor, nn

from hybridrl.config.training import ActorConfig
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.trainer.megatron import backend, model
from hybridrl.trainer.megatron.architecture import fp8, transformer_config
from hybridrl.trainer.megatron.cuda_layers import VarlenAttention
from hybridrl.trainer.megatron.mla import WholeLatentAttention
from hybridrl.trainer.megatron.parts import LayerSpecs, RMSNorm, packed_attention


class NormColumn(ColumnParallelLinear):
    """As TELayerNormColumnParallelLinear."""

    def __init__(self, input_size: int, output_size: int, *, config: Any, **options: Any) -> None:
        super().__init__(input_size, output_size, config=config, **options)
        norm = RMSNorm(config, input_size, config.layernorm_epsilon)
        self.layer_norm_weight = norm.weight
        self._norm = [norm]  # in a list: its weight has one name
        _mark(self.weight, dim=0)

    def forward(self, x: Tensor) -> Any:
        return super().forward(self._norm[0](x))


class Whole(nn.Linear):
    """As TELinear in the mode `duplicated`."""

    def __init__(
        self, input_size: int, output_size: int, *, parallel_mode: str, config: Any, bias: bool, **unused: Any
    ) -> None:
        assert parallel_mode == "duplicated" and not bias
        super().__init__(input_size, output_size, bias=False, dtype=config.params_dtype)
        _set(self.weight, sequence_parallel=config.sequence_parallel)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class GroupedColumn(nn.Module):
    """As TEColumnParallelGroupedLinear."""

    cut = 0

    def __init__(
        self,
        num_gemms: int,
        input_size: int,
        output_size: int,
        *,
        config: Any,
        pg_collection: Any,
        **unused: Any,
    ) -> None:
        super().__init__()
        shape = [output_size, input_size]
        shape[self.cut] //= get_pg_size(pg_collection.expt_tp)
        for i in range(num_gemms):
            weight = nn.Parameter(torch.empty(shape, dtype=config.params_dtype))
            _set(weight, allreduce=config.expert_model_parallel_size == 1)
            _mark(weight, dim=self.cut)
            self.register_parameter(f"weight{i}", weight)

    def forward(self, x_N: Tensor, tokens_per_expert: list[int]) -> Any:
        parts = x_N.split(list(tokens_per_expert))
        return torch.cat([F.linear(x, getattr(self, f"weight{i}")) for i, x in enumerate(parts)]), None


class GroupedRow(GroupedColumn):
    """As TERowParallelGroupedLinear."""

    cut = 1


class Product(nn.Module):
    """As TEDotProductAttention over packed sequences, on one context-parallel rank."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        assert attn_mask_type == AttnMaskType.causal and attention_type == "self"
        self._window, self._scale = config.window_size, softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        *,
        attn_mask_type: AttnMaskType,
        packed_seq_params: Any,
    ) -> Tensor:
        """[T, H, D], [T, K, D] and [T, K, D] -> [T, H * D]."""
        assert packed_seq_params.qkv_format == "thd" and packed_seq_params.cu_seqlens_q.dtype == torch.int32
        sizes = packed_seq_params.cu_seqlens_q.diff()
        assert packed_seq_params.max_seqlen_q == sizes.max()
        parts = (x.split(sizes.tolist()) for x in (query, key, value))
        return torch.cat([self._attend(*part) for part in zip(*parts, strict=True)])

    def _attend(self, *query_key_value: Tensor) -> Tensor:
        heads = [x.transpose(0, 1) for x in query_key_value]
        at = torch.arange(len(query_key_value[0]))
        back = at[:, None] - at
        seen = (back >= 0) & (back <= (self._window[0] if self._window else len(at)))
        several = heads[0].shape[0] != heads[1].shape[0]
        out = F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=self._scale, enable_gqa=several)
        return out.transpose(0, 1).flatten(1)


def _set(weight: Any, **attributes: bool) -> None:
    for name, value in attributes.items():
        setattr(weight, name, value)


def _mark(weight: Any, *, dim: int) -> None:
    for name in ("tensor_model_parallel", "partition_dim", "partition_stride"):
        if hasattr(weight, name):
            delattr(weight, name)
    set_tensor_model_parallel_attributes(weight, True, dim, 1)


def _core_attention(config: Any, spec: Any, window: int | None) -> ModuleSpec:
    if spec.attention_soft_cap is not None or config.context_parallel_size > 1:
        return packed_attention(config, spec, window)
    return ModuleSpec(VarlenAttention, {"product": Product, "window": window})


STANDINS = LayerSpecs(
    norm=RMSNorm,
    column=ColumnParallelLinear,
    norm_column=NormColumn,
    row=RowParallelLinear,
    down_proj=Whole,
    latent_attention=WholeLatentAttention,
    core_attention=_core_attention,
    experts=lambda _: ModuleSpec(
        TEGroupedMLP, submodules=MLPSubmodules(linear_fc1=GroupedColumn, linear_fc2=GroupedRow)
    ),
)


LINEARS = (ColumnParallelLinear, RowParallelLinear, Whole, VocabParallelEmbedding)


def learn(rank: int, rendezvous: Any, folders: list[Path], *args: Any) -> Any:
    """trainer_models.learn on a rank whose layers are a GPU's, and so is its layout."""
    multi_latent_attention.TELinear = Whole  # what it takes for a layer that all ranks have whole
    TESpecProvider.column_parallel_layer_norm_linear = lambda _: NormColumn  # and for one with a norm inside
    model.parts_of = lambda device: STANDINS
    backend.make_layout = lambda setup: MegatronLayout.of(setup.model, on_gpu=True, **setup.parallel.sizes)
    return models.learn(rank, rendezvous, folders, *args)


class Call(NamedTuple):
    """Of a module of the model, on one pipeline stage."""

    name: str
    in_fp8: bool
    tokens: int


def learn_in_fp8(
    rank: int, rendezvous: Any, folders: list[Path], shape: Any, actor: ActorConfig, out: Path
) -> tuple[list[Any], list[Call]]:
    """`learn` with what actor.fp8 makes of Megatron's config; the context of FP8 only notes who is inside."""
    seen: list[Call] = []
    inside = [False]

    def told(setup: Any, device: torch.device) -> Any:
        config = transformer_config(setup, device)
        _set(config, **fp8(actor))
        return config

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    def context(config: Any, layer: int = -1, is_init: bool = False) -> Any:
        off = is_init or is_first_last_bf16_layer(config, layer)
        return contextlib.nullcontext() if off else entered()

    def built(*args: Any, **options: Any) -> Any:
        stage = model.build(*args, **options)
        for name, module in model.policy_model(stage).named_modules():
            if isinstance(module, LINEARS):
                module.register_forward_pre_hook(partial(note, name))
        return stage

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0].shape[:2].numel()
        seen.append(Call(name, inside[0], tokens))

    backend.transformer_config, backend.build = told, built
    transformer_block.get_fp8_context = context
    return learn(rank, rendezvous, folders, shape, (6,), out), seen
