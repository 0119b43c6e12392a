"""Attention for SGLang's CPU engine that computes many requests at a time; SGLang's own loops over requests.

Requests of similar length form a chunk, are padded to the longest of it and computed together.

Shape letters: R requests, T query tokens of all requests, concatenated; in a chunk B requests with Q queries
and S keys each, padded; N query heads, H key-value heads, D head size; V cache slots.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_KEY_ELEMENTS = 1 << 18
"""Largest number of key elements in a chunk, so that they fit into a core's cache."""

_SCORE_ELEMENTS = 1 << 14
"""Largest number of scores of one head in a chunk. Larger requests are faster alone, without a mask."""


def attend(
    query_TND: Tensor,
    output_TND: Tensor,
    key_VHD: Tensor,
    value_VHD: Tensor,
    slot_RS: Tensor,
    prefix_R: Tensor,
    extend_R: Tensor,
    scaling: float | None,
) -> Tensor:
    """Causal attention of each request's last `extend` tokens over all its tokens.

    Args:
        output_TND: written in place, and returned.
        slot_RS: cache slots of the keys and values of each request's tokens; any values past its end.
        prefix_R: number of tokens of each request before its queries.
        extend_R: number of queries of each request.
    """
    length_R = prefix_R + extend_R
    first_R = extend_R.cumsum(0) - extend_R
    for rows in chunks(extend_R.tolist(), length_R.tolist(), key_VHD[0].numel()):
        prefix_B, extend_B, first_B = prefix_R[rows, None], extend_R[rows, None], first_R[rows, None]
        query_Q = torch.arange(int(extend_B.max()))
        key_S = torch.arange(int(length_R[rows].max()))
        # A padded query repeats the last one, so that no row of scores is fully masked; it is dropped below.
        position_BQ = torch.minimum(query_Q, extend_B - 1)
        token_BQ = first_B + position_BQ
        slot_BS = slot_RS[rows, : len(key_S)].masked_fill(key_S >= length_R[rows, None], 0)
        key_BHSD = _gathered(key_VHD, slot_BS).to(query_TND.dtype).transpose(1, 2)
        value_BHSD = _gathered(value_VHD, slot_BS).to(query_TND.dtype).transpose(1, 2)
        seen_BQS = None
        if len(rows) > 1 or int(prefix_B):
            seen_BQS = key_S <= (prefix_B + position_BQ)[:, :, None]
        result_BQND = _attend_chunk(_gathered(query_TND, token_BQ), key_BHSD, value_BHSD, seen_BQS, scaling)
        kept_BQ = query_Q < extend_B
        output_TND[token_BQ[kept_BQ]] = result_BQND[kept_BQ]
    return output_TND


def _gathered(rows: Tensor, index: Tensor) -> Tensor:
    """Same as rows[index], but index_select is ten times as fast."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)


def _attend_chunk(
    query_BQND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, seen_BQS: Tensor | None, scaling: float | None
) -> Tensor:
    num_queries, num_heads, head_size = query_BQND.shape[1:]
    num_kv_heads = key_BHSD.shape[1]
    if num_queries == 1:
        # Query heads of one key-value head become rows of one product, so keys and values are not repeated.
        grouped = query_BQND.reshape(-1, num_kv_heads, num_heads // num_kv_heads, head_size)
        mask = None if seen_BQS is None else seen_BQS[:, None]
        result = scaled_dot_product_attention(grouped, key_BHSD, value_BHSD, attn_mask=mask, scale=scaling)
        return result.reshape(query_BQND.shape)
    result_BNQD = scaled_dot_product_attention(
        query_BQND.transpose(1, 2),
        key_BHSD,
        value_BHSD,
        attn_mask=None if seen_BQS is None else seen_BQS[:, None],
        is_causal=seen_BQS is None,
        scale=scaling,
        enable_gqa=num_heads != num_kv_heads,
    )
    return result_BNQD.transpose(1, 2)


def chunks(num_queries: Sequence[int], num_keys: Sequence[int], key_elements: int) -> Iterator[list[int]]:
    """Groups of requests that are computed together: of similar length, within the limits, at least one each.

    Args:
        key_elements: elements of one token's keys over all heads.
    """
    chunk: list[int] = []
    longest_queries = longest_keys = 0
    for row in sorted(range(len(num_keys)), key=num_keys.__getitem__, reverse=True):
        queries, keys = max(longest_queries, num_queries[row]), max(longest_keys, num_keys[row])
        size = (len(chunk) + 1) * keys
        if chunk and (size * key_elements > _KEY_ELEMENTS or size * queries > _SCORE_ELEMENTS):
            yield chunk
            chunk, queries, keys = [], num_queries[row], num_keys[row]
        chunk.append(row)
        longest_queries, longest_keys = queries, keys
    if chunk:
        yield chunk
