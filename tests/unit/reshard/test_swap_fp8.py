"""Swaps into engines in block FP8: the bits of SGLang's quantiser on what its loader would have loaded."""

import pytest
import torch
from fp8_values import (
    DENSE,
    EXPERTS,
    HALF_HEADS,
    LATENT_EXPERTS,
    checkpoint,
    empty_engine,
    fp8_engine,
    fp8_layout,
    same_bits,
)
from swap_scenarios import shard_of, sums

from hybridrl.errors import LayoutError, SwapError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.reshard.agreement import difference, expected
from hybridrl.reshard.swap import SwapWriter
from hybridrl.reshard.transports import shm


def swap(source, layouts):
    """(live ranks of every engine, writers)"""
    engines = [[empty_engine(layout, rank) for rank in range(layout.world_size)] for layout in layouts]
    exports = [
        (layout, [{name: shm.export(t) for name, t in tensors.items()} for tensors in ranks])
        for layout, ranks in zip(layouts, engines)
    ]
    return engines, [SwapWriter(source, rank, exports) for rank in range(source.world_size)]


@pytest.mark.parametrize(
    ("source", "layouts"),
    [
        (MegatronLayout(DENSE, tp=2, pp=2), [fp8_layout(DENSE), fp8_layout(DENSE, tp=2)]),
        (MegatronLayout(DENSE, dp=3), [fp8_layout(DENSE, tp=2)]),
        (MegatronLayout(EXPERTS, tp=2, pp=2), [fp8_layout(EXPERTS), fp8_layout(EXPERTS, tp=2)]),
        (MegatronLayout(EXPERTS, tp=2, ep=2), [fp8_layout(EXPERTS, tp=2, ep=2)]),
        (
            MegatronLayout(LATENT_EXPERTS, tp=2, pp=2, transformer_engine=True),
            [fp8_layout(LATENT_EXPERTS, tp=2)],
        ),
        (MegatronLayout(HALF_HEADS, pp=2), [fp8_layout(HALF_HEADS, tp=2)]),
    ],
    ids=["dense", "replicas", "experts", "whole experts", "latent", "two heads a block"],
)
def test_values_and_scales_are_those_of_the_engines_quantiser(source, layouts):
    engines, writers = swap(source, layouts)
    for seed in (0, 1):
        hf = checkpoint(source.spec, seed)
        written = [writer.write(shard_of(source, hf, rank)) for rank, writer in enumerate(writers)]
        for layout, ranks in zip(layouts, engines):
            for rank, tensors in enumerate(ranks):
                wanted = fp8_engine(layout, hf, rank)
                assert tensors.keys() == wanted.keys()
                assert [n for n in wanted if not same_bits(tensors[n], wanted[n])] == []
        assert difference(expected(share.checksums for share in written), sums(engines)) is None


def test_a_trainer_that_divides_a_block_is_refused():
    source = MegatronLayout(HALF_HEADS, tp=4)
    with pytest.raises(LayoutError, match="trainer ranks divide layers.*qkv within a block of 128 x 128"):
        swap(source, [fp8_layout(HALF_HEADS)])


@pytest.mark.parametrize("fault", ["dtype", "no scales", "scales of rows"])
def test_an_engine_that_is_quantised_in_another_way_is_refused(fault):
    layout, name = fp8_layout(DENSE), "model.layers.1.mlp.down_proj.weight"
    tensors = empty_engine(layout, 0)
    scales = tensors[f"{name}_scale_inv"]
    if fault == "dtype":
        tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.bfloat16)
    elif fault == "no scales":
        del tensors[f"{name}_scale_inv"]
    else:
        tensors[f"{name}_scale_inv"] = torch.zeros(scales.shape[0] * 128, 1)
    export = layout, [{name: shm.export(t) for name, t in tensors.items()}]
    what = "in its layout it is block FP8" if fault == "dtype" else "should be float32"
    with pytest.raises(SwapError, match=what):
        SwapWriter(MegatronLayout(DENSE), 0, [export])
