"""Swaps into engines out of reach: what their loader would have loaded, whatever way bytes take."""

import fp8_values as fp8
import pytest
import torch
from gloo_ranks import GlooRanks
from model_values import tiny
from swap_scenarios import swap

from hybridrl.errors import SwapError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.reshard.agreement import expected
from hybridrl.reshard.swap import SwapWriter
from hybridrl.reshard.topology import Topology
from hybridrl.reshard.transports import shm

DENSE, EXPERTS, LATENT = tiny("qwen3"), tiny("qwen3_moe"), tiny("deepseek_v3")


@pytest.fixture(scope="module")
def ranks():
    with GlooRanks(4) as group:
        yield group


def colocated(source, engines, node_size):
    return Topology.colocated(source.world_size, [engine.world_size for engine in engines], node_size)


@pytest.mark.parametrize("reach", ["device", "node"])
@pytest.mark.parametrize("node_size", [1, 2, 4])
@pytest.mark.parametrize(
    ("source", "engines"),
    [
        (MegatronLayout(DENSE, tp=2, pp=2), (SGLangLayout(DENSE, tp=2),) * 2),
        (MegatronLayout(DENSE, dp=4), (SGLangLayout(DENSE, tp=4),)),
        (MegatronLayout(EXPERTS, tp=2, dp=2, ep=2), (SGLangLayout(EXPERTS, tp=2),) * 2),
        (MegatronLayout(LATENT, dp=4, ep=4), (SGLangLayout(LATENT, tp=2, ep=2), SGLangLayout(LATENT))),
    ],
    ids=["dense", "replicas", "experts", "latent"],
)
def test_every_engine_holds_what_its_loader_would_have_loaded(ranks, source, engines, node_size, reach):
    topology = colocated(source, engines, node_size)
    answers = ranks(swap, source, engines, topology, reach, False)
    assert [wrong for wrong, _, _ in answers] == [[]] * 4
    arrived = {name: value for _, _, sums in answers for name, value in sums.items()}
    assert expected(sent for _, sent, _ in answers) == arrived


@pytest.mark.parametrize("reach", ["device", "node"])
@pytest.mark.parametrize("once_per_node", [False, True])
@pytest.mark.parametrize("node_size", [1, 2])
def test_engines_on_devices_of_their_own(ranks, node_size, once_per_node, reach):
    """Two trainer ranks; beside each of the two engines an agent that holds no weights of the trainer."""
    source, engines = MegatronLayout(EXPERTS, tp=2, ep=2), (SGLangLayout(EXPERTS),) * 2
    topology = Topology.separate(2, [1, 1], node_size)
    answers = ranks(swap, source, engines, topology, reach, once_per_node)
    assert [wrong for wrong, _, _ in answers] == [[]] * 4
    arrived = {name: value for _, _, sums in answers for name, value in sums.items()}
    assert expected(sent for _, sent, _ in answers) == arrived


@pytest.mark.parametrize("reach", ["device", "node"])
@pytest.mark.parametrize(
    ("source", "engines"),
    [
        (MegatronLayout(fp8.DENSE, tp=2, pp=2), (fp8.fp8_layout(fp8.DENSE, tp=2), fp8.fp8_layout(fp8.DENSE))),
        (MegatronLayout(fp8.EXPERTS, dp=4, ep=2), (fp8.fp8_layout(fp8.EXPERTS, tp=4, ep=2),)),
        (
            MegatronLayout(fp8.LATENT_EXPERTS, tp=2, pp=2, transformer_engine=True),
            (fp8.fp8_layout(fp8.LATENT_EXPERTS, tp=2, ep=2),) * 2,
        ),
        (MegatronLayout(fp8.HALF_HEADS, dp=4), (fp8.fp8_layout(fp8.HALF_HEADS, tp=2),) * 2),
    ],
    ids=["dense", "experts", "latent", "two heads a block"],
)
def test_blocks_are_quantised_by_their_sender(ranks, source, engines, reach):
    answers = ranks(swap, source, engines, colocated(source, engines, 2), reach, False)
    assert [wrong for wrong, _, _ in answers] == [[]] * 4
    arrived = {name: value for _, _, sums in answers for name, value in sums.items()}
    assert expected(sent for _, sent, _ in answers) == arrived


@pytest.mark.parametrize("reach", ["device", "node"])
@pytest.mark.parametrize("node_size", [1, 2])
@pytest.mark.parametrize("spec", [fp8.DENSE, fp8.EXPERTS, fp8.HALF_HEADS], ids=["dense", "experts", "heads"])
def test_engines_on_devices_of_their_own_pass_on_what_is_quantised(ranks, spec, node_size, reach):
    source, engines = MegatronLayout(spec, tp=2), (fp8.fp8_layout(spec),) * 2
    answers = ranks(swap, source, engines, Topology.separate(2, [1, 1], node_size), reach, True)
    assert [wrong for wrong, _, _ in answers] == [[]] * 4
    arrived = {name: value for _, _, sums in answers for name, value in sums.items()}
    assert expected(sent for _, sent, _ in answers) == arrived


@pytest.mark.parametrize("once_per_node", [False, True])
@pytest.mark.parametrize("spec", [fp8.EXPERTS, fp8.HALF_HEADS], ids=["experts", "two heads a block"])
def test_blocks_between_machines_are_in_messages_of_few_blocks(ranks, spec, once_per_node):
    """Messages of at most seven blocks, or one of 1,024 rows in which heads of a block are apart."""
    source, engines = MegatronLayout(spec, pp=2), (fp8.fp8_layout(spec),) * 2
    separate = Topology.separate(2, [1, 1], 1)
    staging_bytes = 1 << (21 if spec is fp8.HALF_HEADS else 19)
    answers = ranks(swap, source, engines, separate, "device", once_per_node, frozenset(), 2, staging_bytes)
    assert [wrong for wrong, _, _ in answers] == [[]] * 4
    arrived = {name: value for _, _, sums in answers for name, value in sums.items()}
    assert expected(sent for _, sent, _ in answers) == arrived


@pytest.mark.parametrize("reach", ["device", "node"])
def test_what_never_changes_is_sent_once(ranks, reach):
    source, engines = MegatronLayout(DENSE, tp=2, pp=2), (SGLangLayout(DENSE, tp=2),) * 2
    fixed = frozenset({"embedding", "layers.1.qkv", "layers.2.qkv"})
    answers = ranks(swap, source, engines, colocated(source, engines, 2), reach, False, fixed)
    assert [wrong for wrong, _, _ in answers] == [[]] * 4
    arrived = {name: value for _, _, sums in answers for name, value in sums.items()}
    assert expected(sent for _, sent, _ in answers) == arrived


def test_an_engine_out_of_reach_needs_a_group():
    source, engine = MegatronLayout(DENSE, tp=2), SGLangLayout(DENSE)
    live = {name: torch.zeros(shard.shape) for name, shard in engine.shards(0).items()}
    exported = {name: shm.export(tensor) for name, tensor in live.items()}
    with pytest.raises(SwapError, match="engine 0, rank 0 is out of reach"):
        SwapWriter(source, 1, [(engine, [exported])], topology=colocated(source, (engine,), 1))
