"""Layouts tile every parameter, and cut it as the systems do."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shard_oracle import hf_tensors, megatron_shard, sglang_shard, specs, tiny, tp_sizes

from hybridrl.errors import LayoutError
from hybridrl.layout.base import instance
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import parameters


@st.composite
def megatron_layouts(draw):
    spec = draw(specs())
    pp = draw(st.sampled_from([n for n in (1, 2, 3, 6) if spec.num_layers % n == 0]))
    return MegatronLayout(
        spec,
        tp=draw(st.sampled_from(tp_sizes(spec))),
        pp=pp,
        dp=draw(st.integers(1, 3)),
        vocab_multiple=draw(st.sampled_from([1, 8, 128])),
    )


@st.composite
def sglang_layouts(draw):
    spec = draw(specs())
    return SGLangLayout(spec, tp=draw(st.sampled_from(tp_sizes(spec))))


def coverage(layout):
    """Canonical name -> how many ranks hold each element."""
    found = {}
    for parameter in parameters(layout.spec):
        for layer in range(layout.spec.num_layers if parameter.per_layer else 1):
            found[instance(parameter.name, layer)] = np.zeros((parameter.num_rows, parameter.cols or 1), int)
    for rank in range(layout.world_size):
        for shard in layout.shards(rank).values():
            for box in shard.boxes():
                (row, col), (rows, cols) = box.at, box.shape
                found[shard.param][row : row + rows, col : col + cols] += 1
    return found


def hold(shard, hf_param):
    """Cut a shard from its whole parameter, by its runs; padding zero."""
    flat = torch.zeros(shard.shape).reshape(shard.shape[0], -1)
    for box in shard.boxes():
        (at_row, at_col), (row, col), (rows, cols) = box
        flat[row : row + rows, col : col + cols] = hf_param[at_row : at_row + rows, at_col : at_col + cols]
    return flat.reshape(shard.shape)


def whole_parameters(spec, hf):
    found = {}
    for parameter in parameters(spec):
        for layer in range(spec.num_layers if parameter.per_layer else 1):
            blocks = [hf[instance(name, layer)] for name in parameter.row.hf]
            found[instance(parameter.name, layer)] = torch.cat(blocks).reshape(parameter.num_rows, -1)
    return found


@given(megatron_layouts())
def test_megatron_tiles_every_parameter_once_in_each_replica(layout):
    for name, held in coverage(layout).items():
        once = layout.dp
        if name == "embed" and layout.spec.tied and layout.pp > 1:
            once *= 2
        if any(part in name for part in ("norm", "attention_out_bias")):
            once *= layout.tp
        assert (held == once).all(), name


@given(sglang_layouts())
def test_sglang_tiles_every_parameter_and_repeats_only_kv_heads(layout):
    spec = layout.spec
    for name, held in coverage(layout).items():
        if "norm" in name or "attention_out_bias" in name:
            assert (held == layout.tp).all(), name
        elif "qkv" in name:
            q = spec.num_heads * spec.head_dim
            assert (held[:q] == 1).all() and (held[q:] == max(1, layout.tp // spec.num_kv_heads)).all(), name
        else:
            assert (held == 1).all(), name


@given(specs())
def test_hf_holds_everything_once(spec):
    assert all((held == 1).all() for held in coverage(HFLayout(spec)).values())


@given(megatron_layouts())
def test_megatron_shards_are_those_that_splitting_gives(layout):
    hf = hf_tensors(layout.spec)
    whole = whole_parameters(layout.spec, hf)
    for tp in range(layout.tp):
        for pp in range(layout.pp):
            sizes = {"tp": layout.tp, "pp": layout.pp, "vocab_multiple": layout.vocab_multiple}
            expected = megatron_shard(layout.spec, hf, rank_tp=tp, rank_pp=pp, **sizes)
            shards = layout.shards(layout.rank(tp, layout.dp - 1, pp))
            assert shards.keys() == expected.keys()
            for name, shard in shards.items():
                assert torch.equal(hold(shard, whole[shard.param]), expected[name]), name


@given(sglang_layouts())
def test_sglang_shards_are_those_that_splitting_gives(layout):
    hf = hf_tensors(layout.spec)
    whole = whole_parameters(layout.spec, hf)
    for rank in range(layout.tp):
        expected = sglang_shard(layout.spec, hf, tp=layout.tp, rank=rank)
        shards = layout.shards(rank)
        assert shards.keys() == expected.keys()
        for name, shard in shards.items():
            assert torch.equal(hold(shard, whole[shard.param]), expected[name]), name


def test_ranks_count_tp_fastest_then_dp_then_pp():
    layout = MegatronLayout(tiny(), tp=2, pp=2, dp=3)
    ranks = [layout.rank(tp, dp, pp) for pp in range(2) for dp in range(3) for tp in range(2)]
    assert ranks == list(range(12)) and layout.world_size == 12
    assert "embedding.word_embeddings.weight" in layout.shards(5)
    assert "embedding.word_embeddings.weight" not in layout.shards(6)
    assert "decoder.layers.2.mlp.linear_fc1.weight" in layout.shards(6)


def test_a_tied_model_has_its_output_copy_on_the_last_of_several_stages():
    tied = tiny(tied=True)
    assert "output_layer.weight" not in MegatronLayout(tied, tp=2).shards(0)
    assert MegatronLayout(tied, pp=2).shards(1)["output_layer.weight"].param == "embed"
    assert "lm_head.weight" not in SGLangLayout(tied).shards(0)


def test_there_are_no_shards_beyond_the_last_rank():
    with pytest.raises(ValueError, match="rank 4 of a layout of 4 ranks"):
        MegatronLayout(tiny(), tp=2, pp=2).shards(4)


def test_padded_vocabularies():
    spec = tiny(vocab_size=151)
    assert [MegatronLayout(spec, tp=tp).padded_vocab for tp in (1, 2, 4)] == [256, 256, 512]
    assert MegatronLayout(spec, tp=2, vocab_multiple=1).padded_vocab == 152
    assert [SGLangLayout(spec, tp=tp).padded_vocab for tp in (1, 2, 4)] == [192, 192, 192]
    three = tiny(vocab_size=100, num_heads=3, num_kv_heads=3, ffn_size=12)
    assert SGLangLayout(three, tp=3).padded_vocab == 192


def test_sizes_that_do_not_divide_are_refused_with_those_that_do():
    with pytest.raises(LayoutError, match="tp = 3 does not divide.*use one of 1, 2, 4"):
        SGLangLayout(tiny(), tp=3)
    with pytest.raises(LayoutError, match="tp = 3 does not divide"):
        MegatronLayout(tiny(), tp=3)
    with pytest.raises(LayoutError, match="tp = 9 does not divide the 22 rows of fused q, k and v"):
        MegatronLayout(tiny(num_heads=9, num_kv_heads=1, head_dim=2, ffn_size=9), tp=9)
    with pytest.raises(LayoutError, match="pp = 3 does not divide the 4 layers.*use one of 1, 2, 4"):
        MegatronLayout(tiny(), pp=3)
