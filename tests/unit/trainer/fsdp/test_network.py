"""The network of transformers' modules, and which of its weights a tensor-parallel rank has a part of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from model_values import tiny
from transformers import Qwen3Config

from hybridrl.config.training import TrainParallel
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.fsdp import FSDPLayout, exchange_of
from hybridrl.trainer.fsdp import backend, network
from hybridrl.trainer.fsdp.network import PackedNetwork
from hybridrl.trainer.fsdp.tensor_parallel import shardings, with_partial_gradients

SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 5}


def test_the_embedding_of_a_padding_token_gets_a_gradient(tmp_path: Path) -> None:
    """A run may train on that token: it may be the end of an answer."""
    config = Qwen3Config(**SIZES, num_attention_heads=2, num_key_value_heads=1, head_dim=4, pad_token_id=0)
    config.save_pretrained(tmp_path)
    packed = PackedNetwork(tmp_path, tied=False, value_head=False, dtype=torch.float32)
    weight = packed.body.get_input_embeddings().weight
    packed.body.get_input_embeddings()(torch.tensor([0, 3])).sum().backward()
    assert weight.grad.ne(0).any(dim=1).tolist() == [True, False, False, True, False]


def test_only_parameters_that_see_a_part_of_the_heads_have_partial_gradients() -> None:
    layout = FSDPLayout(tiny("qwen3_moe", num_layers=1), tp=2)
    assert with_partial_gradients(shardings(layout)) == {
        f"model.layers.0.self_attn.{name}_norm.weight" for name in "qk"
    }
    dense = FSDPLayout(tiny("qwen3", num_layers=1), tp=2)
    adapters = AdapterLayout.on(dense, rank=2, alpha=1.0, targets=("qkv", "proj"))
    attention = "model.layers.0.self_attn"
    assert with_partial_gradients(shardings(adapters)) == {
        f"{attention}.q_proj.adapter.a",  # q, k and v share it
        f"{attention}.o_proj.adapter.b",
    }


@pytest.mark.parametrize(
    ("least", "expected"), [(1, [1, 1, 1, 1, 1]), (12, [1, 1, 1, 1, 1]), (13, [2, 2]), (30, [3]), (61, [])]
)
def test_small_layers_are_gathered_together(
    least: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has 12 elements. What is left over at the end is gathered with the embedding."""
    monkeypatch.setattr(network, "LEAST_UNIT", least)
    layers = [torch.nn.Linear(3, 3) for _ in range(5)]
    units = list(network.units(layers))
    assert [len(unit) for unit in units] == expected
    assert [layer for unit in units for layer in unit] == layers[: sum(expected)]


@pytest.mark.parametrize(
    "sizes", [{"dp": 3}, {"dp": 4, "shard": 2}, {"dp": 2, "tp": 2}, {"dp": 4, "tp": 2, "shard": 2, "cp": 2}]
)
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_every_element_is_written_into_a_checkpoint_by_one_rank(family: str, sizes: dict[str, Any]) -> None:
    layout = FSDPLayout(tiny(family, vocab_size=263), **sizes)
    found: dict[str, int] = {}
    for rank in range(layout.world_size):
        names, shards = set(backend.written(layout, rank)), layout.shards(rank)
        for name in names:
            found[shards[name].param] = found.get(shards[name].param, 0) + sum(
                box.shape[0] * box.shape[1] for box in shards[name].boxes()
            )
    whole = FSDPLayout(layout.spec).shards(0)
    expected: dict[str, int] = {}
    for shard in whole.values():
        expected[shard.param] = expected.get(shard.param, 0) + sum(
            box.shape[0] * box.shape[1] for box in shard.boxes()
        )
    assert found == expected


@pytest.mark.parametrize(
    ("heads", "tp", "cp", "expected"),
    [(8, 1, 4, "heads"), (8, 2, 4, "heads"), (8, 1, 2, "keys"), (8, 4, 4, "keys"), (32, 1, 4, "keys")],
)
def test_heads_are_exchanged_where_they_divide_and_that_sends_less(heads, tp, cp, expected) -> None:
    spec = tiny(num_heads=heads, num_kv_heads=8)
    assert exchange_of(spec, TrainParallel(tp=tp, cp=cp)) == expected
