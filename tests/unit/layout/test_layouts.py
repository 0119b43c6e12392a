"""Layouts tile every parameter, and shard it as the systems do."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layout_values import fsdp_layouts, hold, megatron_layouts, sglang_layouts, whole_parameters
from model_values import DENSE, FAMILIES, MIXTURES, hf_tensors, specs, tiny, tp_sizes
from shard_oracle import fsdp_shard, megatron_shard, sglang_shard, vllm_shard

from hybridrl.errors import LayoutError
from hybridrl.layout.base import instance
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.layout.vllm import VLLMLayout
from hybridrl.models.spec import parameters
from hybridrl.trainer.megatron.backend import parallel_state

EVERY = specs(tuple(FAMILIES))


@st.composite
def vllm_layouts(draw, spec):
    tp = draw(st.sampled_from([n for n in tp_sizes(spec) if -(-spec.vocab_size // 64) * 64 % n == 0]))
    dp = draw(st.sampled_from([n for n in (1, 2, 3) if spec.expert_ffn_size % (tp * n) == 0]))
    expert_parallel = spec.num_experts >= tp * dp and draw(st.booleans())
    return VLLMLayout(spec, tp=tp, dp=dp, expert_parallel=expert_parallel)


def coverage(layout):
    """(parameter, canonical name) -> how many ranks hold each element."""
    found = {}
    for parameter in parameters(layout.spec):
        rows = parameter.num_rows * len(parameter.experts)
        for layer in parameter.layers:
            name = instance(parameter.name, layer)
            found[name] = parameter, np.zeros((rows, parameter.cols or 1), int)
    for rank in range(layout.world_size):
        for shard in layout.shards(rank).values():
            for box in shard.boxes():
                (row, col), (rows, cols) = box.at, box.shape
                found[shard.param][1][row : row + rows, col : col + cols] += 1
    return found.values()


def assert_shards(layout, expected):
    """
    Args:
        expected: (checkpoint, rank) -> what the rank holds.
    """
    hf = hf_tensors(layout.spec)
    whole = whole_parameters(layout.spec, hf)
    for rank in range(layout.world_size):
        shards, tensors = layout.shards(rank), expected(hf, rank)
        assert shards.keys() == tensors.keys()
        for name, shard in shards.items():
            assert shard.shape == tuple(tensors[name].shape), name
            assert torch.equal(hold(shard, whole[shard.param]), tensors[name]), name


def megatron_places(layout):
    """Rank -> its coordinates in the groups that shard attention, layers and experts."""
    stage = layout.tp * layout.cp * layout.dp
    return [
        {
            "rank_tp": rank % layout.tp,
            "rank_pp": rank // stage,
            "rank_etp": rank % stage % layout.etp,
            "rank_ep": rank % stage // layout.etp % layout.ep,
        }
        for rank in range(layout.world_size)
    ]


@given(EVERY.flatmap(megatron_layouts))
def test_megatron_shards_are_those_that_splitting_gives(layout):
    names = ("tp", "pp", "ep", "etp", "vpp", "stage_layers", "vocab_multiple", "transformer_engine")
    sizes = {name: getattr(layout, name) for name in names}
    places = megatron_places(layout)
    assert_shards(layout, lambda hf, rank: megatron_shard(layout.spec, hf, **sizes, **places[rank]))


@given(EVERY.flatmap(sglang_layouts))
def test_sglang_shards_are_those_that_splitting_gives(layout):
    names = ("tp", "ep", "dp_attention", "dp_lm_head", "interleave")
    sizes = {name: getattr(layout, name) for name in names}
    assert_shards(layout, lambda hf, rank: sglang_shard(layout.spec, hf, rank=rank, **sizes))


@given(EVERY.flatmap(vllm_layouts))
def test_vllm_shards_are_those_that_splitting_gives(layout):
    sizes = {name: getattr(layout, name) for name in ("tp", "dp", "expert_parallel")}
    assert_shards(layout, lambda hf, rank: vllm_shard(layout.spec, hf, rank=rank, **sizes))


@pytest.mark.parametrize(("tp", "dp"), [(2, 1), (1, 2), (2, 2)])
def test_vllm_does_not_shard_shared_experts_where_ranks_partition_tokens(tp, dp):
    layout = VLLMLayout(tiny("deepseek_v3"), tp=tp, dp=dp, expert_parallel=True)
    sizes = {"tp": tp, "dp": dp, "expert_parallel": True}
    assert_shards(layout, lambda hf, rank: vllm_shard(layout.spec, hf, rank=rank, **sizes))


@given(EVERY.flatmap(fsdp_layouts))
def test_fsdp_shards_are_those_that_torch_chunk_gives(layout):
    def expected(hf, rank):
        over, tp_rank = divmod(rank, layout.tp)
        shards = layout.num_shards
        return fsdp_shard(layout.spec, hf, shards=shards, rank=over % shards, tp=layout.tp, tp_rank=tp_rank)

    assert_shards(layout, expected)


@given(EVERY)
def test_a_checkpoint_holds_everything_once_under_its_names(spec):
    assert_shards(HFLayout(spec), lambda hf, rank: hf)
    assert all((held == 1).all() for _, held in coverage(HFLayout(spec)))


@given(EVERY.flatmap(megatron_layouts))
def test_megatron_tiles_every_parameter_once_in_each_replica(layout):
    ranks = layout.world_size // layout.pp
    for parameter, held in coverage(layout):
        sites = layout.transformer_engine and parameter.row.transformer_engine or parameter.row.megatron
        size = layout.ep * layout.etp if parameter.row.per_expert else layout.tp
        once = ranks if sites[0].sharding == "whole" else ranks // size
        if parameter.name == "embed" and layout.spec.tied and layout.pp > 1:
            once *= 2
        assert (held == once).all(), parameter.name


@given(EVERY.flatmap(sglang_layouts), st.data())
def test_sglang_tiles_every_parameter_and_repeats_only_what_it_copies(layout, data):
    spec, heads = layout.spec, layout.tp // layout.dp_attention
    for parameter, held in coverage(layout):
        row = parameter.row
        copied = row.group in ("embed", "attention") or (row.group == "head" and layout.dp_lm_head)
        once = layout.dp_attention if copied else 1
        if row.engine[0].sharding == "whole":
            once = layout.tp
        if row.engine[0].sharding == "heads":
            q = spec.num_heads * spec.head_dim
            assert (held[q:] == once * max(1, heads // spec.num_kv_heads)).all(), parameter.name
            held = held[:q]
        assert (held == once).all(), parameter.name


@given(EVERY.flatmap(fsdp_layouts))
def test_fsdp_tiles_every_parameter_once_in_each_copy(layout):
    copies = layout.world_size // (layout.tp * layout.num_shards)
    for parameter, held in coverage(layout):
        whole = layout.sites(parameter.row)[0].sharding == "whole"
        assert (held == copies * (layout.tp if whole else 1)).all(), parameter.name


@given(
    *(st.sampled_from([1, 2, 3]) for _ in range(4)),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
)
def test_ranks_are_numbered_as_by_megatron(tp, cp, dp, pp, ep, etp):
    ranks = tp * cp * dp
    if ranks % (ep * etp):
        etp, ep = 1, 1
    order = inspect.signature(parallel_state.initialize_model_parallel).parameters["order"].default
    dense = parallel_state.RankGenerator(tp=tp, ep=1, dp=dp, pp=pp, cp=cp, order=order)
    experts = parallel_state.RankGenerator(tp=etp, ep=ep, dp=ranks // (ep * etp), pp=pp, cp=1, order=order)
    spec = tiny("mixtral", num_heads=36, num_kv_heads=36, num_layers=6, num_experts=4, expert_ffn_size=4)
    layout = MegatronLayout(spec, tp=tp, cp=cp, dp=dp, pp=pp, ep=ep, etp=etp, vocab_multiple=1)
    # Who holds the same of the attention is a group over dp and cp; of an expert, one over the experts' dp.
    assert holders(layout, "layers.*.qkv") == {tuple(group) for group in dense.get_ranks("dp-cp")}
    assert holders(layout, "layers.*.experts.down") == {tuple(group) for group in experts.get_ranks("dp")}
    # In a group of tensor-parallel or expert-parallel ranks, each holds the next part.
    for group in dense.get_ranks("tp"):
        assert group == sorted(group, key=lambda rank: first_element(layout, rank, "linear_proj.weight"))
    for group in experts.get_ranks("ep"):
        assert group == sorted(group, key=lambda rank: first_element(layout, rank, "experts.0.linear_fc2"))


def holders(layout, param):
    return {tuple(held.ranks) for held in layout.holdings if held.param == param}


def first_element(layout, rank, part):
    shard = next(shard for name, shard in layout.shards(rank).items() if part in name)
    return shard.rows[0].at, shard.cols[0].at


def test_ranks_count_tp_fastest_then_cp_then_dp_then_pp():
    layout = MegatronLayout(tiny(), tp=2, cp=2, pp=2, dp=3)
    ranks = [
        layout.rank(tp, dp, pp, cp)
        for pp in range(2)
        for dp in range(3)
        for cp in range(2)
        for tp in range(2)
    ]
    assert ranks == list(range(24)) and layout.world_size == 24
    assert "embedding.word_embeddings.weight" in layout.shards(11)
    assert "embedding.word_embeddings.weight" not in layout.shards(12)
    assert "decoder.layers.2.mlp.linear_fc1.weight" in layout.shards(12)


def test_a_stage_has_every_chunk_that_comes_round_to_it():
    layout = MegatronLayout(tiny(num_layers=8), pp=2, vpp=2)
    assert layout.chunks(1) == [range(2, 4), range(6, 8)]
    uneven = MegatronLayout(tiny(num_layers=8), pp=2, stage_layers=(3, 5))
    assert uneven.chunks(0) == [range(3)]


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
    assert [SGLangLayout(spec, tp=tp).padded_vocab(tp) for tp in (1, 2, 4)] == [192, 192, 192]
    three = tiny(vocab_size=100, num_heads=3, num_kv_heads=3, ffn_size=12)
    assert SGLangLayout(three, tp=3).padded_vocab(3) == 192


MOE = tiny("qwen3_moe")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGLangLayout(tiny(), tp=3), "tp = 3 does not divide.*use one of 1, 2, 4"),
        (lambda: MegatronLayout(tiny(), tp=3), "tp = 3 does not divide"),
        (
            lambda: MegatronLayout(tiny(num_heads=9, num_kv_heads=1, head_dim=2, ffn_size=9), tp=9),
            "tp = 9 does not divide the 22 rows of fused q, k and v",
        ),
        (
            lambda: MegatronLayout(tiny("deepseek_v3", q_lora_rank=6), tp=4),
            "tp = 4 does not divide the 6 rows of compressed q",
        ),
        (lambda: MegatronLayout(tiny(), pp=3), "pp = 3 does not divide the 4 layers.*use one of 1, 2, 4"),
        (lambda: MegatronLayout(tiny(), pp=2, vpp=4), "pp = 2 times vpp = 4 does not divide the 4 layers"),
        (lambda: MegatronLayout(tiny(), pp=2, stage_layers=(1, 2)), r"stage_layers \[1, 2\].*3 layers"),
        (lambda: MegatronLayout(MOE, dp=3, ep=3), "ep = 3 does not divide the 4 experts.*use one of 1, 2, 4"),
        (lambda: MegatronLayout(MOE, tp=2, ep=4), "ep = 4 times etp = 1 does not divide the 2 ranks"),
        (lambda: MegatronLayout(MOE, dp=3, etp=3), "3 ranks for each expert do not divide its 4"),
        (lambda: MegatronLayout(tiny(), dp=2, ep=2), "ep = 2, but the model has no experts"),
        (lambda: SGLangLayout(MOE, tp=2, ep=4), "ep = 4 does not divide tp = 2"),
        (lambda: SGLangLayout(tiny("llama"), tp=2, dp_attention=2), "no data-parallel attention for llama"),
        (lambda: SGLangLayout(tiny(ffn_size=6), tp=4, dp_attention=2), "dp_attention = 2: 2 ranks"),
        (
            lambda: VLLMLayout(tiny("mixtral", num_experts=3), tp=2, dp=2, expert_parallel=True),
            "for 3 experts",
        ),
        (lambda: VLLMLayout(MOE, tp=4, dp=2), "8 ranks for each expert do not divide its 4"),
        (
            lambda: VLLMLayout(tiny(num_heads=3, num_kv_heads=3, ffn_size=12), tp=3),
            "tp = 3 does not divide the vocabulary, padded to 64",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(make, message):
    with pytest.raises(LayoutError, match=message):
        make()


def test_blocks_that_do_not_divide_are_refused():
    with pytest.raises(LayoutError, match="4 rows do not divide into groups of 3"):
        SGLangLayout(MOE, interleave=3).shards(0)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_of_an_engine_lie_in_one_tensor(family):
    shards = SGLangLayout(tiny(family), tp=2, ep=2).shards(1)
    w13 = next(shard for name, shard in shards.items() if name.endswith("w13_weight"))
    assert w13.shape == (2, 8, 6)
    assert w13.rows[0].at == 2 * 8, "the second half of the experts"


def test_dense_models_have_no_parameter_of_experts():
    for family in DENSE:
        assert not [p.name for p in parameters(tiny(family)) if "expert" in p.name or "router" in p.name]
