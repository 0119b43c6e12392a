"""What the FSDP backend shards, and what it refuses before any work starts."""

from typing import Any

import pytest
import torch
from layout_values import hold, whole_parameters
from model_values import WITH_TOWER, tiny

from hybridrl.config.training import ActorConfig, TrainParallel
from hybridrl.errors import ConfigError, LayoutError, ModelError
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.layout.hf import HFLayout
from hybridrl.layout.trainers import layout_of
from hybridrl.models.untabled import TensorShape


@pytest.mark.parametrize("axes", [{"pp": 2}, {"ep": 2}, {"pp": 2, "dp": 2}, {"vpp": 2, "pp": 2}])
def test_axes_that_the_backend_lacks_are_refused_with_the_dp_of_as_many_ranks(axes: dict[str, int]) -> None:
    with pytest.raises(LayoutError) as caught:
        FSDPLayout.of(tiny("qwen3_moe"), on_gpu=False, **axes)
    assert f"dp = {axes.get('pp', 1) * axes.get('dp', 1)}" in str(caught.value)
    assert all(f"{axis} = {size}" in str(caught.value) for axis, size in axes.items() if axis != "dp")


def test_ranks_that_do_not_form_whole_copies_are_refused_with_the_sizes_that_do() -> None:
    with pytest.raises(LayoutError, match="shard = 4 does not divide the 6 ranks of cp 2 x dp 3") as caught:
        FSDPLayout.of(tiny(), on_gpu=False, cp=2, dp=3, shard=4)
    assert "1, 2, 3, 6" in str(caught.value)
    with pytest.raises(LayoutError, match="shard = 2: Megatron"):
        layout_of("megatron").of(tiny(), on_gpu=False, dp=4, shard=2)


def test_one_rank_has_the_checkpoint_and_of_three_none_has_more_than_its_rows() -> None:
    spec = tiny()
    whole = HFLayout(spec).shards(0)
    assert FSDPLayout.of(spec, on_gpu=False, dp=1).shards(0) == whole
    sharded = FSDPLayout.of(spec, on_gpu=False, dp=3)
    for rank in range(3):
        for name, held in sharded.shards(rank).items():
            assert 0 < held.shape[0] <= -(-whole[name].shape[0] // 3)


@pytest.mark.parametrize("family", WITH_TOWER)
@pytest.mark.parametrize("sizes", [{"dp": 3}, {"tp": 2, "dp": 2}, {"dp": 4, "shard": 2}], ids=str)
def test_a_tower_is_sharded_by_the_first_axis_of_each_tensor(family: str, sizes: dict[str, int]) -> None:
    layout = FSDPLayout.of(tiny(family), on_gpu=False, **sizes)
    random = torch.Generator().manual_seed(0)
    shapes = {name: shard.shape for name, shard in HFLayout(layout.spec).shards(0).items()}
    tensors = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    whole = whole_parameters(layout.spec, tensors)
    tower = {name: tensor for name, tensor in tensors.items() if "visual." in name}
    assert any(tensor.ndim == 5 for tensor in tower.values())
    for rank in range(layout.world_size):
        found = {name: held for name, held in layout.shards(rank).items() if "visual." in name}
        number = rank // layout.tp % layout.num_shards
        chunks = {
            f"model.{name.removeprefix('model.')}": t.chunk(layout.num_shards) for name, t in tower.items()
        }
        expected = {name: parts[number] for name, parts in chunks.items() if number < len(parts)}
        assert found.keys() == expected.keys()
        for name, held in found.items():
            assert held.shape == tuple(expected[name].shape), name
            assert torch.equal(hold(held, whole[held.param]), expected[name]), name


@pytest.mark.parametrize(
    ("backend", "keys", "reason"),
    [
        ("megatron", {"cp": 2, "cp_exchange": "keys"}, "Megatron always gathers keys"),
        ("megatron", {"tp": 2, "sp": False}, "sp = false with tp = 2: Megatron trains experts with sequence"),
        ("fsdp", {"tp": 2, "sp": True}, "sp = true: the FSDP backend has no sequence parallelism"),
        (
            "fsdp",
            {"cp": 4, "cp_exchange": "heads"},
            "the 2 key-value heads, tp x cp = 4 does not divide them",
        ),
    ],
)
def test_keys_that_mean_nothing_to_a_backend_or_do_not_fit_are_refused(backend, keys, reason) -> None:
    model, kind = tiny("qwen3_moe", num_heads=8, num_kv_heads=2), layout_of(backend)
    with pytest.raises(LayoutError, match=reason):
        kind.refuse_keys(model, TrainParallel(**keys))
    kind.refuse_keys(model, TrainParallel(tp=2, cp=2))


def test_tensor_parallelism_needs_a_table_and_rows_that_divide() -> None:
    with pytest.raises(LayoutError, match="tp = 8 does not divide the 4 rows of k"):
        FSDPLayout.of(tiny(num_heads=8, num_kv_heads=1, head_dim=4, ffn_size=64), on_gpu=False, tp=8)
    with pytest.raises(LayoutError, match="a model without a table"):
        FSDPLayout.of(tiny(tensors=(TensorShape("lm_head.weight", (8, 8)),)), on_gpu=False, tp=2)


def test_stage_layers_are_refused() -> None:
    with pytest.raises(LayoutError, match="stage_layers"):
        FSDPLayout.of(tiny(), on_gpu=False, stage_layers=(2, 2))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (tiny("gemma2"), "this model is gemma2"),
        (tiny("deepseek_v3"), "this model is deepseek_v3"),
        (tiny("llama", attention_out_bias=True), "attention output"),
        (tiny("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "'dynamic'"),
    ],
)
def test_models_with_another_part_are_refused(model: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        FSDPLayout.refuse_unbuildable(model, where="model.path")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mixtral", "qwen3_moe"])
def test_families_whose_modules_are_known_are_not_refused(family: str) -> None:
    FSDPLayout.refuse_unbuildable(tiny(family), where="model.path")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"fp8": "blockwise"}, "actor.fp8"),
        ({"precision": "fp16"}, "actor.precision"),
        ({"recompute": "selective"}, "actor.recompute"),
    ],
)
def test_options_that_the_backend_lacks_are_refused_by_their_key(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        layout_of("fsdp").refuse_options(ActorConfig(backend="fsdp", **options))
    layout_of("megatron").refuse_options(ActorConfig(**options))


def test_other_options_are_accepted() -> None:
    actor = ActorConfig(backend="fsdp", precision="bf16", recompute="full", offload="all", overlap=True)
    layout_of("fsdp").refuse_options(actor)
