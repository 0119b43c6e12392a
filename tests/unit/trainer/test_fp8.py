"""FP8 without a GPU: what Megatron is told, which layers are in its context, and how many tokens they get.

Stand-ins of Transformer Engine's layers multiply as ever, so that losses say whether filler changes anything.
"""

from pathlib import Path
from typing import Any

import pytest
import te_standins
import torch
import trainer_models as models
import trainer_values as values
from hypothesis import given
from hypothesis import strategies as st
from trainer_ranks import on_ranks

from hybridrl.config.training import ActorConfig, TrainParallel
from hybridrl.errors import ResourceError
from hybridrl.hosts import cuda
from hybridrl.trainer.megatron.architecture import FP8_TOKENS, transformer_config
from hybridrl.trainer.megatron.backend import start
from hybridrl.trainer.packing import PackedBatch, idle_microbatch
from hybridrl.trainer.places import TokenPartition

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_model(tmp_path_factory.mktemp("models"), "qwen3_yarn", num_hidden_layers=4)


def config_of(folder: Path, actor: ActorConfig) -> Any:
    setup = values.make_setup(0, "", folder, TrainParallel(dp=1), actor=actor, device=0)
    return transformer_config(setup, torch.device("cuda", 0))


@pytest.mark.usefixtures("rope_kernel")
@pytest.mark.parametrize(
    ("recipe", "form"), [("tensorwise", "hybrid"), ("blockwise", "e4m3"), ("mxfp8", "e4m3")]
)
def test_megatron_is_told_recipe_and_format(folder, recipe, form) -> None:
    config = config_of(folder, ActorConfig(fp8=recipe, bf16_layers=1))
    assert (config.fp8, config.fp8_recipe, config.bf16) == (form, recipe, True)
    assert not (config.fp8_param or config.fp8_dot_product_attention or config.fp8_multi_head_attention)
    assert config.first_last_layers_bf16
    assert config.num_layers_at_start_in_bf16 == config.num_layers_at_end_in_bf16 == 1


@pytest.mark.usefixtures("rope_kernel")
def test_without_fp8_nothing_is_told(folder) -> None:
    config = config_of(folder, ActorConfig())
    assert config.fp8 is None and not config.first_last_layers_bf16


@given(
    rows=st.lists(st.integers(0, 11), min_size=1, unique=True),
    size=st.integers(1, 3),
    tp=st.integers(1, 2),
    multiple=st.sampled_from(sorted(FP8_TOKENS.values())),
)
def test_every_ranks_share_of_the_tokens_is_a_multiple(rows, size, tp, multiple) -> None:
    batch = values.make_batch([])
    partitions = [TokenPartition(rank=rank, size=size, tp=tp, multiple=multiple) for rank in range(size)]
    plain = PackedBatch(batch, CPU, TokenPartition()).microbatch(rows)
    found = [PackedBatch(batch, CPU, partition).microbatch(rows) for partition in partitions]
    found += [idle_microbatch(partition, CPU) for partition in partitions]
    for microbatch in found:
        if microbatch is None:
            assert plain is None
            continue
        assert len(microbatch.token_T) % (tp * multiple) == 0
        assert int(microbatch.packing.edge_S[-1]) == size * len(microbatch.token_T)
    if plain is not None:
        made = [microbatch for microbatch in found[:size] if microbatch is not None]
        predicted = torch.cat([microbatch.target_O for microbatch in made])
        assert sorted(predicted.tolist()) == sorted(plain.target_O.tolist())


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> tuple[dict[str, Any], list[te_standins.Call]]:
    """Two tensor-parallel ranks that share the sequence; the last of the layers, and the first, stay bf16."""
    shape, actor = TrainParallel(dp=1, tp=2, sp=True), ActorConfig(fp8="blockwise", bf16_layers=1)
    out = tmp_path_factory.mktemp("out")
    (found,), seen = on_ranks(2, te_standins.learn_in_fp8, [folder], shape, actor, out)[0]
    return found, seen


def test_layers_but_the_first_and_the_last_are_in_the_context(run) -> None:
    _, seen = run
    in_fp8 = {call.name for call in seen if call.in_fp8}
    outside = {call.name for call in seen if not call.in_fp8}
    layers = {int(name.split(".")[2]) for name in in_fp8}
    assert not in_fp8 & outside
    assert layers == set(range(1, max(int(n.split(".")[2]) for n in outside if "layers" in n)))
    assert {"embedding.word_embeddings"} <= outside
    assert all(name.endswith(("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")) for name in in_fp8)


def test_layers_get_whole_blocks_of_tokens_on_every_rank(run) -> None:
    _, seen = run
    assert {call.tokens % FP8_TOKENS["blockwise"] for call in seen if call.in_fp8} == {0}


def test_filler_changes_no_loss(run, folder, tmp_path) -> None:
    plain = models.learn_plainly(folder, tmp_path)
    for report, (loss, grad_norm) in zip(run[0]["reports"], plain["steps"], strict=True):
        assert report["loss"] == pytest.approx(loss, rel=2e-6)
        assert report["grad_norm"] == pytest.approx(grad_norm, rel=2e-6)


def test_a_rank_on_the_cpu_is_refused(folder) -> None:
    setup = values.make_setup(0, "", folder, (1, 1, 1), actor=ActorConfig(fp8="tensorwise"))
    with pytest.raises(ResourceError, match="actor.fp8 = tensorwise needs GPUs"):
        start(setup)


@pytest.mark.parametrize(
    ("capability", "recipes"),
    [
        ((8, 0), ["none"]),
        ((8, 9), ["tensorwise", "none"]),
        ((9, 0), ["tensorwise", "blockwise", "none"]),
        ((10, 0), ["tensorwise", "mxfp8", "none"]),
        ((10, 3), ["tensorwise", "mxfp8", "none"]),
        ((12, 0), ["tensorwise", "none"]),
    ],
)
def test_a_generation_of_gpus_has_its_recipes(capability, recipes) -> None:
    assert cuda.recipes_of(capability) == recipes
