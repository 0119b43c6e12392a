"""Causal attention inside each packed sequence, with one call for every run of sequences of equal length.

Under context parallelism every rank gathers all keys and values, and computes the outputs of its own queries.
Shape letters: T packed tokens of this rank, H query heads, K key heads, D size of a query or key head, E size
of a value head, B sequences of equal length, L that length, Q queries of each sequence.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.trainer.context import chunks_of, gather_tokens, in_order
from hybridrl.trainer.places import Packing, SharedPrompt


class PackedAttention(MegatronModule):
    """Replaces Megatron's core attention, which supports neither packed sequences nor context parallelism."""

    def __init__(
        self,
        config: TransformerConfig,
        softmax_scale: float | None = None,
        *,
        window: int | None = None,
        soft_cap: float | None = None,
        **unused: Any,
    ) -> None:
        """
        Args:
            softmax_scale: scale of the product of query and key; None is 1 / sqrt(D).
            window: a token attends to itself and the `window` - 1 tokens before it; None attends to all.
            soft_cap: scores x become soft_cap * tanh(x / soft_cap); None leaves them as they are.
        """
        super().__init__(config=config)
        self._scale, self._window, self._soft_cap = softmax_scale, window, soft_cap
        self._context = parallel_state.get_context_parallel_group()

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
            query: [T, 1, H, D]
            key: [T, 1, K, D]; if K < H, each key head serves H / K query heads.
            value: [T, 1, K, E]

        Returns:
            [T, 1, H * E]
        """
        runs, size = packed_seq_params.runs, self._context.size()
        together: list[Tensor] = []
        if shared := packed_seq_params.shared:
            first = sum(one.num_tokens for one in shared)
            parts = ((x[:first]).split([one.num_tokens for one in shared]) for x in (query, key, value))
            together = [self._attend_shared(*part) for part in zip(shared, *parts, strict=True)]
            query, key, value = query[first:], key[first:], value[first:]
        if size > 1:
            key, value = self._gather(key, value)
        sizes = [count * length // size for count, length in runs]
        axis = 0 if size == 1 else 1
        parts = zip(runs, query.split(sizes), key.split(sizes, axis), value.split(sizes, axis), strict=True)
        attend = self._attend if size == 1 else self._attend_over_ranks
        return torch.cat([*together, *(attend(*run, q, k, v) for run, q, k, v in parts)])

    def _attend_shared(self, shared: SharedPrompt, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of a prompt inside itself, and of each answer over the prompt and itself."""
        before = shared.prompt
        found = [self._attend(1, before, query[:before], key[:before], value[:before])]
        prompt_1KPD, prompt_1KPE = (x[:before].permute(1, 2, 0, 3) for x in (key, value))
        at = before
        for count, length in shared.answers:
            own = (x[at : at + count * length] for x in (query, key, value))
            query_BHQD, key_BKQD, value_BKQE = (
                x.reshape(count, length, *x.shape[2:]).transpose(1, 2) for x in own
            )
            key_BKLD = torch.cat([prompt_1KPD.expand(count, -1, -1, -1), key_BKQD], dim=2)
            value_BKLE = torch.cat([prompt_1KPE.expand(count, -1, -1, -1), value_BKQE], dim=2)
            out_BHQE = self._product(query_BHQD, key_BKLD, value_BKLE, first=before)
            found.append(out_BHQE.transpose(1, 2).reshape(count * length, 1, -1))
            at += count * length
        return torch.cat(found)

    def _gather(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all ranks, [cp, T, 1, K, D] and [cp, T, 1, K, E], gathered in one call."""
        together = torch.cat([key.flatten(1), value.flatten(1)], dim=1)
        split = [key[0].numel(), value[0].numel()]
        keys, values = gather_tokens(together, self._context).split(split, dim=2)
        return keys.unflatten(2, key.shape[1:]), values.unflatten(2, value.shape[1:])

    def _attend(self, count: int, length: int, *query_key_value: Tensor) -> Tensor:
        heads = (x.reshape(count, length, *x.shape[2:]).transpose(1, 2) for x in query_key_value)
        out_BHLE = self._product(*heads, first=0)
        return out_BHLE.transpose(1, 2).reshape(count * length, 1, -1)

    def _attend_over_ranks(
        self, count: int, length: int, query: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Attention of this rank's two chunks of each sequence over all keys up to the end of each chunk."""
        size, chunk = self._context.size(), length // (2 * self._context.size())
        query_BH2QD = query.view(count, 2, chunk, *query.shape[2:]).permute(0, 3, 1, 2, 4)
        key_BKLD, value_BKLE = (in_order(x, count, length).squeeze(2).transpose(1, 2) for x in (keys, values))
        outs = []
        for i, number in enumerate(chunks_of(self._context.rank(), size)):
            first, end = number * chunk, (number + 1) * chunk
            seen = (key_BKLD[:, :, :end], value_BKLE[:, :, :end])
            outs.append(self._product(query_BH2QD[:, :, i], *seen, first=first).transpose(1, 2))
        return torch.stack(outs, dim=1).reshape(2 * count * chunk, 1, -1)

    def _product(self, query_BHQD: Tensor, key_BKLD: Tensor, value_BKLE: Tensor, *, first: int) -> Tensor:
        """Attention of queries at positions `first` and up over keys at positions 0 and up, [B, H, Q, E]."""
        num_queries, num_keys = query_BHQD.shape[2], key_BKLD.shape[2]
        visible_QL = _visible(num_queries, num_keys, first, self._window, query_BHQD.device)
        scale = query_BHQD.shape[3] ** -0.5 if self._scale is None else self._scale
        if self._soft_cap is not None:
            return _capped(query_BHQD, key_BKLD, value_BKLE, visible_QL, scale, self._soft_cap)
        plain = first == 0 and (self._window is None or num_keys <= self._window)
        return F.scaled_dot_product_attention(
            query_BHQD,
            key_BKLD,
            value_BKLE,
            attn_mask=None if plain else visible_QL,
            is_causal=plain,
            scale=scale,
            enable_gqa=query_BHQD.shape[1] != key_BKLD.shape[1],
        )


def _visible(num_queries: int, num_keys: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """Mask of the keys that each query attends to; bool [Q, L].

    Queries have positions from `first` on, keys from 0 on.
    """
    at_Q = torch.arange(first, first + num_queries, device=device)
    back_QL = at_Q.unsqueeze(1) - torch.arange(num_keys, device=device)
    return back_QL >= 0 if window is None else (back_QL >= 0) & (back_QL < window)


def _capped(
    query_BHQD: Tensor,
    key_BKLD: Tensor,
    value_BKLE: Tensor,
    visible_QL: Tensor,
    scale: float,
    soft_cap: float,
) -> Tensor:
    """Attention with a soft cap, which torch's own function lacks. It materialises all scores."""
    served = query_BHQD.shape[1] // key_BKLD.shape[1]
    key_BHLD, value_BHLE = (x.repeat_interleave(served, dim=1) for x in (key_BKLD, value_BKLE))
    score_BHQL = (query_BHQD @ key_BHLD.mT) * scale
    score_BHQL = soft_cap * torch.tanh(score_BHQL / soft_cap)
    score_BHQL = score_BHQL.masked_fill(~visible_QL, -torch.inf)
    return score_BHQL.softmax(-1, dtype=torch.float32).to(value_BHLE.dtype) @ value_BHLE
