"""An engine with experts over two ranks: what expert-parallel ranks write in place is what it loads."""

import pytest
import torch
from engine_values import END, assert_in_place_is_what_the_loader_loads, setup
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.rollout.sglang.engine import SGLangEngine


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models and the folders they are in."""
    return [saved(tmp_path_factory.mktemp("model"), seed) for seed in (1, 2)]


def saved(folder, seed):
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=120,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=END,
    )
    made = Qwen3MoeForCausalLM(config).float().eval()
    made.save_pretrained(folder)
    return made, folder


@pytest.fixture(scope="module")
def engine(models):
    engine = SGLangEngine(setup(models[0][1], tp=2))
    yield engine
    engine.shutdown()


@pytest.mark.parametrize(
    "sizes", [{"dp": 2, "ep": 2}, {"tp": 2, "pp": 2, "ep": 2}, {"tp": 2, "dp": 2, "ep": 2, "etp": 2}]
)
def test_expert_parallel_ranks_write_what_the_loader_loads(engine, models, sizes):
    source = MegatronLayout(spec.read(models[0][1]), **sizes)
    assert_in_place_is_what_the_loader_loads(engine, source, models[0], models[1])
