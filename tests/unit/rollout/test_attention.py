"""Batched attention against attention written out for one token at a time."""

import pytest
import torch

from hybridrl.rollout.sglang import attention
from hybridrl.rollout.sglang.attention import attend, chunks, planned


def requests(prefix, extend, *, heads, kv_heads, head_size=8, seed=0):
    """Queries, caches and slots of requests whose tokens lie scattered over the cache."""
    generator = torch.Generator().manual_seed(seed)
    prefix, extend = torch.tensor(prefix), torch.tensor(extend)
    length = prefix + extend
    num_slots = int(length.sum())
    slot = torch.full((len(length), int(length.max()) + 3), num_slots + 7, dtype=torch.int32)
    places = torch.randperm(num_slots, generator=generator).split(length.tolist())
    for row, place in enumerate(places):
        slot[row, : len(place)] = place
    query = torch.randn(int(extend.sum()), heads, head_size, generator=generator)
    key, value = (torch.randn(num_slots, kv_heads, head_size, generator=generator) for _ in range(2))
    return query, key, value, slot, prefix, extend


def attended(query, key, value, slot, prefix, extend, scaling):
    """Attention with a plan of its own."""
    plan = planned(slot, prefix, extend, key_elements=key[0].numel(), dtype=query.dtype)
    return attend(query, torch.full_like(query, torch.nan), key, value, plan, scaling)


def written_out(query, key, value, slot, prefix, extend, scaling):
    output, group, token = torch.empty_like(query), query.shape[1] // key.shape[1], 0
    for row in range(len(prefix)):
        for i in range(int(extend[row])):
            seen = slot[row, : int(prefix[row]) + i + 1].long()
            for head in range(query.shape[1]):
                score = key[seen, head // group] @ query[token, head] * scaling
                output[token, head] = score.softmax(0) @ value[seen, head // group]
            token += 1
    return output


CASES = {
    "decode": ([0, 3, 8, 1, 5], [1] * 5),
    "prefill": ([0] * 5, [4, 1, 7, 2, 2]),
    "prefill_after_prefixes": ([3, 0, 9, 1], [2, 5, 1, 4]),
    "one_request": ([0], [6]),
    "one_request_with_a_prefix": ([4], [3]),
    "long_and_short": ([0, 40, 0, 2], [30, 1, 2, 25]),
}


@pytest.mark.parametrize("limit", [1 << 4, 1 << 9, 1 << 18])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("case", CASES)
def test_attention_equals_attention_written_out(case, heads, kv_heads, limit, monkeypatch):
    monkeypatch.setattr(attention, "_KEY_ELEMENTS", limit * 16)
    monkeypatch.setattr(attention, "_SCORE_ELEMENTS", limit)
    inputs = requests(*CASES[case], heads=heads, kv_heads=kv_heads)
    torch.testing.assert_close(attended(*inputs, 0.3), written_out(*inputs, 0.3), rtol=0, atol=2e-6)


def test_a_cache_of_another_dtype_is_read_as_the_queries_are():
    query, key, value, *rest = requests([2, 0], [1, 3], heads=2, kv_heads=1)
    found = attended(query, key.bfloat16(), value.bfloat16(), *rest, 0.3)
    expected = written_out(query, key.bfloat16().float(), value.bfloat16().float(), *rest, 0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_every_request_is_in_one_chunk_and_chunks_are_within_limits():
    keys = [3, 900, 17, 17, 1, 64, 900, 2]
    found = list(chunks([1] * 8, keys, key_elements=64))
    assert sorted(row for chunk in found for row in chunk) == list(range(8))
    for chunk in found:
        assert len(chunk) == 1 or len(chunk) * max(keys[row] for row in chunk) * 64 <= attention._KEY_ELEMENTS


def test_a_thousand_short_requests_are_few_chunks():
    assert len(list(chunks([1] * 1024, [6] * 1024, key_elements=32))) == 1
