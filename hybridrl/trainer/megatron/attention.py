"""Causal attention inside each packed sequence, with one call for every run of sequences of equal length.

Under context parallelism every rank gathers all keys and values, and computes the outputs of its own queries.
Shape letters: T packed tokens of this rank, H query heads, K key heads, D size of a query or key head, E size
of a value head, B sequences of equal length, L that length, Q queries of each sequence.
"""

from collections.abc import Iterator, Sequence
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
        size = self._context.size()
        if size > 1:
            key, value = self._gather(key, value)
        found: list[Tensor] = []
        pieces = (*packed_seq_params.shared, *packed_seq_params.runs)
        sizes = [_num_tokens(piece) // size for piece in pieces]
        for piece, *own in zip(pieces, *self._split(sizes, query, key, value), strict=True):
            if isinstance(piece, SharedPrompt):
                found += self._attend_shared(piece, *own)
            else:
                found.append(self._attend(*piece, *own))
        return torch.cat(found)

    def _attend_shared(
        self, shared: SharedPrompt, query: Tensor, key: Tensor, value: Tensor
    ) -> Iterator[Tensor]:
        """Attention of a prompt inside itself, and of each answer over the prompt and itself."""
        runs = ((1, shared.prompt + shared.filler), *shared.answers)
        sizes = [_num_tokens(run) // self._context.size() for run in runs]
        prompt: tuple[Tensor, ...] = ()
        for run, *own in zip(runs, *self._split(sizes, query, key, value), strict=True):
            yield self._attend(*run, *own, prompt=prompt)
            prompt = prompt or tuple(self._whole(x, *run)[:, :, : shared.prompt] for x in own[1:])

    def _split(self, sizes: Sequence[int], query: Tensor, *key_value: Tensor) -> list[Sequence[Tensor]]:
        """The parts of query, key and value that have `sizes` tokens of each rank."""
        axis = 0 if self._context.size() == 1 else 1
        return [query.split(sizes), *(x.split(sizes, axis) for x in key_value)]

    def _gather(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all ranks, [cp, T, 1, K, D] and [cp, T, 1, K, E], gathered in one call."""
        together = torch.cat([key.flatten(1), value.flatten(1)], dim=1)
        split = [key[0].numel(), value[0].numel()]
        keys, values = gather_tokens(together, self._context).split(split, dim=2)
        return keys.unflatten(2, key.shape[1:]), values.unflatten(2, value.shape[1:])

    def _attend(
        self,
        count: int,
        length: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        prompt: Sequence[Tensor] = (),
    ) -> Tensor:
        """Attention of this rank's queries of each sequence, all or two chunks, over all keys up to the end
        of each chunk.

        Args:
            prompt: key and value of a prompt that all sequences continue, [1, K, L, D] and [1, K, L, E];
                empty: there is none.
        """
        rank, size = self._context.rank(), self._context.size()
        key_BKLD, value_BKLE = (self._whole(x, count, length) for x in (key, value))
        before = 0
        if prompt:
            before = prompt[0].shape[2]
            key_BKLD, value_BKLE = (
                torch.cat([first.expand(count, -1, -1, -1), own], dim=2)
                for first, own in zip(prompt, (key_BKLD, value_BKLE), strict=True)
            )
        numbers, chunk = ((0,), length) if size == 1 else (chunks_of(rank, size), length // (2 * size))
        query_BCQHD = query.reshape(count, len(numbers), chunk, *query.shape[2:])
        outs = []
        for i, number in enumerate(numbers):
            first, end = before + number * chunk, before + (number + 1) * chunk
            seen = (key_BKLD[:, :, :end], value_BKLE[:, :, :end])
            outs.append(self._product(query_BCQHD[:, i].transpose(1, 2), *seen, first=first).transpose(1, 2))
        out = outs[0] if size == 1 else torch.stack(outs, dim=1)
        return out.reshape(count * len(numbers) * chunk, 1, -1)

    def _whole(self, x: Tensor, count: int, length: int) -> Tensor:
        """Keys or values of whole sequences [B, K, L, D], from those of this rank or of all ranks."""
        if self._context.size() == 1:
            return x.reshape(count, length, *x.shape[2:]).transpose(1, 2)
        return in_order(x, count, length).squeeze(2).transpose(1, 2)

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


def _num_tokens(piece: SharedPrompt | tuple[int, int]) -> int:
    return piece.num_tokens if isinstance(piece, SharedPrompt) else piece[0] * piece[1]


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
