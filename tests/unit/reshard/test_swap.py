"""Swaps into memory that engines exported: every engine holds what its own loader would have loaded."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_values import hf_tensors, specs, tiny, tp_sizes
from shard_oracle import megatron_shard, sglang_shard
from swap_scenarios import sums

from hybridrl.errors import LayoutError, SwapError
from hybridrl.layout.base import instance
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.agreement import difference, expected
from hybridrl.reshard.plan import Job, plan
from hybridrl.reshard.swap import SwapWriter
from hybridrl.reshard.transports import shm


def engine_of(layout, dtype=torch.float32):
    """Live parameters of an engine, and what it exports."""
    ranks = [
        {name: torch.zeros(shard.shape, dtype=dtype) for name, shard in layout.shards(rank).items()}
        for rank in range(layout.world_size)
    ]
    return ranks, (layout, [{name: shm.export(t) for name, t in tensors.items()} for tensors in ranks])


def trainer_of(layout, seed=0):
    hf = hf_tensors(layout.spec, seed)
    sizes = {"tp": layout.tp, "pp": layout.pp, "vocab_multiple": layout.vocab_multiple}
    return [
        megatron_shard(layout.spec, hf, rank_tp=r % layout.tp, rank_pp=r // (layout.tp * layout.dp), **sizes)
        for r in range(layout.world_size)
    ]


def added(written, base=None):
    return expected([share.checksums for share in written], base)


@st.composite
def setups(draw):
    spec = draw(specs())
    sizes = tp_sizes(spec)
    source = MegatronLayout(
        spec,
        tp=draw(st.sampled_from(sizes)),
        pp=draw(st.sampled_from([n for n in (1, 2) if spec.num_layers % n == 0])),
        dp=draw(st.integers(1, 2)),
    )
    return source, [
        SGLangLayout(spec, tp=tp) for tp in draw(st.lists(st.sampled_from(sizes), min_size=1, max_size=2))
    ]


@settings(max_examples=30)
@given(setups())
def test_engines_hold_what_their_loader_would_have_loaded(drawn):
    source, layouts = drawn
    engines, exports = zip(*(engine_of(layout) for layout in layouts))
    writers = [SwapWriter(source, rank, exports) for rank in range(source.world_size)]
    assert len({writer.plan_hash for writer in writers}) == 1
    for seed in (0, 1):
        written = [w.write(tensors) for w, tensors in zip(writers, trainer_of(source, seed))]
        hf = hf_tensors(source.spec, seed)
        for layout, ranks in zip(layouts, engines):
            for rank, tensors in enumerate(ranks):
                expected = sglang_shard(source.spec, hf, tp=layout.tp, rank=rank)
                assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert added(written) == sums(engines)
        assert max(share.staging_bytes for share in written) == 0


def swap(source=None, layout=None, dtype=torch.float32):
    source = source or MegatronLayout(tiny(), tp=2, pp=2)
    layout = layout or SGLangLayout(source.spec, tp=2)
    ranks, export = engine_of(layout, dtype)
    writers = [SwapWriter(source, rank, [export]) for rank in range(source.world_size)]
    return source, ranks, writers


def test_weights_are_cast_to_the_dtype_of_the_engine():
    source, ranks, writers = swap(dtype=torch.bfloat16)
    written = [w.write(tensors) for w, tensors in zip(writers, trainer_of(source))]
    expected = sglang_shard(source.spec, hf_tensors(source.spec), tp=2, rank=1)
    assert all(torch.equal(ranks[1][name], expected[name].bfloat16()) for name in expected)
    assert added(written) == sums([ranks])
    assert all(share.staging_bytes <= 1 << 22 for share in written)


def test_bytes_written_are_the_bytes_that_engines_hold():
    source, ranks, writers = swap()
    written = [w.write(tensors) for w, tensors in zip(writers, trainer_of(source))]
    held = [
        s.rows and sum(r.length for r in s.rows) * sum(c.length for c in s.cols)
        for s in shards_of(ranks, source)
    ]
    assert sum(share.bytes for share in written) == 4 * sum(held)


def shards_of(ranks, source):
    layout = SGLangLayout(source.spec, tp=len(ranks))
    return [shard for rank in range(layout.tp) for shard in layout.shards(rank).values()]


@pytest.mark.parametrize("fault", ["bit", "old", "moved"])
def test_damage_after_the_write_shows_in_the_checksums(fault):
    source, ranks, writers = swap()
    written = [w.write(tensors) for w, tensors in zip(writers, trainer_of(source))]
    weight = ranks[1]["model.layers.2.self_attn.qkv_proj.weight"]
    if fault == "bit":
        weight.view(torch.int32)[3, 1] ^= 1
    elif fault == "old":
        weight[2] = 0.0
    else:
        weight[[0, 1]] = weight[[1, 0]]
    expected, found = added(written), sums([ranks])
    assert [key for key in expected if expected[key] != found[key]] == [
        (0, 1, "model.layers.2.self_attn.qkv_proj.weight")
    ]


def test_a_rank_that_did_not_write_shows_in_the_checksums():
    source, ranks, writers = swap()
    written = [w.write(tensors) for w, tensors in zip(writers, trainer_of(source))][1:]
    writers[0].write(trainer_of(source, seed=1)[0])
    assert added(written) != sums([ranks])


def test_an_engine_tensor_of_padding_only_has_a_checksum_too():
    spec = tiny(vocab_size=20)
    source, ranks, writers = swap(MegatronLayout(spec), SGLangLayout(spec, tp=4))
    written = [w.write(tensors) for w, tensors in zip(writers, trainer_of(source))]
    assert added(written) == sums([ranks])


def test_engines_that_are_not_as_declared_are_refused():
    source = MegatronLayout(tiny())
    layout, exported = engine_of(SGLangLayout(source.spec, tp=2))[1]
    name = "model.layers.0.mlp.down_proj.weight"
    down = exported[1][name]
    broken = {
        "exported 1 ranks, its layout has 2": exported[:1],
        f"only one of the engine and its layout has {name}": [
            exported[0],
            {k: v for k, v in exported[1].items() if k != name},
        ],
        "only one of the engine and its layout has rotary": [exported[0], exported[1] | {"rotary": down}],
        r"is \(4, 6\), its layout says \(6, 4\)": [
            exported[0],
            exported[1] | {name: replace(down, shape=(4, 6))},
        ],
        "has gaps": [exported[0], exported[1] | {name: replace(down, stride=(1, 6))}],
    }
    for message, ranks in broken.items():
        with pytest.raises(SwapError, match=message):
            SwapWriter(source, 0, [(layout, ranks)])


def test_a_trainer_whose_tensors_are_not_as_declared_writes_nothing():
    source, ranks, writers = swap(MegatronLayout(tiny()))
    tensors = trainer_of(source)[0]
    name = "decoder.layers.3.mlp.linear_fc2.weight"
    with pytest.raises(SwapError, match=f"did not give {name}"):
        writers[0].write({k: v for k, v in tensors.items() if k != name})
    with pytest.raises(SwapError, match=r"is \(5, 8\), its layout says \(6, 8\)"):
        writers[0].write(tensors | {name: tensors[name][:5]})
    assert all(tensor.count_nonzero() == 0 for rank in ranks for tensor in rank.values())


@given(setups(), st.data())
@settings(max_examples=15)
def test_replicas_write_what_lost_ranks_would_have_and_whole_engines_come_of_it(drawn, data):
    source, layouts = drawn
    ranks = range(source.world_size)
    replica = data.draw(st.integers(0, source.dp - 1))
    lost = frozenset(r for r in ranks if r // source.tp % source.dp == replica and data.draw(st.booleans()))
    engines, exports = zip(*(engine_of(layout) for layout in layouts))
    left = [rank for rank in ranks if rank not in lost]
    if source.dp == 1 and lost:
        with pytest.raises(LayoutError, match="no rank is left that holds"):
            SwapWriter(source, left[0] if left else 0, exports, lost=lost)
        return
    writers = [SwapWriter(source, rank, exports, lost=lost) for rank in left]
    tensors = trainer_of(source)
    written = [writer.write(tensors[rank]) for writer, rank in zip(writers, left)]
    assert added(written) == sums(engines)
    assert len({writer.plan_hash for writer in writers}) == 1


DELTA = ["layers.2.*", "final_norm"]


def delta(only=DELTA):
    """Engines at version 0 with their checksums, and writers of a delta."""
    spec = tiny(vocab_size=20)
    source, ranks, writers = swap(MegatronLayout(spec, tp=2, dp=2), SGLangLayout(spec, tp=4))
    base = added([w.write(tensors) for w, tensors in zip(writers, trainer_of(source))])
    exported = [{name: shm.export(tensor) for name, tensor in tensors.items()} for tensors in ranks]
    engines = [(SGLangLayout(spec, tp=4), exported)]
    return source, ranks, base, [SwapWriter(source, r, engines, only=only) for r in range(source.world_size)]


def test_a_delta_writes_its_parameters_on_its_layers_and_nothing_else():
    source, ranks, base, writers = delta()
    written = [w.write(tensors) for w, tensors in zip(writers, trainer_of(source, seed=1))]
    old, new = (
        [sglang_shard(source.spec, hf_tensors(source.spec, seed), tp=4, rank=r) for r in range(4)]
        for seed in (0, 1)
    )
    for rank, tensors in enumerate(ranks):
        for name, tensor in tensors.items():
            is_new = ".layers.2." in name or name == "model.norm.weight"
            assert torch.equal(tensor, (new if is_new else old)[rank][name])
    assert difference(added(written, base), sums([ranks])) is None


def test_damage_to_what_a_delta_leaves_alone_shows_in_the_checksums():
    source, ranks, base, writers = delta()
    written = [w.write(tensors) for w, tensors in zip(writers, trainer_of(source, seed=1))]
    ranks[1]["model.layers.0.mlp.down_proj.weight"][2, 1] += 1.0
    error = difference(added(written, base), sums([ranks]))
    assert "rank 1, model.layers.0.mlp.down_proj.weight" in str(error)
    assert "left out" in str(difference(added(written), sums([ranks])))


def test_all_ranks_must_mean_the_same_delta():
    _, _, _, writers = delta()
    _, _, _, others = delta(only=["layers.1.*"])
    assert len({writer.plan_hash for writer in writers}) == 1
    assert others[0].plan_hash != writers[0].plan_hash
    assert others[0].plan_fields["only"] == "['layers.1.*']"


def test_a_delta_of_nothing_is_refused():
    with pytest.raises(SwapError, match=r"no parameter 'layers.9.\*'"):
        delta(only=["layers.1.*", "layers.9.*"])


def fixed_swap(fixed):
    """Engines that were written once, and writers that know what never changes."""
    spec = tiny(vocab_size=20)
    source, layout = MegatronLayout(spec, tp=2, dp=2), SGLangLayout(spec, tp=4)
    ranks, export = engine_of(layout)
    writers = [SwapWriter(source, rank, [export], fixed=fixed) for rank in range(source.world_size)]
    return source, layout, ranks, writers


def fixed_names():
    held = SGLangLayout(tiny(vocab_size=20)).holdings
    names = {instance(one.param, layer) for one in held for layer in one.layers}
    return {name for name in names if name.startswith("layers.2.") or name == "final_norm"}


def write(writers, tensors, **options):
    return [writer.write(shard, **options) for writer, shard in zip(writers, tensors)]


def test_what_never_changes_is_written_once_and_checked_every_time():
    source, layout, ranks, writers = fixed_swap(fixed_names())
    job = Job(source, (layout,))
    sizes = {True: 0, False: 0}
    for transfer in plan(job):
        for layer in transfer.layers:
            is_fixed = instance(transfer.param, layer) in fixed_names()
            sizes[is_fixed] += 4 * replace(transfer, layers=range(layer, layer + 1)).elements
    first = write(writers, trainer_of(source))
    assert sum(share.bytes for share in first) == sizes[True] + sizes[False]
    second = write(writers, trainer_of(source, seed=1))
    assert sum(share.bytes for share in second) == sizes[False] > 0
    assert difference(added(second), sums([ranks])) is None
    seeds = [
        [sglang_shard(source.spec, hf_tensors(source.spec, s), tp=4, rank=r) for r in range(4)]
        for s in (0, 1)
    ]
    for rank, tensors in enumerate(ranks):
        for name, tensor in tensors.items():
            is_fixed = ".layers.2." in name or name == "model.norm.weight"
            assert torch.equal(tensor, seeds[0 if is_fixed else 1][rank][name])


def test_an_engine_that_lost_what_never_changes_is_told_and_gets_it_again():
    source, _, ranks, writers = fixed_swap(fixed_names())
    write(writers, trainer_of(source))
    ranks[1]["model.norm.weight"][2] += 1.0
    error = difference(added(write(writers, trainer_of(source))), sums([ranks]))
    assert "rank 1, model.norm.weight" in str(error)
    assert difference(added(write(writers, trainer_of(source), whole=True)), sums([ranks])) is None


def test_all_ranks_must_agree_on_what_never_changes():
    *_, writers = fixed_swap(fixed_names())
    *_, others = fixed_swap(fixed_names() - {"final_norm"})
    assert len({writer.plan_hash for writer in writers}) == 1
    assert writers[0].plan_hash != others[0].plan_hash
    assert writers[0].plan_fields["fixed"] != others[0].plan_fields["fixed"]
