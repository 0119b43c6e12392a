"""Causal attention inside each packed sequence, as an attention function that transformers' modules call.

No mask is made: there is one call for every run of sequences of equal length. Context-parallel ranks either
exchange tokens for heads, and then attend over whole sequences with some heads (Ulysses, arXiv:2309.14509),
or they gather all keys and values, and attend with their own queries.
Shape letters: T packed tokens of this rank, H query heads, K key heads, D size of a head, B sequences of
equal length, L that length, Q queries of a chunk.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from hybridrl.trainer.context import (
    chunks_of,
    gather_tokens,
    heads_for_tokens,
    in_chunks,
    in_order,
    tokens_for_heads,
)

NAME = "hybridrl_packed"
"""The attn_implementation of a model whose forward pass is given `runs`."""

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Context:
    """How the ranks that share sequences compute attention together."""

    group: dist.ProcessGroup
    exchange: Literal["heads", "keys"]


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    runs: Runs,
    context: Context | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """*Collective* over the ranks of `context`, if there are several.

    Args:
        sliding_window: a token attends to itself and the sliding_window - 1 tokens before it; None: to all.
        runs: as packing.Packing has it.

    Returns:
        [1, T, H, D], and no attention weights.
    """
    qkv = _QKV(*(x.squeeze(0).transpose(0, 1) for x in (query_1HTD, key_1KTD, value_1KTD)))
    rule = _Rule(scaling, sliding_window)
    if context is None or context.group.size() == 1:
        out_THD = _over_runs(runs, qkv, rule)
    elif context.exchange == "heads":
        out_THD = _with_some_heads(runs, qkv, rule, context.group)
    else:
        out_THD = _with_own_queries(runs, qkv, rule, context.group)
    return out_THD.unsqueeze(0), None


class _QKV(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor


class _Rule(NamedTuple):
    """Whom a token attends to, and how scores are scaled."""

    scale: float | None
    window: int | None


def _over_runs(runs: Runs, qkv: _QKV, rule: _Rule) -> Tensor:
    """Attention of whole sequences, [T, H, D]."""
    parts = zip(runs, *(x.split([count * length for count, length in runs]) for x in qkv), strict=True)
    outs = [_product(_QKV(*(x.unflatten(0, run) for x in part)), rule).flatten(0, 1) for run, *part in parts]
    return torch.cat(outs)


def _with_some_heads(runs: Runs, qkv: _QKV, rule: _Rule, group: dist.ProcessGroup) -> Tensor:
    """Attention of whole sequences with a part of the heads, exchanged for all heads, [T, H, D]."""
    size = group.size()
    parts = (heads_for_tokens(x, group).split(_sizes(runs, size), 1) for x in qkv)
    outs = [
        _product(_QKV(*(in_order(x, *run) for x in part)), rule)
        for run, *part in zip(runs, *parts, strict=True)
    ]
    return tokens_for_heads(torch.cat([in_chunks(out, size) for out in outs], dim=1), group)


def _with_own_queries(runs: Runs, qkv: _QKV, rule: _Rule, group: dist.ProcessGroup) -> Tensor:
    """Attention of this rank's two chunks of each sequence over all keys up to the end of each chunk,
    [T, H, D]."""
    size, sizes = group.size(), _sizes(runs, group.size())
    together = gather_tokens(torch.cat([qkv.key, qkv.value], dim=1), group)
    outs = []
    for (count, length), own, kv in zip(runs, qkv.query.split(sizes), together.split(sizes, 1), strict=True):
        key_BLKD, value_BLKD = in_order(kv, count, length).chunk(2, dim=2)
        query_B2QHD, chunk = own.unflatten(0, (count, 2, length // (2 * size))), length // (2 * size)
        for i, number in enumerate(chunks_of(group.rank(), size)):
            seen = (x[:, : (number + 1) * chunk] for x in (key_BLKD, value_BLKD))
            outs.append(_product(_QKV(query_B2QHD[:, i], *seen), rule, first=number * chunk))
    pairs = (torch.stack(pair, dim=1).flatten(0, 2) for pair in zip(outs[::2], outs[1::2], strict=True))
    return torch.cat(list(pairs))


def _sizes(runs: Runs, num_ranks: int) -> list[int]:
    """This rank's tokens of each run."""
    return [count * length // num_ranks for count, length in runs]


def _product(qkv: _QKV, rule: _Rule, *, first: int = 0) -> Tensor:
    """Attention of queries at positions `first` and up over keys at positions 0 and up, [B, Q, H, D].

    Args:
        qkv: [B, Q, H, D], [B, L, K, D] and [B, L, K, D].
    """
    num_queries, num_keys = qkv.query.shape[1], qkv.key.shape[1]
    plain = first == 0 and (rule.window is None or num_keys <= rule.window)
    out_BHQD = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in qkv),
        attn_mask=None if plain else _visible(num_queries, num_keys, first, rule.window, qkv.query.device),
        is_causal=plain,
        scale=rule.scale,
        enable_gqa=qkv.query.shape[2] != qkv.key.shape[2],
    )
    return out_BHQD.transpose(1, 2)


def _visible(num_queries: int, num_keys: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """Mask of the keys that each query attends to; bool [Q, L]."""
    at_Q = torch.arange(first, first + num_queries, device=device)
    back_QL = at_Q.unsqueeze(1) - torch.arange(num_keys, device=device)
    return back_QL >= 0 if window is None else (back_QL >= 0) & (back_QL < window)


def _no_mask(*args: Any, **options: Any) -> None:
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
