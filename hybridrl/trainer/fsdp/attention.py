"""Causal attention inside each packed sequence, as an attention function that transformers' modules call.

No mask is made: there is one call for every run of sequences of equal length.
Shape letters: T packed tokens, H query heads, K key heads, D size of a head, B sequences of equal length, L
that length.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "hybridrl_packed"
"""The attn_implementation of a model whose forward pass is given `runs`."""


def packed_attention(
    module: torch.nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    runs: tuple[tuple[int, int], ...],
    **unused: Any,
) -> tuple[Tensor, None]:
    """
    Args:
        sliding_window: a token attends to itself and the sliding_window - 1 tokens before it; None: to all.
        runs: as packing.Packing has it.

    Returns:
        [1, T, H, D], and no attention weights.
    """
    sizes = [count * length for count, length in runs]
    queries, keys, values = (x.squeeze(0).split(sizes, dim=1) for x in (query_1HTD, key_1KTD, value_1KTD))
    parts = zip(runs, queries, keys, values, strict=True)
    outs = [_attend(run, query, key, value, scaling, sliding_window) for run, query, key, value in parts]
    return torch.cat(outs).unsqueeze(0), None


def _attend(
    run: tuple[int, int],
    query_HTD: Tensor,
    key_KTD: Tensor,
    value_KTD: Tensor,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Attention of one run of sequences, [T, H, D]."""
    query_BHLD, key_BKLD, value_BKLD = (
        x.unflatten(1, run).transpose(0, 1) for x in (query_HTD, key_KTD, value_KTD)
    )
    grouped = query_BHLD.shape[1] != key_BKLD.shape[1]
    mask_LL = None if window is None or run[1] <= window else _band(run[1], window, query_HTD.device)
    out_BHLD = F.scaled_dot_product_attention(
        query_BHLD,
        key_BKLD,
        value_BKLD,
        attn_mask=mask_LL,
        is_causal=mask_LL is None,
        scale=scale,
        enable_gqa=grouped,
    )
    return out_BHLD.transpose(1, 2).flatten(0, 1)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Which keys a token sees, [L, L]: itself and the window - 1 before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _no_mask(*args: Any, **options: Any) -> None:
    return None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
