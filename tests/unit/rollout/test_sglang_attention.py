"""SGLang's attention backend as its eager runner calls it, over several forward passes and layers."""

import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType
from torch import Tensor

from hybridrl.rollout.sglang import hooks
from hybridrl.rollout.sglang.attention import attend, planned
from hybridrl.rollout.sglang.hooks import BatchedAttention

NUM_LAYERS, MOST_REQUESTS, MOST_TOKENS, HEADS, HEAD_SIZE = 3, 8, 40, 4, 8
KV_HEADS = (2, 2, 1)
"""Key-value heads of each layer. Layers of different sizes have plans of their own."""


class Pools:
    """Both pools of a model runner: the slots of each request's tokens, and keys and values by slot."""

    def __init__(self) -> None:
        slots = torch.randperm(MOST_REQUESTS * MOST_TOKENS)
        self.req_to_token = slots.reshape(MOST_REQUESTS, MOST_TOKENS).int()
        shapes = [(len(slots), heads, HEAD_SIZE) for heads in KV_HEADS]
        self.keys, self.values = ([torch.randn(shape) for shape in shapes] for _ in range(2))

    def set_kv_buffer(self, layer, loc, key, value) -> None:
        self.keys[layer.layer_id][loc.loc], self.values[layer.layer_id][loc.loc] = key, value

    def get_key_buffer(self, layer: int) -> Tensor:
        return self.keys[layer]

    def get_value_buffer(self, layer: int) -> Tensor:
        return self.values[layer]


@dataclass(kw_only=True)
class Batch:
    """The fields of a ForwardBatch that the backend reads."""

    req_pool_indices: Tensor
    seq_lens: Tensor
    out_cache_loc: Tensor
    extend_prefix_lens: Tensor | None = None
    extend_seq_lens: Tensor | None = None
    encoder_lens: None = None


class Runner:
    """Computes forward passes as SGLang's eager runner does: lengths are in buffers that it fills again."""

    def __init__(self) -> None:
        self.pools = Pools()
        self.backend = BatchedAttention(
            SimpleNamespace(device="cpu", req_to_token_pool=self.pools, token_to_kv_pool=self.pools)
        )
        self._request, self._length = (torch.zeros(MOST_REQUESTS, dtype=torch.int64) for _ in range(2))

    def batch(self, request: list[int], prefix: list[int], extend: list[int] | None) -> Batch:
        """
        Args:
            extend: queries of each request; None: a decode, in which the last token of `prefix` is the query.
        """
        size, longer = len(request), extend or [0] * len(request)
        self._request[:size] = torch.tensor(request)
        self._length[:size] = torch.tensor(prefix) + torch.tensor(longer)
        rows = zip(request, prefix, longer, strict=True)
        table = self.pools.req_to_token
        out = [
            table[row, first : first + more] if extend else table[row, first - 1 : first]
            for row, first, more in rows
        ]
        lengths = {"extend_prefix_lens": torch.tensor(prefix), "extend_seq_lens": torch.tensor(longer)}
        return Batch(
            req_pool_indices=self._request[:size],
            seq_lens=self._length[:size],
            out_cache_loc=torch.cat(out).long(),
            **(lengths if extend else {}),
        )

    def layer(self, batch: Batch, layer: int) -> tuple[Tensor, Tensor]:
        """Attention of one layer, and what a plan made for this call alone gives."""
        tokens, heads = len(batch.out_cache_loc), KV_HEADS[layer]
        query = torch.randn(tokens, HEADS * HEAD_SIZE)
        key, value = (torch.randn(tokens, heads, HEAD_SIZE) for _ in range(2))
        of = SimpleNamespace(
            layer_id=layer,
            qk_head_dim=HEAD_SIZE,
            v_head_dim=HEAD_SIZE,
            tp_q_head_num=HEADS,
            tp_k_head_num=heads,
            is_cross_attention=False,
            attn_type=AttentionType.DECODER,
            scaling=0.3,
            sliding_window_size=None,
        )
        extends = batch.extend_seq_lens is not None
        forward = self.backend.forward_extend if extends else self.backend.forward_decode
        found = forward(query, key, value, of, batch)
        one = torch.ones_like(batch.seq_lens)
        plan = planned(
            self.pools.req_to_token[batch.req_pool_indices],
            batch.extend_prefix_lens if extends else batch.seq_lens - one,
            batch.extend_seq_lens if extends else one,
            key_elements=heads * HEAD_SIZE,
            dtype=query.dtype,
        )
        rows = query.view(tokens, HEADS, HEAD_SIZE)
        caches = self.pools.keys[layer], self.pools.values[layer]
        return found, attend(rows, torch.empty_like(rows), *caches, plan, 0.3).flatten(1)


def ragged(draw: random.Random) -> tuple[list[int], list[int], list[int] | None]:
    """Requests of a random batch, with or without prefixes."""
    request = draw.sample(range(MOST_REQUESTS), draw.randint(1, MOST_REQUESTS))
    if draw.random() < 0.5:
        return request, [draw.randint(1, MOST_TOKENS) for _ in request], None
    least = draw.choice((0, 1))
    prefix = [least * draw.randint(0, MOST_TOKENS // 2) for _ in request]
    return request, prefix, [draw.randint(1, MOST_TOKENS // 2) for _ in request]


@pytest.mark.parametrize("seed", range(20))
def test_layers_share_a_plan_and_forward_passes_do_not(seed, monkeypatch):
    torch.manual_seed(seed)
    draw, runner, made = random.Random(seed), Runner(), []

    def counted(*args, **options):
        made.append(options["key_elements"])
        return planned(*args, **options)

    monkeypatch.setattr(hooks, "planned", counted)
    for _ in range(6):
        batch = runner.batch(*ragged(draw))
        runner.backend.init_forward_metadata(batch)
        made.clear()
        for layer in range(NUM_LAYERS):
            found, expected = runner.layer(batch, layer)
            assert torch.equal(found, expected)
        assert made == [2 * HEAD_SIZE, HEAD_SIZE]


def test_another_batch_gets_another_plan_even_if_its_pass_was_not_announced():
    runner = Runner()
    for lengths in ([3, 9], [9, 4]):
        batch = runner.batch([1, 0], lengths, None)
        found, expected = runner.layer(batch, 0)
        assert torch.equal(found, expected)
