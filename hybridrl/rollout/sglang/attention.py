"""Attention for SGLang's CPU engine that computes many requests at a time; SGLang's own loops over requests.

Requests of similar length form a chunk, are padded to the longest of it and computed together. All layers of
a forward pass have the same chunks, so `planned` makes them once and `attend` uses them in each layer.

Shape letters: R requests, T query tokens of all requests, concatenated; in a chunk B requests with Q queries
and S keys each, padded; X those queries or keys in one row, W the queries among them that are no padding; N
query heads, H key-value heads, D head size; V cache slots.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_KEY_ELEMENTS = 1 << 18
"""Largest number of key elements in a chunk, so that they fit into a core's cache."""

_SCORE_ELEMENTS = 1 << 14
"""Largest number of scores of one head in a chunk. Larger requests are faster alone, without a mask."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Requests that are computed together."""

    size: int
    """Number of requests."""

    slot_X: Tensor
    """Cache slots of the keys; a padded key has slot 0."""

    token_X: Tensor
    """Indices of the queries. A padded query repeats the last one, so that no row of scores is masked."""

    mask_BQS: Tensor | None
    """0 where a query sees a key and -inf elsewhere; None: one request without a prefix, causal."""

    written_W: Tensor
    """Indices of the queries that are no padding."""

    kept_W: Tensor | None
    """Their places in token_X; None: there is no padding."""


def planned(
    slot_RS: Tensor, prefix_R: Tensor, extend_R: Tensor, *, key_elements: int, dtype: torch.dtype
) -> list[Chunk]:
    """The chunks for causal attention of each request's last `extend` tokens over all its tokens.

    Args:
        slot_RS: cache slots of the keys and values of each request's tokens; any values past its end.
        prefix_R: number of tokens of each request before its queries.
        extend_R: number of queries of each request.
        key_elements: elements of one token's keys over all heads.
        dtype: that of the queries.
    """
    length_R = prefix_R + extend_R
    first_R = extend_R.cumsum(0) - extend_R
    rows = chunks(extend_R.tolist(), length_R.tolist(), key_elements)
    return [_chunk(slot_RS[of], prefix_R[of], extend_R[of], first_R[of], dtype) for of in rows]


def _chunk(slot_BS: Tensor, prefix_B: Tensor, extend_B: Tensor, first_B: Tensor, dtype: torch.dtype) -> Chunk:
    """
    Args:
        first_B: index of each request's first query.
    """
    length_B = prefix_B + extend_B
    query_Q, key_S = torch.arange(int(extend_B.max())), torch.arange(int(length_B.max()))
    position_BQ = torch.minimum(query_Q, extend_B[:, None] - 1)
    token_BQ = first_B[:, None] + position_BQ
    kept_BQ = query_Q < extend_B[:, None]
    slot_BS = slot_BS[:, : len(key_S)].masked_fill(key_S >= length_B[:, None], 0)
    mask_BQS = None
    if len(length_B) > 1 or int(prefix_B):
        seen_BQS = key_S <= (prefix_B[:, None] + position_BQ)[:, :, None]
        mask_BQS = torch.zeros(seen_BQS.shape, dtype=dtype).masked_fill_(~seen_BQS, -torch.inf)
    return Chunk(
        size=len(length_B),
        slot_X=slot_BS.flatten(),
        token_X=token_BQ.flatten(),
        mask_BQS=mask_BQS,
        written_W=token_BQ[kept_BQ],
        kept_W=None if bool(kept_BQ.all()) else kept_BQ.flatten().nonzero().flatten(),
    )


def attend(
    query_TND: Tensor,
    output_TND: Tensor,
    key_VHD: Tensor,
    value_VHD: Tensor,
    plan: Sequence[Chunk],
    scaling: float | None,
) -> Tensor:
    """Attention of the requests of a plan.

    Args:
        output_TND: written in place, and returned.
    """
    for chunk in plan:
        key_BHSD = _gathered(key_VHD, chunk.slot_X, chunk.size, query_TND.dtype).transpose(1, 2)
        value_BHSD = _gathered(value_VHD, chunk.slot_X, chunk.size, query_TND.dtype).transpose(1, 2)
        query_BQND = _gathered(query_TND, chunk.token_X, chunk.size, query_TND.dtype)
        result_XND = _attend_chunk(query_BQND, key_BHSD, value_BHSD, chunk.mask_BQS, scaling).flatten(0, 1)
        if chunk.kept_W is not None:
            result_XND = result_XND.index_select(0, chunk.kept_W)
        output_TND.index_copy_(0, chunk.written_W, result_XND)
    return output_TND


def _gathered(rows: Tensor, index_X: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Same as rows[index_X] in `size` equal parts, but index_select is ten times as fast."""
    return rows.index_select(0, index_X).unflatten(0, (size, -1)).to(dtype)


def _attend_chunk(
    query_BQND: Tensor, key_BHSD: Tensor, value_BHSD: Tensor, mask_BQS: Tensor | None, scaling: float | None
) -> Tensor:
    num_queries, num_heads, head_size = query_BQND.shape[1:]
    num_kv_heads = key_BHSD.shape[1]
    mask = None if mask_BQS is None else mask_BQS[:, None]
    if num_queries == 1:
        # Query heads of one key-value head become rows of one product, so keys and values are not repeated.
        grouped = query_BQND.reshape(-1, num_kv_heads, num_heads // num_kv_heads, head_size)
        result = scaled_dot_product_attention(grouped, key_BHSD, value_BHSD, attn_mask=mask, scale=scaling)
        return result.reshape(query_BQND.shape)
    result_BNQD = scaled_dot_product_attention(
        query_BQND.transpose(1, 2),
        key_BHSD,
        value_BHSD,
        attn_mask=mask,
        is_causal=mask is None,
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
