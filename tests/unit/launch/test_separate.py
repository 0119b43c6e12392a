"""Engines on dedicated devices: where every worker is, and what of a config is refused. No GPU is needed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_values import tiny

from hybridrl.config.load import load
from hybridrl.config.rules import RULES, RuleContext
from hybridrl.config.run_shape import engines_sleep, idle_warning
from hybridrl.errors import ConfigErrors
from hybridrl.launch.devices import Devices
from hybridrl.launch.shape import Placement
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
SPEC = tiny("qwen3", num_heads=16, num_kv_heads=8)


def config(nodes, per_node, *overrides):
    cluster = f"cluster={{nodes: {nodes}, gpus_per_node: {per_node}, placement: separate}}"
    return load(QUICKSTART, [cluster, *overrides])


def devices(loaded):
    cfg, names = loaded.config, []
    placement, cluster = Placement.of_config(cfg), cfg.cluster
    names = [[f"{node}{index}" for index in range(cluster.gpus_per_node)] for node in range(cluster.nodes)]
    source = MegatronLayout(SPEC, tp=cfg.actor.parallel.tp, dp=len(placement.trainer) // 2)
    engine = SGLangLayout(SPEC, tp=cfg.rollout.parallel.tp)
    parts = -(-engine.tp // (cluster.gpus_per_node or engine.tp))
    return Devices.of(cfg, placement, names, source, engine, parts=parts), placement


@given(st.sampled_from([(1, 8, 2, 3), (2, 8, 4, 2), (3, 4, 2, 4), (4, 4, 8, 1), (2, 4, 1, 2)]))
def test_every_gpu_has_a_trainer_rank_or_an_engine_rank_with_its_receiver(sizes):
    nodes, per_node, tp, engines = sizes
    loaded = config(nodes, per_node, f"rollout={{parallel: {{tp: {tp}}}, num_engines: {engines}}}")
    found, placement = devices(loaded)
    visible, taken = found.visible, engines * tp
    every = [f"{node}{index}" for node in range(nodes) for index in range(per_node)]
    assert visible["trainer"] == every[:-taken]
    of_engines = [name for gpus in (*visible["engine"], *visible["engine part"]) for name in gpus.split(",")]
    assert sorted(of_engines) == sorted(visible["engine receiver"]) == every[-taken:]
    assert [name[0] for name in visible["engine receiver"]] == [str(node) for node in placement.receiver]
    assert [gpus[0] for gpus in visible["engine"]] == [
        str(n) for n in placement.engine[:: len(placement.engine) // engines]
    ]
    assert found.topology is not None
    assert found.topology.agents == tuple(device for ranks in found.topology.targets for device in ranks)
    assert all(len({gpu[0] for gpu in gpus.split(",")}) == 1 for gpus in visible["engine"])


@pytest.mark.parametrize(
    ("nodes", "engines", "of_trainer", "of_engines"),
    [(1, 2, (0, 0), (0, 0)), (2, 1, (0, 0), (1,)), (3, 1, (0, 1), (2,)), (3, 4, (0, 0), (1, 1, 2, 2))],
)
def test_without_gpus_engines_have_the_last_nodes(nodes, engines, of_trainer, of_engines):
    placement = Placement.of_config(config(nodes, 0, f"rollout.num_engines={engines}").config)
    assert (placement.trainer, placement.engine, placement.receiver) == (of_trainer, of_engines, of_engines)
    topology = placement.topology(1)
    assert topology is not None
    everything = [*topology.source, *topology.agents]
    assert len(set(everything)) == len(everything) == 2 + engines
    assert tuple(map(topology.node, everything)) == of_trainer + of_engines


def test_workers_of_a_node_are_counted_with_receivers():
    assert Placement.of_config(config(2, 0).config).per_node == [3, 2]


def test_engines_with_dedicated_devices_do_not_sleep():
    assert not engines_sleep(config(1, 0).config)


def test_devices_that_wait_for_each_other_are_worth_a_warning():
    assert "batch.max_lag=1 lets both work" in (idle_warning(config(1, 0).config) or "")
    assert idle_warning(config(1, 0, "batch.max_lag=1").config) is None
    assert idle_warning(load(QUICKSTART).config) is None


@pytest.mark.parametrize(
    ("nodes", "per_node", "overrides", "refusal"),
    [
        (1, 0, (), None),
        (4, 0, (), "cluster.nodes = 4, with 2 trainer ranks and 1 engine"),
        (1, 4, (), "rollout.num_engines is not set"),
        (1, 4, ("rollout.num_engines=2",), None),
        (1, 4, ("rollout.num_engines=1",), "engines leave it 3 of 4 GPUs"),
        (1, 4, ("rollout.num_engines=4",), "4 engines of 1 GPU leave the trainer none of 4 GPUs"),
        (2, 4, ("rollout={parallel: {tp: 4}, num_engines: 1}", "actor.parallel={tp: 2, dp: 1}"), "dp=2"),
        (2, 4, ("rollout={parallel: {tp: 3}, num_engines: 2}",), "do not fill nodes of 4 GPUs"),
        (3, 4, ("rollout={parallel: {tp: 8}, num_engines: 1}",), None),
        (1, 4, ("rollout.num_engines=2", "actor.offload=all"), "they have dedicated devices"),
        (
            1,
            4,
            ("rollout={num_engines: 2, swap: in_flight_keep_cache}", "batch.max_lag=1"),
            None,
        ),
    ],
)
def test_devices_that_cannot_be_divided_are_refused(nodes, per_node, overrides, refusal):
    loaded = config(nodes, per_node, *overrides)
    context = RuleContext(here=False, num_gpus=0, spec=None)
    found = [str(error) for rule in RULES for error in rule(loaded, context)]
    assert [text for text in found if refusal is None or refusal not in text] == []
    assert bool(found) == (refusal is not None)


@pytest.mark.parametrize(
    ("sizes", "overrides", "refusal"),
    [
        ((4, 4, 3), ("rollout.num_engines=8",), None),
        ((3, 0, 2), ("rollout.num_engines=2",), None),
        ((3, 0, 3), ("rollout.num_engines=2",), None),
        ((4, 4, 2), ("rollout.num_engines=8",), "the trainer and one engine take 3 nodes"),
        ((2, 4, 1), ("rollout.num_engines=2",), "the trainer and one engine take 2 nodes"),
        ((3, 0, 1), ("rollout.num_engines=2",), "the trainer and one engine take 2 nodes"),
        ((2, 0, 1), (), "the trainer and one engine take 2 nodes"),
        ((3, 0, 2), ("rollout.num_engines=2", "rollout.max_restarts=0"), "no engine is started while"),
        ((6, 4, 4), ("rollout={parallel: {tp: 8}, num_engines: 2}",), "tp = 8 is on 2 nodes"),
        ((2, 1, 1), ("cluster.placement=colocated",), "every node has trainer ranks"),
    ],
)
def test_nodes_that_come_late_must_not_be_needed(sizes, overrides, refusal):
    nodes, per_node, least = sizes
    loaded = config(nodes, per_node, f"cluster.min_nodes={least}", *overrides)
    context = RuleContext(here=False, num_gpus=0, spec=None)
    found = [str(error) for rule in RULES for error in rule(loaded, context)]
    assert [text for text in found if refusal is None or refusal not in text] == []
    assert bool(found) == (refusal is not None)


def test_a_run_needs_no_more_nodes_than_it_has():
    with pytest.raises(ConfigErrors, match="min_nodes = 3, and nodes = 2"):
        config(2, 0, "cluster.min_nodes=3")
