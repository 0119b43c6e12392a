"""What all ranks write into a bucket together is the checkpoint, and no bucket is larger than it must be."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_values import hf_tensors, specs, tiny, tp_sizes
from shard_oracle import megatron_shard

from hybridrl.errors import SwapError
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.reshard.buckets import BucketWriter, split


@st.composite
def trainers(draw):
    spec = draw(specs())
    pp = draw(st.sampled_from([n for n in (1, 2) if spec.num_layers % n == 0]))
    return MegatronLayout(
        spec, tp=draw(st.sampled_from(tp_sizes(spec))), pp=pp, dp=draw(st.sampled_from([1, 2]))
    )


def shard(layout, hf, rank):
    """A rank's shard by the oracle; ranks count tp fastest, then dp, then pp."""
    place = {"rank_tp": rank % layout.tp, "rank_pp": rank // (layout.tp * layout.dp)}
    return megatron_shard(layout.spec, hf, tp=layout.tp, pp=layout.pp, **place)


def written(layout, hf, buckets, buffer):
    """Each bucket's tensors after all ranks wrote it, and the bytes that they say."""
    writers = [BucketWriter(layout, rank, buckets, buffer) for rank in range(layout.world_size)]
    shards = [shard(layout, hf, rank) for rank in range(layout.world_size)]
    assert len({writer.plan_hash for writer in writers}) == 1
    for index, bucket in enumerate(buckets):
        buffer.fill_(255)
        moved = sum(writer.write(index, tensors) for writer, tensors in zip(writers, shards, strict=True))
        yield {name: tensor.clone() for name, tensor in bucket.views(buffer).items()}, moved


@settings(max_examples=20, deadline=None)
@given(trainers(), st.integers(1, 4000), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_ranks_write_the_checkpoint_together(layout, limit, dtype):
    hf = hf_tensors(layout.spec)
    buckets = split(HFLayout(layout.spec), dtype, limit)
    buffer = torch.empty(max(bucket.nbytes for bucket in buckets), dtype=torch.uint8)
    found = {}
    for bucket, (tensors, moved) in zip(buckets, written(layout, hf, buckets, buffer), strict=True):
        assert not found.keys() & tensors.keys()
        assert moved == bucket.nbytes
        found |= tensors
    assert found.keys() == hf.keys()
    for name, tensor in hf.items():
        assert torch.equal(found[name], tensor.to(dtype)), name


@settings(max_examples=20, deadline=None)
@given(specs(), st.integers(1, 4000))
def test_a_bucket_is_within_the_limit_unless_one_parameter_is_more(spec, limit):
    layout = HFLayout(spec)
    shards = layout.shards(0)
    for bucket in split(layout, torch.float32, limit):
        params = {shards[name].param for name in bucket.shapes}
        assert bucket.nbytes == 4 * sum(prod(shape) for shape in bucket.shapes.values())
        assert bucket.nbytes <= limit or len(params) == 1


@settings(max_examples=20, deadline=None)
@given(specs(), st.integers(1, 4000))
def test_tensors_that_a_loader_may_fuse_come_together(spec, limit):
    layout = HFLayout(spec)
    shards = layout.shards(0)
    seen = [{shards[name].param for name in bucket.shapes} for bucket in split(layout, torch.float32, limit)]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_a_missing_tensor_is_refused_before_anything_is_written():
    spec = tiny("qwen3")
    layout, hf = MegatronLayout(spec), hf_tensors(spec)
    buckets = split(HFLayout(spec), torch.float32)
    buffer = torch.full((buckets[0].nbytes,), 255, dtype=torch.uint8)
    tensors = shard(layout, hf, 0)
    del tensors["decoder.final_layernorm.weight"]
    with pytest.raises(SwapError, match="did not give decoder.final_layernorm.weight"):
        BucketWriter(layout, 0, buckets, buffer).write(0, tensors)
    assert (buffer == 255).all()
