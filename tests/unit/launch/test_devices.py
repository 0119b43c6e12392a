"""Which GPU every worker sees, and what a launch on GPUs refuses. No GPU is needed to say so."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_values import tiny

from hybridrl.config.load import LoadedConfig, load
from hybridrl.config.rules import RuleContext
from hybridrl.config.rules.gpus import roles_share_the_gpus
from hybridrl.config.rules.lora import gpus_train_no_adapters
from hybridrl.config.run_shape import RunShape
from hybridrl.config.training import TrainParallel
from hybridrl.errors import HybridRLError
from hybridrl.hosts.machine import GPU, Machine
from hybridrl.launch.devices import Devices, environment
from hybridrl.launch.shape import Placement, with_gpus
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout

CPU_ONLY = Machine(2, 2**34, 2**33, 2**33, ())
WITH_GPUS = dataclasses.replace(
    CPU_ONLY, gpus=tuple(GPU(i, f"GPU-{i}", "H100", 80 * 2**30, 0) for i in range(4))
)


CONFIGS = Path(__file__).parents[3] / "configs"
ON_GPUS = [path for path in sorted(CONFIGS.glob("*.yaml")) if "gpus_per_node" in path.read_text()]


def config(*overrides: str) -> LoadedConfig:
    return load(CONFIGS / "quickstart.yaml", overrides)


def devices(
    nodes: int, per_node: int, *, tp: int, engine_tp: int, num_engines: int, parts: int = 1
) -> Devices:
    loaded = config(f"cluster={{nodes: {nodes}, gpus_per_node: {per_node}}}", f"actor.parallel={{tp: {tp}}}")
    gpus = nodes * per_node
    shape = dataclasses.replace(
        RunShape.of(loaded.config),
        num_engines=num_engines,
        critic=TrainParallel(dp=gpus),
        engine_parts=parts,
    )
    names = [[f"{node}{index}" for index in range(per_node)] for node in range(nodes)]
    model = tiny("qwen3", num_heads=16, num_kv_heads=8)
    source, engine = MegatronLayout(model, tp=tp, dp=gpus // tp), SGLangLayout(model, tp=engine_tp)
    return Devices.of(loaded.config, Placement.of(shape, nodes), names, source, engine, parts=parts)


@given(
    st.sampled_from([1, 2, 3]), st.sampled_from([2, 4, 8]), st.sampled_from([1, 2]), st.sampled_from([1, 2])
)
def test_every_role_has_each_gpu_once(nodes: int, per_node: int, tp: int, engine_tp: int) -> None:
    found = devices(
        nodes, per_node, tp=tp, engine_tp=engine_tp, num_engines=nodes * per_node // engine_tp
    ).visible
    every = sorted(f"{node}{index}" for node in range(nodes) for index in range(per_node))
    assert sorted(found["trainer"]) == sorted(found["critic"]) == every
    engines = [gpus.split(",") for gpus in found["engine"]]
    assert sorted(gpu for gpus in engines for gpu in gpus) == every
    for gpus in engines:
        assert len(gpus) == engine_tp and len({gpu[0] for gpu in gpus}) == 1, "an engine is on one node"


def test_engine_ranks_sit_where_the_trainer_holds_their_bytes() -> None:
    """TP2 x DP2: one engine of TP2 takes the GPUs of both halves, in the order of the halves."""
    found = devices(1, 4, tp=2, engine_tp=2, num_engines=2)
    assert found.topology is not None
    for ranks in found.topology.targets:
        assert [found.topology.rank_on[device] % 2 for device in ranks] == [0, 1]


def test_engines_may_leave_gpus_to_the_trainer_alone() -> None:
    found = devices(2, 2, tp=1, engine_tp=1, num_engines=2).visible
    assert [len(found[name]) for name in ("trainer", "engine")] == [4, 2]
    assert {gpus[0] for gpus in found["engine"]} == {"0", "1"}, "one on each node"


def test_an_engine_larger_than_a_node_has_a_part_on_each_of_its_nodes() -> None:
    found = devices(4, 2, tp=2, engine_tp=4, num_engines=2, parts=2)
    assert sorted(gpus[0] for gpus in found.visible["engine"]) == ["0", "2"]
    assert [{gpu[0] for gpu in gpus.split(",")} for gpus in found.visible["engine part"]] == [{"1"}, {"3"}]
    assert all(
        len(gpus.split(",")) == 2 for name in ("engine", "engine part") for gpus in found.visible[name]
    )
    assert found.topology is not None
    assert [len({device // 2 for device in ranks}) for ranks in found.topology.targets] == [2, 2]


def test_without_gpus_nothing_is_seen() -> None:
    loaded = config()
    shape = RunShape.of(loaded.config)
    model = tiny("qwen3")
    layouts = MegatronLayout(model, tp=2), SGLangLayout(model)
    assert Devices.of(loaded.config, Placement.of(shape, 1), [], *layouts) == Devices(None, {})
    assert environment("lo", "", trains=True)["CUDA_VISIBLE_DEVICES"] == ""


def test_gpus_of_the_machine_count_where_the_config_leaves_them_open() -> None:
    assert with_gpus(config(), CPU_ONLY).config.cluster.gpus_per_node is None
    assert with_gpus(config(), WITH_GPUS).config.cluster.gpus_per_node == 4
    assert with_gpus(config("cluster.gpus_per_node=0"), WITH_GPUS).config.cluster.gpus_per_node == 0


def unshared(loaded: LoadedConfig) -> list[HybridRLError]:
    context = RuleContext(here=False, num_gpus=0, spec=None)
    rules = (roles_share_the_gpus, gpus_train_no_adapters)
    return [error for rule in rules for error in rule(loaded, context)]


@pytest.mark.parametrize("path", ON_GPUS, ids=[path.stem for path in ON_GPUS])
def test_the_roles_of_every_recipe_share_its_gpus(path: Path) -> None:
    assert unshared(load(path)) == []


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (("actor.parallel={tp: 2, dp: 2}",), None),
        (("actor.parallel={tp: 2}",), None),
        (("cluster.gpus_per_node=0", "actor.parallel={tp: 2}"), None),
        (("actor.parallel={tp: 2, dp: 1}",), "the trainer has 2 ranks, 2 a replica, and the cluster 4 GPUs"),
        (("rollout.parallel.tp=8",), "rollout.parallel.tp = 8, num_engines = 1, on 1 x 4 GPUs"),
        (
            ("rollout.parallel.tp=3", "actor.parallel.tp=1"),
            "rollout.parallel.tp = 3, num_engines = 1, on 2 x 2 GPUs",
        ),
        (("rollout.parallel.tp=4",), None),
        (("actor.lora={rank: 8}",), "Transformer Engine's layers take no adapters yet"),
        (("rollout={parallel: {tp: 2}, num_engines: 3}",), "2 engines of 2 ranks on a node of 2 GPUs"),
    ],
)
def test_gpus_that_roles_cannot_share_are_refused(overrides: tuple[str, ...], refusal: str | None) -> None:
    per_node = 2 if refusal and "2 GPUs" in refusal else 4
    size = f"cluster={{nodes: {4 // per_node}, gpus_per_node: {per_node}}}"
    found = [error.what for error in unshared(config(size, *overrides))]
    assert [what for what in found if refusal and refusal in what] == found
    assert bool(found) == (refusal is not None)
