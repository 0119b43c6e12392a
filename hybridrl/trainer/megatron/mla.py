"""Multi-head latent attention: q, and k together with v, are projected down to a normed latent vector.

Source: DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434, section 2.1.
Shape letters: T packed tokens, S tokens of this rank (T / tp with sequence parallelism, otherwise T), H heads
of this rank, D rotary size of a head.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor

from hybridrl.trainer.megatron.rope import PackedRotary, turn_pairs
from hybridrl.trainer.places import Packing

NORM_PLACES = ("linear_q_proj", "linear_q_up_proj", "linear_kv_up_proj", "q_layernorm", "kv_layernorm")
"""Places in Megatron's spec of the norms of latent vectors, and of the linear layers that may apply these
norms instead."""


class LatentAttention(MLASelfAttention):
    """Megatron's modules with our own forward pass.

    Megatron's forward pass loses gradients of the rotary key under tensor parallelism.
    """

    def __init__(
        self, config: MLATransformerConfig, submodules: Any, *, rotary: PackedRotary, **options: Any
    ) -> None:
        super().__init__(config, submodules, **options)
        self.rotary_pos_emb = rotary

    def _resolve_qk_norm_config(self, submodules: Any) -> dict[str, Any]:
        """The classes at NORM_PLACES, exactly as the spec has them.

        Megatron 0.16 builds these by itself. 0.19 calls this method, whose own version chooses by
        config.qk_layernorm.
        """
        return {place: getattr(submodules, place) for place in NORM_PLACES}

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: None,
        position_ids: None,
        packing: Packing,
        **unused: Any,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """
        Args:
            hidden_states: [S, 1, hidden size]

        Returns:
            Query, key and value, [T, 1, H, head size of each]; then the latent vectors of query, and of key
            and value.
        """
        config = self.config
        angle_T = self.rotary_pos_emb(packing)
        latent_q = self._latent_query(hidden_states)
        up_q = self.linear_q_proj if config.q_lora_rank is None else self.linear_q_up_proj
        nope_q, rope_q = self._heads(up_q, latent_q).split(
            [config.qk_head_dim, config.qk_pos_emb_head_dim], -1
        )
        latent_kv, rope_k = self._latent_key_value(hidden_states)
        nope_k, value = self._heads(self.linear_kv_up_proj, latent_kv).split(
            [config.qk_head_dim, config.v_head_dim], -1
        )
        rope_k = self._turn(rope_k.unsqueeze(-2), angle_T).expand(-1, -1, nope_k.shape[2], -1)
        query = torch.cat([nope_q, self._turn(rope_q, angle_T)], -1)
        return query, torch.cat([nope_k, rope_k], -1), value, latent_q, latent_kv

    def _latent_query(self, hidden: Tensor) -> Tensor:
        """The normed latent of the query, [S, 1, q_lora_rank]; the hidden states if queries have none."""
        if self.config.q_lora_rank is None:
            return hidden
        part, _ = self.linear_q_down_proj(hidden)
        return self.q_layernorm(self._own_tokens(gather_from_tensor_model_parallel_region(part)))

    def _latent_key_value(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The normed latent of key and value, [S, 1, kv_lora_rank], and the key's rotary part [T, 1, D]."""
        part, _ = self.linear_kv_down_proj(hidden)
        whole = gather_from_tensor_model_parallel_region(part)
        latent, rope = whole.split([self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim], -1)
        # Every rank uses it for its own heads, so the backward pass sums the gradients over ranks.
        rope = copy_to_tensor_model_parallel_region(rope)
        return self.kv_layernorm(self._own_tokens(latent)), rope

    def _own_tokens(self, whole_T: Tensor) -> Tensor:
        """This rank's tokens under sequence parallelism, otherwise all."""
        return scatter_to_sequence_parallel_region(whole_T) if self.config.sequence_parallel else whole_T

    def _heads(self, up: torch.nn.Module, latent: Tensor) -> Tensor:
        wide, _ = up(latent)
        return wide.unflatten(-1, (self.num_attention_heads_per_partition, -1))

    def _turn(self, heads: Tensor, angle_T: Tensor) -> Tensor:
        # Megatron's function is not used: 0.16 takes the order of the dims from the config, 0.19 from an
        # argument.
        return turn_pairs(heads, angle_T, self.rotary_pos_emb.amplitude)


class WholeLatentAttention(LatentAttention):
    """Latent attention whose down-projections are replicated and whose up-projections apply the norms.

    Transformer Engine's linear layers need this form.
    """

    def _latent_query(self, hidden: Tensor) -> Tensor:
        """The latent of the query before its norm, [S, 1, q_lora_rank]; the hidden states if it has none."""
        return hidden if self.config.q_lora_rank is None else self.linear_q_down_proj(hidden)[0]

    def _latent_key_value(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The latent of key and value before its norm, [S, 1, kv_lora_rank], and the key's rotary part
        [T, 1, D]."""
        whole, _ = self.linear_kv_down_proj(hidden)
        latent, rope = whole.split([self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim], -1)
        # The backward pass of either function sums the gradients of all ranks' heads.
        shared = self.config.sequence_parallel
        all_tokens = gather_from_sequence_parallel_region if shared else copy_to_tensor_model_parallel_region
        return latent.contiguous(), all_tokens(rope)
