"""The parts of a transformer layer that we choose ourselves, and the layer specification made of them.

Shape letters: T packed tokens, H heads, D size of a head, B sequences of equal length, L that length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.trainer.megatron.packing import Packing


class RMSNorm(torch.nn.Module):
    """Root mean square norm. Megatron's own refuses sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        weight: Any = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Where ranks have different tokens, Megatron sums the gradients of what is marked so.
        weight.sequence_parallel = config.sequence_parallel
        self.weight = weight
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self._eps)


class PackedAttention(MegatronModule):
    """Causal attention inside each packed sequence: one call for every run of sequences of equal length."""

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **unused: Any) -> None:
        super().__init__(config=config)
        self._scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        packed_seq_params: Packing,
        **unused: Any,
    ) -> Tensor:
        """
        Args:
            query: [T, 1, H, D]; key and value may have fewer heads, each then serves several query heads.

        Returns:
            [T, 1, H * D]
        """
        runs = packed_seq_params.runs
        sizes = [count * length for count, length in runs]
        parts = zip(runs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        return torch.cat([self._attend(*run, q, k, v) for run, q, k, v in parts])

    def _attend(self, count: int, length: int, *query_key_value: Tensor) -> Tensor:
        query, key, value = (x.view(count, length, *x.shape[2:]).transpose(1, 2) for x in query_key_value)
        grouped = query.shape[1] != key.shape[1]
        out_BHLD = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self._scale, enable_gqa=grouped
        )
        return out_BHLD.transpose(1, 2).reshape(count * length, 1, -1)


def layer_spec(config: TransformerConfig, num_layers: int) -> TransformerBlockSubmodules:
    """Megatron's layer of plain linear layers with our norm and attention, `num_layers` times."""
    spec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization="RMSNorm")
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    attention.core_attention = PackedAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=RMSNorm)
