"""Between Megatron layouts Megatron-core's own resharding is the judge: the same bits on every rank."""

import pytest
from gloo_ranks import GlooRanks
from megatron_resharding import swapped
from model_values import tiny

SIZES = {"hidden_size": 8, "num_heads": 8, "num_kv_heads": 4, "num_layers": 2, "ffn_size": 16}
SIZES |= {"vocab_size": 1000}  # all layouts here pad it to 1024: Megatron's resharding needs that
TP4, TP2, TP2_PP2, DP4 = {"tp": 4}, {"tp": 2, "dp": 2}, {"tp": 2, "pp": 2}, {"dp": 4}


@pytest.fixture(scope="module")
def ranks():
    with GlooRanks(4) as ranks:
        yield ranks


@pytest.mark.parametrize("family, kv_heads", [("qwen2", 4), ("qwen2", 2), ("qwen3", 4)])
@pytest.mark.parametrize(
    "fields, to_fields", [(TP4, TP2), (TP2, TP4), (TP2_PP2, TP2), (TP2, TP2_PP2), (DP4, TP4), (TP4, DP4)]
)
def test_dense_swaps_equal_megatrons(ranks, family, kv_heads, fields, to_fields) -> None:
    model = tiny(family, **SIZES | {"num_kv_heads": kv_heads})
    for differ, as_the_layout_says in ranks(swapped, model, fields, to_fields):
        assert not differ and as_the_layout_says


@pytest.mark.parametrize(
    "fields, to_fields",
    [
        ({"tp": 2, "dp": 2, "ep": 2}, {"dp": 4, "ep": 4}),
        ({"pp": 2, "dp": 2, "ep": 2}, {"tp": 2, "dp": 2, "ep": 2, "etp": 2}),
    ],
)
def test_swaps_of_experts_equal_megatrons(ranks, fields, to_fields) -> None:
    named = {"transformer_engine": True}  # Megatron's resharding finds experts by these names only
    for differ, as_the_layout_says in ranks(
        swapped, tiny("qwen3_moe", **SIZES), named | fields, named | to_fields
    ):
        assert not differ and as_the_layout_says
