"""Attention over packed sequences is attention over each of them."""

import pytest
import torch
import torch.nn.functional as F

from hybridrl.trainer.fsdp.attention import packed_attention

RUNS = ((2, 3), (1, 5), (3, 1))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_no_token_sees_another_sequence(key_heads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    num_tokens = sum(count * length for count, length in RUNS)
    query, key, value = (
        torch.randn(1, heads, num_tokens, 8, generator=draw) for heads in (4, key_heads, key_heads)
    )
    found, weights = packed_attention(torch.nn.Module(), query, key, value, None, scaling=0.3, runs=RUNS)
    assert weights is None and found.shape == (1, num_tokens, 4, 8)
    key, value = (x.repeat_interleave(4 // key_heads, dim=1) for x in (key, value))
    first = 0
    for length in (length for count, length in RUNS for _ in range(count)):
        here = slice(first, first + length)
        expected = F.scaled_dot_product_attention(
            query[:, :, here], key[:, :, here], value[:, :, here], is_causal=True, scale=0.3
        )
        torch.testing.assert_close(found[:, here], expected.transpose(1, 2))
        first += length


@pytest.mark.parametrize("window", [1, 2, 4, 5, 9])
def test_a_window_hides_what_is_further_back(window: int) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 14, 8, generator=draw) for _ in range(3))
    found, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, sliding_window=window, runs=((2, 2), (2, 5))
    )
    for here in (slice(0, 2), slice(2, 4), slice(4, 9), slice(9, 14)):
        for token in range(here.start, here.stop):
            seen = slice(max(here.start, token - window + 1), token + 1)
            expected = F.scaled_dot_product_attention(
                query[:, :, token : token + 1], key[:, :, seen], value[:, :, seen]
            )
            torch.testing.assert_close(found[:, token], expected[:, :, 0])
